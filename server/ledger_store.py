"""The ledger on the coordinator's disk: entries and checkpoints as rows, written in the caller's transaction.

The head is recomputed from the stored entries, not from kept hashes, before it is signed. The signature is made
inside the transaction and nobody sees it before the commit, which is durable: no head is ever shown for entries
that a crash could take back.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from privacy.canonical import parse_canonical
from privacy.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint, parse_checkpoint, sign_head
from privacy.cli.folders import write_durably
from privacy.export import write_export
from privacy.ledger import Body, Entry, EntryError, KeyRotated, decode_entry, encode_entry
from privacy.merkle import (
    CompactRange,
    LedgerVerificationError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
)
from privacy.signing import SigningKey, VerifyKey
from server.errors import InvalidError, NotFoundError
from server.store import Store
from server.tables import CheckpointRow, LedgerEntryRow, SiteRow

READ_AHEAD = 2000


@dataclass(frozen=True, kw_only=True)
class StoredEntry:
    """An entry with its place in the log; `data` are its canonical bytes, of which the leaf is the hash."""

    index: int
    data: bytes

    @property
    def entry(self) -> Entry:
        """The entry, decoded."""
        return decode_entry(self.data)

    @property
    def data_as_json(self) -> dict[str, Any]:
        """The entry as plain JSON data."""
        return dict(parse_canonical(self.data))


def append(
    store: Store, session: Session, bodies: Sequence[Body], *, successor: SigningKey | None = None
) -> tuple[int, Checkpoint]:
    """Append entries and sign the new head, inside the caller's `store.database.write()` transaction.

    Args:
        session: an open writing transaction; everything is undone with it.
        bodies: in the order that the verifier expects (`privacy.ledger`); at least one.
        successor: the key that signs from now on, where the last of the entries says so.

    Returns:
        (index of the first entry, the new checkpoint).

    Raises:
        InvalidError: an entry that must not be written, such as one that is too large.
        LedgerVerificationError: the stored entries are no longer those that were signed before.
    """
    store.database.lock(session, "ledger")
    now = store.clock()
    try:
        datas = [encode_entry(Entry(body=body, logged_at=time_text(now))) for body in bodies]
    except EntryError as error:
        raise InvalidError("ledger entry", str(error)) from error
    last = session.scalars(select(CheckpointRow).order_by(CheckpointRow.size.desc()).limit(1)).first()
    tree = CompactRange()
    previous = None
    if last is not None:
        previous = _own_checkpoint(last.note.encode(), store.key.public)
        tree = CompactRange(size=last.size, hashes=[bytes.fromhex(text) for text in last.edge])
    first = tree.size
    for number, (body, data) in enumerate(zip(bodies, datas, strict=True)):
        session.add(LedgerEntryRow(index=first + number, kind=body.KIND, body=data, appended_at=now))
        tree.append(leaf_hash(data))
    session.flush()
    note = sign_head(_leaves(session), successor or store.key, previous=previous, expected_root=tree.root())
    checkpoint = parse_checkpoint(note).checkpoint
    session.add(
        CheckpointRow(
            size=tree.size,
            root=checkpoint.root.hex(),
            edge=[part.hex() for part in tree.hashes],
            note=note.decode(),
            signed_at=now,
        )
    )
    session.flush()
    return first, checkpoint


def rotations(store: Store) -> list[dict[str, Any]]:
    """The envelopes of all replacements of the coordinator's key, oldest first."""
    query = (
        select(LedgerEntryRow.body)
        .where(LedgerEntryRow.kind == KeyRotated.KIND)
        .order_by(LedgerEntryRow.index)
    )
    with store.database.read() as session:
        bodies = [decode_entry(data).body for data in session.scalars(query)]
    return [
        dict(body.envelope)
        for body in bodies
        if isinstance(body, KeyRotated) and body.open()[0] == "coordinator"
    ]


def latest_checkpoint(store: Store) -> SignedCheckpoint | None:
    """The newest checkpoint with all its signatures; None while the ledger is empty."""
    query = select(CheckpointRow).order_by(CheckpointRow.size.desc()).limit(1)
    with store.database.read() as session:
        row = session.scalars(query).first()
        return None if row is None else parse_checkpoint(row.note.encode())


def get_checkpoint(store: Store, size: int) -> SignedCheckpoint:
    """The checkpoint of that size.

    Raises:
        NotFoundError: none was signed at that size.
    """
    with store.database.read() as session:
        return parse_checkpoint(_checkpoint_row(session, size).note.encode())


def add_cosignature(store: Store, *, site: str, size: int, line: str) -> SignedCheckpoint:
    """Keep a site's cosignature of a checkpoint, once it holds.

    Args:
        line: what `privacy.checkpoint.witness` made.

    Raises:
        NotFoundError: no such site or checkpoint.
        LedgerVerificationError: it is not this site's cosignature of this checkpoint.
    """
    with store.database.write() as session:
        site_row = session.get(SiteRow, site)
        if site_row is None:
            raise NotFoundError("site", site)
        key = VerifyKey.from_text(site_row.receipt_key)
        row = _checkpoint_row(session, size, lock=True)
        bare = parse_checkpoint(row.note.encode())
        alone = SignedCheckpoint(checkpoint=bare.checkpoint, signatures=()).with_signatures([line])
        if alone.cosigned_at(key) is None:
            raise LedgerVerificationError(f"the line is not a cosignature by site {site!r}")
        signed = bare.with_signatures([line])
        row.note = signed.encode().decode()
        return signed


def read_entries(store: Store, *, start: int = 0, count: int | None = None) -> Iterator[StoredEntry]:
    """Entries in order from `start`, read in portions so that a long ledger never sits in memory."""
    end = None if count is None else start + count
    while end is None or start < end:
        limit = READ_AHEAD if end is None else min(READ_AHEAD, end - start)
        query = (
            select(LedgerEntryRow.index, LedgerEntryRow.body)
            .where(LedgerEntryRow.index >= start)
            .order_by(LedgerEntryRow.index)
            .limit(limit)
        )
        with store.database.read() as session:
            portion = [StoredEntry(index=index, data=body) for index, body in session.execute(query)]
        yield from portion
        if len(portion) < limit:
            return
        start += limit


def export_files(store: Store) -> Iterator[tuple[str, bytes]]:
    """The files of an export (`privacy.export`) up to the newest checkpoint, in bounded memory.

    Raises:
        NotFoundError: the ledger is empty.
        LedgerVerificationError: the stored entries are not those under the checkpoint.
    """
    newest = latest_checkpoint(store)
    if newest is None:
        raise NotFoundError("checkpoint", "newest")
    size = newest.checkpoint.size
    entries = (stored.data for stored in read_entries(store, count=size))
    return write_export(entries, newest.encode(), history=_history(store, size))


def export_to(store: Store, folder: Path) -> int:
    """Write an export that a static file server can host; again adds what is new, the checkpoint last.

    Returns:
        How many files were written; full tiles and bundles that are there already are left alone.

    Raises:
        NotFoundError: the ledger is empty.
        LedgerVerificationError: the stored entries are not those under the checkpoint.
    """
    written = 0
    for name, data in export_files(store):
        path = folder / name
        if not (path.is_file() and path.read_bytes() == data):
            write_durably(path, data)
            written += 1
    return written


def _history(store: Store, size: int) -> Iterator[bytes]:
    """Earlier checkpoints that a site cosigned, oldest first: they vouch for all before them."""
    start = 0
    while True:
        query = (
            select(CheckpointRow.size, CheckpointRow.note)
            .where(CheckpointRow.size > start, CheckpointRow.size < size)
            .order_by(CheckpointRow.size)
            .limit(READ_AHEAD)
        )
        with store.database.read() as session:
            portion = [(row.size, row.note) for row in session.execute(query)]
        for _, note in portion:
            if len(parse_checkpoint(note.encode()).signatures) > 1:
                yield note.encode()
        if len(portion) < READ_AHEAD:
            return
        start = portion[-1][0]


def num_entries(store: Store) -> int:
    """How many entries there are."""
    with store.database.read() as session:
        return session.scalar(select(func.count()).select_from(LedgerEntryRow)) or 0


def prove_inclusion(store: Store, index: int, size: int) -> list[bytes]:
    """The proof that entry `index` is in the tree of `size` entries.

    Raises:
        InvalidError: there is no such entry or tree.
    """
    try:
        return inclusion_proof(_leaves_of(store), index, size=size)
    except ValueError as error:
        raise InvalidError("index", str(error)) from error


def proof_of_newest(session: Session, index: int) -> tuple[list[bytes], str]:
    """The newest checkpoint's note, and the proof that entry `index` is under it, in the caller's transaction."""
    row = session.scalars(select(CheckpointRow).order_by(CheckpointRow.size.desc()).limit(1)).one()
    return inclusion_proof(_leaves(session), index, size=row.size), row.note


def entry_bytes(session: Session, index: int) -> bytes:
    """The canonical bytes of one entry, in the caller's transaction."""
    return session.get_one(LedgerEntryRow, index).body


def prove_consistency(store: Store, old: int, new: int) -> list[bytes]:
    """The proof that the tree of `new` entries begins with that of `old` entries.

    Raises:
        InvalidError: not 0 <= old <= new <= number of entries.
    """
    try:
        return consistency_proof(_leaves_of(store), old, new)
    except ValueError as error:
        raise InvalidError("old", str(error)) from error


def time_text(moment: dt.datetime) -> str:
    """A time as entries and receipts write it."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _own_checkpoint(note: bytes, key: VerifyKey) -> Checkpoint:
    try:
        return open_checkpoint(note, key)
    except LedgerVerificationError as error:
        raise LedgerVerificationError(
            f"the ledger's newest checkpoint is not signed by the key in use ({error}); after "
            "`fedtwin server rotate-key` restart the server, and run that command again if it was interrupted"
        ) from error


def _leaves(session: Session) -> list[bytes]:
    """The hashes of all entries, which are numbered without gaps; read a portion at a time."""
    leaves: list[bytes] = []
    while True:
        query = (
            select(LedgerEntryRow.body)
            .where(LedgerEntryRow.index >= len(leaves))
            .order_by(LedgerEntryRow.index)
            .limit(READ_AHEAD)
        )
        portion = session.scalars(query).all()
        leaves += [leaf_hash(body) for body in portion]
        if len(portion) < READ_AHEAD:
            return leaves


def _leaves_of(store: Store) -> list[bytes]:
    with store.database.read() as session:
        return _leaves(session)


def _checkpoint_row(session: Session, size: int, *, lock: bool = False) -> CheckpointRow:
    row = session.get(CheckpointRow, size, with_for_update=lock or None)
    if row is None:
        raise NotFoundError("checkpoint of size", str(size))
    return row
