"""What was spent where, and the ledger that proves it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from privacy.canonical import CanonicalError, parse_canonical
from privacy.merkle import leaf_hash
from server import ledger_store, sites, studies
from server.api import ledger as api
from server.api.auth import StoreDep
from server.api.pages.access import OperatorOrAuditor
from server.api.pages.rendering import render
from server.errors import NotFoundError
from server.spends import StudySpend, study_spends

router = APIRouter()
SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class StudySpends:
    """A study's budget and what each site has spent of it."""

    name: str
    title: str
    epsilon: float
    delta: float
    spends: list[StudySpend]


@router.get("/spends", tags=["studies", "sites", "runs"])
def spends(request: Request, session: OperatorOrAuditor, store: StoreDep) -> Response:
    """Every study's spends by site, against the caps."""
    spent = study_spends(store)
    listed = [
        StudySpends(
            name=kept.study.name,
            title=kept.study.title or kept.study.name,
            epsilon=kept.study.privacy.epsilon,
            delta=kept.study.privacy.delta,
            spends=[one for one in spent if one.study == kept.study.name],
        )
        for kept in studies.list_studies(store)
    ]
    return render(
        request, "spends.html", {"here": "/spends", "studies": listed, "sites": sites.list_sites(store)}
    )


@router.get("/ledger", tags=["ledger"])
def ledger(
    request: Request, session: OperatorOrAuditor, store: StoreDep, page: int = 1, kind: str = ""
) -> Response:
    """The newest checkpoint, and the entries, newest first."""
    total = ledger_store.num_entries(store)
    pages = max(1, -(-total // SHOWN))
    page = min(max(page, 1), pages)
    end = total - (page - 1) * SHOWN
    start = max(0, end - SHOWN)
    entries = list(ledger_store.read_entries(store, start=start, count=end - start))
    newest = ledger_store.latest_checkpoint(store)
    return render(
        request,
        "ledger.html",
        {
            "here": "/ledger",
            "entries": [(one, summary(one.data_as_json)) for one in reversed(entries)],
            "total": total,
            "page": page,
            "pages": pages,
            "checkpoint": newest,
            "note": None if newest is None else newest.encode().decode(),
            "key": store.key.public.text,
        },
    )


@router.get("/ledger/export", tags=["ledger"])
def export(session: OperatorOrAuditor, store: StoreDep) -> Response:
    """The whole ledger as a zip, as the API gives it."""
    return api.export(_key=session.key, store=store)


@router.get("/ledger/entries/{index}", tags=["ledger"])
def entry(request: Request, index: int, session: OperatorOrAuditor, store: StoreDep) -> Response:
    """An entry with the proof that it is under the newest checkpoint."""
    total = ledger_store.num_entries(store)
    if not 0 <= index < total:
        raise NotFoundError("ledger entry", str(index))
    stored = next(ledger_store.read_entries(store, start=index, count=1))
    newest = ledger_store.latest_checkpoint(store)
    assert newest is not None  # every entry is written with a checkpoint
    size = newest.checkpoint.size
    return render(
        request,
        "entry.html",
        {
            "here": "/ledger",
            "stored": stored,
            "summary": summary(stored.data_as_json),
            "statement": statement(stored.data_as_json),
            "leaf": leaf_hash(stored.data).hex(),
            "proof": [part.hex() for part in ledger_store.prove_inclusion(store, index, size)],
            "size": size,
            "root": newest.checkpoint.root.hex(),
            "total": total,
        },
    )


def statement(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a receipt says, out of the envelope that its site signed; None for other entries."""
    envelope = entry["body"].get("envelope")
    if not isinstance(envelope, Mapping):
        return None
    try:
        return dict(parse_canonical(base64.b64decode(str(envelope.get("payload")))))
    except (CanonicalError, ValueError, TypeError):
        return None


def summary(entry: Mapping[str, Any]) -> str:
    """What an entry is about, in a line: names and numbers as they stand there."""
    body = {**entry["body"], **(statement(entry) or {})}
    told = []
    for name in ("site", "study", "run", "round", "state", "code", "cohort", "rows"):
        value = body.get(name)
        if isinstance(value, str | int) and value != "":
            told.append(str(value) if name in {"run", "cohort"} else f"{name} {value}")
    if isinstance(definition := body.get("definition"), Mapping):
        told.append(f"study {definition.get('name')}")
    return ", ".join(told)
