"""Attempts at a run: which Flower run works on it, and what happens when that dies.

A run is queued durably and started later, so that whoever starts it may die in between. Each time that it is
queued is another attempt, and an attempt belongs to the first Flower run that claims it: one that was started
twice, or for an earlier attempt, is turned away by `runs.start_running` and can write nothing.
"""

from __future__ import annotations

from server.errors import InvalidError
from server.run_rows import (
    ACTIVE_STATES,
    Run,
    end_in,
    last_recorded,
    queue_again,
    run_row,
    run_value,
    say_in,
)
from server.store import Store

MAX_RESTARTS = 5


def write_ticket(run: Run) -> str:
    """What a Flower run is told of the attempt that it is started for."""
    return f"{run.id}/{run.attempt}"


def read_ticket(ticket: str) -> tuple[str, int]:
    """Run and attempt, as `write_ticket` wrote them.

    Raises:
        InvalidError: it is no ticket.
    """
    run_id, _, attempt = ticket.partition("/")
    if not attempt.isascii() or not attempt.isdecimal():
        raise InvalidError("run", f"run is {ticket!r}; it must be a run's identifier, a slash and a number")
    return run_id, int(attempt)


def restart_run(store: Store, run_id: str, *, attempt: int, why: str) -> Run:
    """Queue an active run again whose round loop died; one that a person asked to stop is stopped instead.

    Does nothing when the attempt is over already: two who notice the same death restart the run once.

    Args:
        attempt: that died.
        why: for the operator.

    Raises:
        NotFoundError: no such run.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.state not in ACTIVE_STATES or run.attempt != attempt:
            return run_value(run)
        if run.stop_requested:
            end_in(
                store, session, run, "stopped", f"stopped on request, while the round loop had ended: {why}"
            )
            return run_value(run)
        last = last_recorded(session, run_id)
        if run.restarts_round != last:
            run.restarts, run.restarts_round = 0, last
        if run.restarts >= MAX_RESTARTS:
            reason = (
                f"the round loop ended {run.restarts + 1} times in round {last + 1} ({why}); resume the run"
            )
            end_in(store, session, run, "failed", reason)
            return run_value(run)
        run.restarts += 1
        queue_again(run)
        text = (
            f"the round loop ended ({why}); goes on by itself after round {last} "
            f"({run.restarts} of at most {MAX_RESTARTS} times)"
        )
        say_in(store, session, run_id, text, level="warning")
        return run_value(run)


def note_flower_run(store: Store, run_id: str, flower_run_id: str, *, attempt: int) -> Run:
    """Remember in which Flower run an attempt is worked on, whatever state the run has reached meanwhile.

    Returns:
        The run; its `flower_run_id` is another one where that came first, or the attempt is over.

    Raises:
        NotFoundError: no such run.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        if run.flower_run_id is None and run.attempt == attempt:
            run.flower_run_id = flower_run_id
        return run_value(run)
