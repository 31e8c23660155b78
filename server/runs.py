"""Runs: one training execution of a study, one at a time, and what each of its rounds did and spent.

States: queued -> running -> completed | failed | stopped, with stopping between a request to stop and the end;
failed and stopped runs resume from their last recorded round when a person says so. A run whose round loop died
is queued again by itself, a few times (`server.run_attempts`).

All of the round loop's writes are idempotent per (run, round), so it may be killed anywhere and started again:

    run = start_running(store, run_id)
    last = last_round(store, run_id)              # None, or where to go on from
    report_progress(store, run_id, phase=..., round=..., percent=..., eta_seconds=...)
    record_round(store, run_id=..., round=..., ...)   # one transaction; files before it
    if stop_requested(store, run_id): finish_run(store, run_id, "stopped")
    complete_run(store, run_id, release_round=..., scores=...)   # proposes the release, ends the run
"""

from __future__ import annotations

import secrets
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.study import Study
from server.errors import ConflictError, InvalidError, NotFoundError
from server.newest_first import Seen, newest_first
from server.run_rows import (
    ACTIVE_STATES,
    Run,
    RunMessage,
    end_in,
    last_recorded,
    queue_again,
    run_row,
    run_value,
    say_in,
)
from server.store import Store
from server.tables import RunMessageRow, RunRow, SiteRow, StudyRow

__all__ = [
    "ACTIVE_STATES",
    "MAX_MESSAGES",
    "Run",
    "RunMessage",
    "active_run",
    "add_message",
    "create_run",
    "finish_run",
    "get_run",
    "list_runs",
    "report_progress",
    "request_stop",
    "resume_run",
    "run_messages",
    "start_running",
    "stop_requested",
]

MAX_MESSAGES = 500


def create_run(store: Store, study: str, *, started_by: str) -> Run:
    """Queue a run of a study over all enrolled sites; where its release tells sites apart, over those that it names.

    Raises:
        NotFoundError: no such study; lists those there are.
        ConflictError: another run is active, fewer sites are enrolled than the study's quorum, or this version
            of fedtwin no longer reads the study as it was registered.
    """
    with store.database.write() as session:
        row = session.get(StudyRow, study)
        if row is None:
            known = session.scalars(select(StudyRow.name).order_by(StudyRow.name).limit(50))
            raise NotFoundError("study", study, known)
        _refuse_second(store, session)
        sites = list(
            session.scalars(select(SiteRow.name).where(SiteRow.state == "enrolled").order_by(SiteRow.name))
        )
        definition = Study.from_dict(row.definition)
        if definition.digest != row.digest:
            raise ConflictError(
                f"study {study!r} was registered by another version of fedtwin, which reads it differently; "
                "register it again under another name"
            )
        quorum, named = definition.federation.quorum, definition.table.site_names
        if named:
            sites = [site for site in sites if site in named]
        if len(sites) < quorum:
            of_those = (
                f" of those that its column {definition.table.site!r} names, {list(named)}," if named else ""
            )
            raise ConflictError(
                f"study {study!r} needs a quorum of {quorum} sites,{of_those} {len(sites)} are enrolled; "
                "enrol more sites first"
            )
        run = RunRow(
            id=f"run-{secrets.token_hex(6)}",
            study=study,
            study_digest=row.digest,
            sites=sites,
            state="queued",
            active=1,
            attempt=1,
            phase="waiting",
            rounds=definition.num_rounds,
            started_by=started_by,
            created_at=store.clock(),
        )
        session.add(run)
        session.flush()
        say_in(store, session, run.id, f"queued over {len(sites)} sites: {', '.join(sites)}")
        return run_value(run)


def resume_run(store: Store, run_id: str) -> Run:
    """Queue a stopped or failed run again; it goes on after its last recorded round.

    Raises:
        NotFoundError: no such run.
        ConflictError: it is completed, or a run is active.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.state not in {"stopped", "failed"}:
            raise ConflictError(f"run {run_id!r} is {run.state}; only a stopped or failed run can be resumed")
        _refuse_second(store, session)
        run.active, run.stop_requested, run.restarts = 1, False, 0
        run.reason, run.ended_at = "", None
        queue_again(run)
        say_in(store, session, run_id, f"resumed after round {last_recorded(session, run_id)}")
        return run_value(run)


def start_running(
    store: Store, run_id: str, *, attempt: int | None = None, flower_run_id: str | None = None
) -> Run:
    """Queued becomes running; a run that runs already stays so.

    Args:
        attempt: that the caller was started for; absent where there is no Flower.
        flower_run_id: in which the caller runs.

    Raises:
        NotFoundError: no such run.
        ConflictError: it has ended, or another Flower run works on it.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.state not in ACTIVE_STATES:
            raise ConflictError(f"run {run_id!r} is {run.state}; resume it first")
        if attempt is not None and attempt != run.attempt:
            raise ConflictError(f"run {run_id!r} is at attempt {run.attempt}; attempt {attempt} is over")
        if flower_run_id is not None and run.flower_run_id not in {None, flower_run_id}:
            raise ConflictError(
                f"run {run_id!r} is worked on in Flower run {run.flower_run_id}; nothing was done in {flower_run_id}"
            )
        if run.state == "queued":
            run.state, run.started_at = "running", run.started_at or store.clock()
        if flower_run_id is not None:
            run.flower_run_id = flower_run_id
        return run_value(run)


def report_progress(
    store: Store,
    run_id: str,
    *,
    phase: str,
    round: int,
    percent: float,
    eta_seconds: float | None = None,
) -> None:
    """Say how far the run is; a run that has ended is left alone.

    Args:
        percent: of the whole run, 0 to 100.
    """
    if not 0 <= percent <= 100:
        raise InvalidError("percent", f"percent is {percent!r}; it must lie between 0 and 100")
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.state in ACTIVE_STATES:
            run.phase, run.round, run.percent, run.eta_seconds = phase, round, percent, eta_seconds


def add_message(store: Store, run_id: str, text: str, *, level: str = "info") -> None:
    """Note what happened, in words for the operator; nothing about patients, ever."""
    with store.database.write() as session:
        run_row(session, run_id, lock=False)
        say_in(store, session, run_id, text, level=level)


def request_stop(store: Store, run_id: str) -> Run:
    """Ask a run to end; the round in hand ends with it, a queued run ends at once. Again is harmless.

    Raises:
        NotFoundError: no such run.
        ConflictError: it has ended already.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.state not in ACTIVE_STATES:
            raise ConflictError(f"run {run_id!r} is {run.state} already; there is nothing to stop")
        if run.stop_requested:
            return run_value(run)
        run.stop_requested = True
        say_in(store, session, run_id, "asked to stop")
        if run.state == "queued":
            end_in(store, session, run, "stopped", "stopped before it started")
        else:
            run.state = "stopping"
        return run_value(run)


def stop_requested(store: Store, run_id: str) -> bool:
    """Whether somebody asked the run to stop, or it ended already."""
    with store.database.read() as session:
        run = run_row(session, run_id, lock=False)
        return run.stop_requested or run.state not in ACTIVE_STATES


def finish_run(
    store: Store,
    run_id: str,
    state: Literal["stopped", "completed", "failed"],
    *,
    reason: str = "",
    attempt: int | None = None,
) -> Run:
    """End a run; one that ended in this state already stays as it is.

    Args:
        reason: for people.
        attempt: that the caller worked on; a run that is past it is left alone.

    Raises:
        NotFoundError: no such run.
        ConflictError: it ended in another state.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if attempt is not None and run.attempt != attempt:
            return run_value(run)
        end_in(store, session, run, state, reason)
        return run_value(run)


def get_run(store: Store, run_id: str) -> Run:
    """The run of that id.

    Raises:
        NotFoundError: there is none.
    """
    with store.database.read() as session:
        return run_value(run_row(session, run_id, lock=False))


def active_run(store: Store) -> Run | None:
    """The one run that is queued, running or stopping, if any."""
    with store.database.read() as session:
        row = session.scalars(select(RunRow).where(RunRow.active == 1)).first()
        return None if row is None else run_value(row)


def list_runs(
    store: Store, *, limit: int = 50, before: Seen | None = None, study: str | None = None
) -> list[Run]:
    """Runs, newest first; `before` is (created_at, id) of the last one already seen."""
    query = newest_first(select(RunRow), RunRow.created_at, RunRow.id, limit=limit, before=before)
    if study is not None:
        query = query.where(RunRow.study == study)
    with store.database.read() as session:
        return [run_value(row) for row in session.scalars(query)]


def run_messages(store: Store, run_id: str, *, limit: int = MAX_MESSAGES) -> list[RunMessage]:
    """The newest messages of a run, oldest first."""
    query = (
        select(RunMessageRow)
        .where(RunMessageRow.run == run_id)
        .order_by(RunMessageRow.id.desc())
        .limit(limit)
    )
    with store.database.read() as session:
        rows = list(session.scalars(query))
    return [RunMessage(at=row.at, level=row.level, text=row.text) for row in reversed(rows)]


def _refuse_second(store: Store, session: Session) -> None:
    store.database.lock(session, "runs")
    active = session.scalars(select(RunRow.id).where(RunRow.active == 1)).first()
    if active is not None:
        raise ConflictError(f"run {active!r} is active and there is one at a time; wait for it or stop it")
