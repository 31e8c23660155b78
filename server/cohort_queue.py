"""The queue that worker processes take cohorts from.

A worker claims a job for a while and renews the claim as it goes; if it dies the claim runs out and another
worker takes the job up from the start: the same seed gives the same bytes, so nothing is lost or doubled. Only
the holder of the claim can finish a job.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from privacy.ledger import CohortDrawn
from server import ledger_store
from server.cohorts import Cohort, CohortFile, cohort_of, end_in, row_of
from server.store import Store
from server.tables import CohortRow

MAX_ATTEMPTS = 3
CLAIM_TIME = dt.timedelta(seconds=60)


class ClaimLostError(Exception):
    """The job was cancelled, or another worker has it: stop and write nothing more."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job in a worker's hands."""

    cohort: Cohort
    token: str


def has_work(store: Store) -> bool:
    """Whether there may be a job to take; only reads."""
    with store.database.read() as session:
        return session.scalars(select(CohortRow.id).where(_unclaimed(store)).limit(1)).first() is not None


def claim_next(store: Store) -> Claim | None:
    """Take the oldest job that nobody works on: queued, or running under a claim that ran out."""
    now = store.clock()
    with store.database.write() as session:
        query = (
            select(CohortRow)
            .where(_unclaimed(store))
            .order_by(CohortRow.created_at, CohortRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = session.scalars(query).first()
        if row is None:
            return None
        if row.attempts >= MAX_ATTEMPTS:
            end_in(store, row, "failed", f"{row.attempts} workers died of it; tell the operator")
            return None
        row.state, row.started_at = "running", now
        row.claim, row.claimed_until = secrets.token_hex(16), now + CLAIM_TIME
        row.attempts += 1
        row.patients_done = 0
        return Claim(cohort=cohort_of(store, row), token=row.claim)


def report_patients(store: Store, claim: Claim, done: int) -> None:
    """Say how many patients are written, and renew the claim.

    Raises:
        ClaimLostError: the job was cancelled or another worker has it.
    """
    with store.database.write() as session:
        row = _claimed(session, claim)
        row.patients_done, row.claimed_until = done, store.clock() + CLAIM_TIME


def release_claim(store: Store, claim: Claim) -> None:
    """Put a job back, as a worker does that is asked to end; it does not count as an attempt."""
    with store.database.write() as session:
        row = session.get(CohortRow, claim.cohort.id, with_for_update=True)
        if row is not None and row.state == "running" and row.claim == claim.token:
            row.state, row.claim, row.claimed_until = "queued", None, None
            row.attempts -= 1


def fail_cohort(store: Store, claim: Claim, reason: str) -> None:
    """End a job as failed, with a reason for the researcher.

    Raises:
        ClaimLostError: the job was cancelled or another worker has it.
    """
    with store.database.write() as session:
        end_in(store, _claimed(session, claim), "failed", reason)


def log_cohort(
    store: Store, session: Session, claim: Claim, files: Sequence[CohortFile], digests: Mapping[str, str]
) -> tuple[CohortRow, int]:
    """Write a cohort's ledger entry inside the caller's transaction.

    Args:
        digests: by file name, as the entry names them.

    Returns:
        (the job's row, the entry's index).

    Raises:
        ClaimLostError: the job was cancelled or another worker has it.
    """
    row = _claimed(session, claim)
    entry = CohortDrawn(
        cohort=row.id,
        release_digest=row.release,
        rows=row.num_patients,
        conditions_digest=claim.cohort.request.conditions_digest,
        files=dict(digests),
    )
    row.entry, _ = ledger_store.append(store, session, [entry])
    row.files = [
        {"name": one.name, "num_bytes": one.num_bytes, "sha256": one.sha256, "media_type": one.media_type}
        for one in files
    ]
    return row, row.entry


def complete_in(store: Store, row: CohortRow, certificate: Mapping[str, Any]) -> None:
    """End a job as completed, inside the caller's transaction."""
    row.certificate, row.patients_done = dict(certificate), row.num_patients
    end_in(store, row, "completed", "")
    row.expires_at = store.clock() + store.allowances.keep_cohorts


def list_to_clear(store: Store, *, limit: int = 100) -> list[str]:
    """Ids of cohorts whose folders are to be removed: expired, deleted, or given up before they were made.

    What a worker may still be writing is left for a while: it finds out at its next step.
    """
    now = store.clock()
    given_up = CohortRow.state.in_(("failed", "cancelled")) & (CohortRow.ended_at <= now - CLAIM_TIME)
    over = (CohortRow.expires_at <= now) | CohortRow.deleted_at.is_not(None) | given_up
    query = select(CohortRow.id).where(over, CohortRow.removed_at.is_(None)).limit(limit)
    with store.database.read() as session:
        return list(session.scalars(query))


def _unclaimed(store: Store) -> ColumnElement[bool]:
    return (CohortRow.state == "queued") | (
        (CohortRow.state == "running") & (CohortRow.claimed_until < store.clock())
    )


def _claimed(session: Session, claim: Claim) -> CohortRow:
    row = row_of(session, claim.cohort.id, lock=True)
    if row.state != "running" or row.claim != claim.token:
        raise ClaimLostError(f"cohort {row.id!r} is {row.state}, or another worker has it")
    return row
