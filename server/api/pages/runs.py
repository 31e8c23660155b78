"""Runs: the list, the monitor, and start, stop and resume."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from server import releases, round_records, runs, sites, studies
from server.api import runs as api
from server.api.auth import StoreDep
from server.api.pages.access import Operator, OperatorOrAuditor, Posted
from server.api.pages.rendering import render
from server.api.paging import decode_cursor, encode_cursor
from server.errors import NotFoundError
from server.round_records import RecordedRound
from server.runs import ACTIVE_STATES
from server.spends import run_spends
from server.store import Store

router = APIRouter(prefix="/runs", tags=["runs"])
SHOWN = 20
MESSAGES_SHOWN = 100


@router.get("")
def list_runs(
    request: Request, session: OperatorOrAuditor, store: StoreDep, cursor: str | None = None
) -> Response:
    """Runs, newest first, and for the operator the form to start one."""
    found = runs.list_runs(store, limit=SHOWN + 1, before=decode_cursor(cursor))
    more = encode_cursor(found[SHOWN - 1].created_at, found[SHOWN - 1].id) if len(found) > SHOWN else None
    return render(
        request,
        "runs.html",
        {
            "here": "/runs",
            "items": found[:SHOWN],
            "more": more,
            "later": cursor,
            "studies": studies.list_studies(store),
            "num_sites": len(sites.list_sites(store, state="enrolled")),
            "active": runs.active_run(store),
        },
    )


@router.post("")
def start(request: Request, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Start a run of a study over all enrolled sites."""
    try:
        wanted = api.RunRequest(study=form.one("study"))
    except ValidationError:
        raise NotFoundError("study", form.one("study")) from None
    run = api.create_run(wanted=wanted, key=session.key, store=store, request=request, response=Response())
    return RedirectResponse(f"/runs/{run.id}", 303)


@router.get("/{run_id}")
def show(request: Request, run_id: str, session: OperatorOrAuditor, store: StoreDep) -> Response:
    """The monitor of a run."""
    return _monitor(request, store, run_id, "run.html")


@router.get("/{run_id}/monitor")
def monitor(request: Request, run_id: str, session: OperatorOrAuditor, store: StoreDep) -> Response:
    """The part of the page that changes."""
    return _monitor(request, store, run_id, "_run.html")


@router.post("/{run_id}/stop")
def stop(run_id: str, _session: Operator, _form: Posted, store: StoreDep) -> Response:
    """Stop within seconds; what is recorded stays."""
    runs.request_stop(store, run_id)
    return RedirectResponse(f"/runs/{run_id}", 303)


@router.post("/{run_id}/resume")
def resume(request: Request, run_id: str, session: Operator, _form: Posted, store: StoreDep) -> Response:
    """Go on after the last recorded round."""
    api.resume_run(run_id=run_id, _key=session.key, store=store, request=request)
    return RedirectResponse(f"/runs/{run_id}", 303)


def _monitor(request: Request, store: Store, run_id: str, template: str) -> Response:
    run, rounds = round_records.run_with_rounds(store, run_id, limit=api.ROUNDS_SHOWN)
    is_active, is_part = run.state in ACTIVE_STATES, template == "_run.html"
    context: dict[str, Any] = {
        "here": "/runs",
        "is_part": is_part,
        "run": run,
        "rounds": rounds,
        "curves": _curves(rounds),
        "spends": run_spends(store, run_id),
        "messages": runs.run_messages(store, run_id, limit=MESSAGES_SHOWN),
        "release": releases.release_of_run(store, run_id),
        "is_active": is_active,
    }
    # The whole page once the run has ended: its buttons are others then.
    return render(
        request, template, context, headers={"HX-Refresh": "true"} if is_part and not is_active else {}
    )


def _curves(rounds: list[RecordedRound]) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """(title, unit, points) of the seconds and of every score that several rounds have."""
    names = sorted({name for one in rounds for name in one.scores})
    curves = [("Seconds per round", " s", [(one.round, one.seconds) for one in rounds])] if rounds else []
    for name in names:
        points = [
            (one.round, value) for one in rounds if (value := _number(one.scores.get(name))) is not None
        ]
        if len(points) > 1 or len(rounds) == 1:  # what only one of several rounds has is no curve
            curves.append((name.replace("_", " "), "", points))
    return curves


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
