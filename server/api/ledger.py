"""/v1/ledger: the log as the auditor reads it: newest checkpoint, entries, proofs, and the whole as a zip."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from server import ledger_store
from server.api.auth import OperatorOrAuditor, StoreDep
from server.api.problems import responses
from server.errors import NotFoundError

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])
Size = Annotated[int, Query(ge=0, le=2**62)]


class EntryOut(BaseModel):
    """An entry, decoded for reading and as the bytes that the leaf is the hash of."""

    index: int
    kind: str = Field(examples=["receipt"])
    logged_at: str
    body: dict[str, Any]
    canonical: str = Field(description="The entry's canonical bytes, base64.")


class EntryList(BaseModel):
    """Entries in order."""

    items: list[EntryOut]
    size: int = Field(description="How many entries the ledger has.")


class ProofOut(BaseModel):
    """Hashes of a proof, hexadecimal, in the order of RFC 6962."""

    hashes: list[str]


@router.get(
    "/checkpoint",
    summary="Newest checkpoint",
    response_class=PlainTextResponse,
    responses=responses(404),
)
def get_checkpoint(
    _key: OperatorOrAuditor, store: StoreDep, size: Annotated[int | None, Query(ge=1, le=2**62)] = None
) -> PlainTextResponse:
    """The signed tree head with the sites' countersignatures, as a C2SP signed note; an older one by its size."""
    signed = (
        ledger_store.latest_checkpoint(store) if size is None else ledger_store.get_checkpoint(store, size)
    )
    if signed is None:
        raise NotFoundError("checkpoint", "newest")
    return PlainTextResponse(signed.encode())


@router.get("/entries", summary="Read entries", responses=responses())
def list_entries(
    _key: OperatorOrAuditor,
    store: StoreDep,
    start: Size = 0,
    count: Annotated[int, Query(ge=1, le=500)] = 100,
) -> EntryList:
    """Entries from `start`, in order."""
    items = [
        EntryOut(
            index=stored.index,
            kind=stored.entry.kind,
            logged_at=stored.entry.logged_at,
            body=stored.data_as_json["body"],
            canonical=base64.b64encode(stored.data).decode(),
        )
        for stored in ledger_store.read_entries(store, start=start, count=count)
    ]
    return EntryList(items=items, size=ledger_store.num_entries(store))


@router.get("/proofs/inclusion", summary="Prove that an entry is in the log", responses=responses())
def get_inclusion(_key: OperatorOrAuditor, store: StoreDep, index: Size, size: Size) -> ProofOut:
    """The audit path of entry `index` in the tree of `size` entries."""
    return ProofOut(hashes=[part.hex() for part in ledger_store.prove_inclusion(store, index, size)])


@router.get("/proofs/consistency", summary="Prove that the log only grew", responses=responses())
def get_consistency(_key: OperatorOrAuditor, store: StoreDep, old: Size, new: Size) -> ProofOut:
    """That the tree of `new` entries begins with that of `old` entries."""
    return ProofOut(hashes=[part.hex() for part in ledger_store.prove_consistency(store, old, new)])


@router.get(
    "/export",
    summary="Export the whole ledger",
    response_class=Response,
    responses={
        200: {"description": "A zip of C2SP tlog-tiles files.", "content": {"application/zip": {}}},
        **responses(404),
    },
)
def export(_key: OperatorOrAuditor, store: StoreDep) -> StreamingResponse:
    """Everything that `fedtwin audit verify` needs; unpack it and check it offline."""
    files = ledger_store.export_files(store)
    return StreamingResponse(
        _zip(files),
        media_type="application/zip",
        headers={"Content-Disposition": 'attachment; filename="ledger.zip"', "Cache-Control": "no-store"},
    )


class _Pipe(io.RawIOBase):
    """Takes what a zip writer writes and gives it on."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _zip(files: Iterator[tuple[str, bytes]]) -> Iterator[bytes]:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files:
            # A fixed time: the same ledger gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
            yield pipe.take()
    yield pipe.take()
