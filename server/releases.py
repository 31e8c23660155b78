"""Releases: generators offered for use. A candidate serves nobody until an operator publishes it.

A release is named by the digest of its study's digest and its weights' digest; the weights' file in the releases
folder is named by their own. There is no gate yet: every release says that none was passed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from privacy.ledger import Released, Withdrawn, release_digest
from server import ledger_store
from server.errors import ConflictError, NotFoundError
from server.newest_first import Seen, newest_first
from server.store import Store
from server.tables import ReleaseRow, ReleaseState, RoundRow, RunRow, SpendRow

NO_GATE = "none passed"
LIMITS_OF_USE = (
    "No record is a person. Records are drawn from a model that saw patients only through differentially "
    "private mechanisms at their hospitals.",
    "The model keeps what pairs of columns say about each other; relations of three and more columns are kept "
    "less well, and rare combinations may be shaped by noise.",
    "No release gate was passed: neither attacks nor utility were tested on this release before it was published.",
    "Not for decisions about a patient; confirm findings on real data.",
)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A generator offered for use.

    Attributes:
        digest: its name.
        sites: those whose replies were accepted in any of the rounds it descends from.
        scores: from noisy statistics only.
        gate: what it passed before being served.
        entry: index of its ledger entry once it was published.
    """

    digest: str
    study: str
    study_digest: str
    run: str
    round: int
    weights_digest: str
    sites: tuple[str, ...]
    scores: Mapping[str, Any]
    state: ReleaseState
    reason: str
    entry: int | None
    created_at: dt.datetime
    changed_at: dt.datetime
    gate: str = NO_GATE


def propose_in(
    store: Store, session: Session, *, run: RunRow, round_row: RoundRow, scores: Mapping[str, Any]
) -> Release:
    """Make a round's generator a candidate, inside the caller's transaction; again is harmless."""
    weights = str(round_row.arrays["generator"])
    name = release_digest(run.study_digest, weights)
    row = session.get(ReleaseRow, name)
    if row is None:
        sites = session.scalars(
            select(SpendRow.site)
            .where(SpendRow.run == run.id, SpendRow.round <= round_row.round, SpendRow.outcome == "accepted")
            .distinct()
            .order_by(SpendRow.site)
        )
        now = store.clock()
        row = ReleaseRow(
            digest=name,
            study=run.study,
            study_digest=run.study_digest,
            run=run.id,
            round=round_row.round,
            weights_digest=weights,
            sites=list(sites),
            scores=dict(scores),
            state="candidate",
            created_at=now,
            changed_at=now,
        )
        session.add(row)
        session.flush()
        ledger_store.append(store, session, [_entry(row)])
    return _release(row)


def get_release(store: Store, digest: str) -> Release:
    """The release of that digest.

    Raises:
        NotFoundError: there is none.
    """
    with store.database.read() as session:
        return _release(_row(session, digest))


def release_of_run(store: Store, run_id: str) -> Release | None:
    """The newest release that a run gave, if any."""
    query = select(ReleaseRow).where(ReleaseRow.run == run_id).order_by(ReleaseRow.created_at.desc()).limit(1)
    with store.database.read() as session:
        row = session.scalars(query).first()
        return None if row is None else _release(row)


def list_releases(
    store: Store,
    *,
    limit: int = 50,
    before: Seen | None = None,
    states: tuple[str, ...] | None = None,
    studies: Collection[str] | None = None,
) -> list[Release]:
    """Releases, newest first, of these states and studies; `before` is (created_at, digest) of the last one seen."""
    query = newest_first(
        select(ReleaseRow), ReleaseRow.created_at, ReleaseRow.digest, limit=limit, before=before
    )
    if states is not None:
        query = query.where(ReleaseRow.state.in_(states))
    if studies is not None:
        query = query.where(ReleaseRow.study.in_(studies))
    with store.database.read() as session:
        return [_release(row) for row in session.scalars(query)]


def publish_release(store: Store, digest: str) -> Release:
    """Serve a release, with a ledger entry; again is harmless.

    Raises:
        NotFoundError: there is none.
        ConflictError: it was withdrawn, which is for good.
        StoredFileError: its weights changed since they were written.
    """
    with store.database.write() as session:
        row = _row(session, digest, lock=True)
        if row.state == "published":
            return _release(row)
        if row.state == "withdrawn":
            raise ConflictError(f"release {digest} was withdrawn and stays so; publish another one")
        store.load(row.weights_digest)
        row.state, row.reason, row.changed_at = "published", "", store.clock()
        row.entry, _ = ledger_store.append(store, session, [_entry(row)])
        return _release(row)


def withhold_release(store: Store, digest: str, *, reason: str) -> Release:
    """Keep a candidate from being served, with a ledger entry; it can be published later.

    Raises:
        NotFoundError: there is none.
        ConflictError: it was published already; withdraw it.
    """
    with store.database.write() as session:
        row = _row(session, digest, lock=True)
        if row.state not in {"candidate", "withheld"}:
            raise ConflictError(f"release {digest} is {row.state}; only a candidate can be withheld")
        if row.state == "candidate":
            row.state, row.reason, row.changed_at = "withheld", reason, store.clock()
            ledger_store.append(store, session, [_entry(row)])
        return _release(row)


def withdraw_release(store: Store, digest: str, *, reason: str) -> Release:
    """Stop serving a release for good, with its ledger entries; again is harmless.

    Args:
        reason: for people; kept here, not in the ledger.

    Raises:
        NotFoundError: there is none.
        ConflictError: it was never published; withhold it.
    """
    with store.database.write() as session:
        row = _row(session, digest, lock=True)
        if row.state == "withdrawn":
            return _release(row)
        if row.state != "published":
            raise ConflictError(f"release {digest} is {row.state}; only a published one can be withdrawn")
        row.state, row.reason, row.changed_at = "withdrawn", reason, store.clock()
        ledger_store.append(
            store, session, [_entry(row), Withdrawn(release_digest=digest, reason="operator")]
        )
        return _release(row)


def _entry(row: ReleaseRow) -> Released:
    return Released(
        study_digest=row.study_digest,
        run=row.run,
        round=row.round,
        weights_digest=row.weights_digest,
        state=row.state,
    )


def _row(session: Session, digest: str, *, lock: bool = False) -> ReleaseRow:
    row = session.get(ReleaseRow, digest, with_for_update=lock or None)
    if row is None:
        raise NotFoundError("release", digest)
    return row


def _release(row: ReleaseRow) -> Release:
    return Release(
        digest=row.digest,
        study=row.study,
        study_digest=row.study_digest,
        run=row.run,
        round=row.round,
        weights_digest=row.weights_digest,
        sites=tuple(row.sites),
        scores=row.scores,
        state=row.state,
        reason=row.reason,
        entry=row.entry,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )
