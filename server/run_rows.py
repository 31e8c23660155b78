"""A run's row inside somebody's transaction: read, ended, queued again, and what is said of it; see `server.runs`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.errors import ConflictError, NotFoundError
from server.store import Store
from server.tables import RoundRow, RunMessageRow, RunRow, RunState

ACTIVE_STATES = frozenset({"queued", "running", "stopping"})


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it stands.

    Attributes:
        sites: names of the sites that are asked, fixed at the start.
        phase: `waiting`, `quote`, `measure`, `warm-start`, `refine`, `compare` or `done`.
        round: the last recorded one, 0 before the first.
        percent: of the whole run, 0 to 100.
        eta_seconds: to the end, where it can be told.
        flower_run_id: of the Flower run that this attempt belongs to; None until there is one.
        attempt: how often it was queued, by a person or by itself.
        reason: why it failed or was stopped.
    """

    id: str
    study: str
    study_digest: str
    sites: tuple[str, ...]
    state: RunState
    stop_requested: bool
    phase: str
    round: int
    rounds: int
    percent: float
    eta_seconds: float | None
    flower_run_id: str | None
    attempt: int
    reason: str
    started_by: str
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class RunMessage:
    """Something that happened, in words."""

    at: dt.datetime
    level: str
    text: str


def run_row(session: Session, run_id: str, *, lock: bool = True) -> RunRow:
    """The row of a run, locked until the transaction ends unless it is only read.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(RunRow, run_id, with_for_update=lock or None)
    if row is None:
        raise NotFoundError("run", run_id)
    return row


def end_in(store: Store, session: Session, run: RunRow, state: RunState, reason: str) -> None:
    """End a run; one that ended in this state already stays as it is.

    Raises:
        ConflictError: it ended in another state.
    """
    if run.state == state:
        return
    if run.state not in ACTIVE_STATES:
        raise ConflictError(f"run {run.id!r} is {run.state}; it cannot become {state}")
    run.state, run.active, run.reason, run.ended_at = state, None, reason, store.clock()
    run.eta_seconds = None
    if state == "completed":
        run.phase, run.percent = "done", 100.0
    level = "error" if state == "failed" else "info"
    say_in(store, session, run.id, f"{state}: {reason}" if reason else state, level=level)


def queue_again(run: RunRow) -> None:
    """Let a run wait for its next attempt."""
    run.state, run.flower_run_id, run.attempt = "queued", None, run.attempt + 1


def last_recorded(session: Session, run_id: str) -> int:
    """The last recorded round; 0 before the first."""
    query = select(RoundRow.round).where(RoundRow.run == run_id).order_by(RoundRow.round.desc()).limit(1)
    return session.scalars(query).first() or 0


def say_in(store: Store, session: Session, run_id: str, text: str, *, level: str = "info") -> None:
    """Note what happened, in words for the operator; nothing about patients, ever."""
    session.add(RunMessageRow(run=run_id, at=store.clock(), level=level, text=text))


def run_value(row: RunRow) -> Run:
    """A row as what callers get."""
    return Run(
        id=row.id,
        study=row.study,
        study_digest=row.study_digest,
        sites=tuple(row.sites),
        state=row.state,
        stop_requested=row.stop_requested,
        phase=row.phase,
        round=row.round,
        rounds=row.rounds,
        percent=row.percent,
        eta_seconds=row.eta_seconds,
        flower_run_id=row.flower_run_id,
        attempt=row.attempt,
        reason=row.reason,
        started_by=row.started_by,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
