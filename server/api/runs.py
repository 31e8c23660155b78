"""/v1/runs: start a run, follow it, stop it, resume it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from server import releases, round_records, runs
from server.api.auth import Operator, OperatorOrAuditor, StoreDep
from server.api.paging import Cursor, Limit, Page, decode_cursor, page_of
from server.api.problems import ProblemError, located, responses
from server.api.starter import RunStarter, StarterError
from server.spends import SiteSpend, run_spends
from server.store import Store

router = APIRouter(prefix="/v1/runs", tags=["runs"])
ROUNDS_SHOWN = 200


class RunRequest(BaseModel):
    """Which study to run, over all enrolled sites."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"study": "heart"}})
    study: str = Field(max_length=63)


class SpendOut(BaseModel):
    """What a site has spent for this study, out of what cap; per patient, decimal strings."""

    site: str
    round: int = Field(description="Of the outcome.")
    outcome: str = Field(examples=["accepted"])
    reason: str
    spent_epsilon: str | None = Field(examples=["1.25"])
    spent_delta: str | None = Field(examples=["1e-05"])
    cap_epsilon: str | None = Field(examples=["3.0"])


class MessageOut(BaseModel):
    """Something that happened."""

    at: dt.datetime
    level: str
    text: str


class RoundOut(BaseModel):
    """A recorded round; scores come from noisy statistics only."""

    round: int
    phase: str
    seconds: float
    scores: dict[str, Any]
    generator: str = Field(description="Digest of the generator after it.")
    recorded_at: dt.datetime


class RunOut(BaseModel):
    """A run and how far it is."""

    id: str = Field(examples=["run-3f2a9c01d4e5"])
    study: str
    study_digest: str
    sites: list[str]
    state: str = Field(examples=["running"])
    phase: str = Field(examples=["refine"])
    round: int
    rounds: int
    percent: float = Field(ge=0, le=100)
    eta_seconds: float | None
    attempt: int = Field(ge=1, description="How often it was queued: resumed, or taken up again by itself.")
    reason: str
    started_by: str
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


class RunDetail(RunOut):
    """A run with its spends, rounds and messages, and its release once it is completed."""

    spends: list[SpendOut]
    recorded_rounds: list[RoundOut] = Field(description="The newest 200, oldest first.")
    messages: list[MessageOut]
    release: str | None


@router.post(
    "", status_code=202, summary="Start a run", responses={**located(202), **responses(404, 409, 503)}
)
def create_run(
    wanted: RunRequest, key: Operator, store: StoreDep, request: Request, response: Response
) -> RunOut:
    """Queue a run and hand it to the federation; follow it at its `Location`. There is one run at a time."""
    run = runs.create_run(store, wanted.study, started_by=key.owner)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    return run_out(_start(store, request.app.state.starter, run.id))


@router.get("", summary="List runs", responses=responses())
def list_runs(
    _key: OperatorOrAuditor,
    store: StoreDep,
    limit: Limit = 50,
    cursor: Cursor = None,
    study: str | None = None,
) -> Page[RunOut]:
    """Runs, newest first."""
    found = runs.list_runs(store, limit=limit + 1, before=decode_cursor(cursor), study=study)
    return page_of(found, limit, place=lambda run: (run.created_at, run.id), show=run_out)


@router.get("/{run_id}", summary="Follow a run", responses=responses(404))
def get_run(run_id: str, _key: OperatorOrAuditor, store: StoreDep) -> RunDetail:
    """Phase, round, percent, time to go, each site's spend out of its cap, and what happened."""
    run, recorded = round_records.run_with_rounds(store, run_id, limit=ROUNDS_SHOWN)
    release = releases.release_of_run(store, run_id)
    return RunDetail(
        **run_out(run).model_dump(),
        spends=[spend_out(spend) for spend in run_spends(store, run_id)],
        recorded_rounds=[round_out(one) for one in recorded],
        messages=[message_out(one) for one in runs.run_messages(store, run_id)],
        release=None if release is None else release.digest,
    )


@router.post("/{run_id}/stop", status_code=202, summary="Stop a run", responses=responses(404, 409))
def stop_run(run_id: str, _key: Operator, store: StoreDep) -> RunOut:
    """Stop within seconds, the sites' work on the round in hand too; what is recorded stays and can be resumed."""
    return run_out(runs.request_stop(store, run_id))


@router.post("/{run_id}/resume", status_code=202, summary="Resume a run", responses=responses(404, 409, 503))
def resume_run(run_id: str, _key: Operator, store: StoreDep, request: Request) -> RunOut:
    """Go on after the last recorded round of a stopped or failed run."""
    runs.resume_run(store, run_id)
    return run_out(_start(store, request.app.state.starter, run_id))


def message_out(message: runs.RunMessage) -> MessageOut:
    """A message as the API shows it."""
    return MessageOut(at=message.at, level=message.level, text=message.text)


def round_out(recorded: round_records.RecordedRound) -> RoundOut:
    """A recorded round as the API shows it."""
    return RoundOut(
        round=recorded.round,
        phase=recorded.phase,
        seconds=recorded.seconds,
        scores=dict(recorded.scores),
        generator=recorded.arrays["generator"],
        recorded_at=recorded.recorded_at,
    )


def spend_out(spend: SiteSpend) -> SpendOut:
    """A spend as the API shows it."""
    return SpendOut(
        site=spend.site,
        round=spend.round,
        outcome=spend.outcome,
        reason=spend.reason,
        spent_epsilon=spend.spent_epsilon,
        spent_delta=spend.spent_delta,
        cap_epsilon=spend.cap_epsilon,
    )


def _start(store: Store, starter: RunStarter, run_id: str) -> runs.Run:
    try:
        starter.start(run_id)
    except StarterError as error:
        runs.finish_run(store, run_id, "failed", reason=f"could not be started: {error}")
        raise ProblemError(503, "unavailable", f"run {run_id} could not be started: {error}") from error
    return runs.get_run(store, run_id)


def run_out(run: runs.Run) -> RunOut:
    """A run as the API shows it."""
    return RunOut(
        id=run.id,
        study=run.study,
        study_digest=run.study_digest,
        sites=list(run.sites),
        state=run.state,
        phase=run.phase,
        round=run.round,
        rounds=run.rounds,
        percent=run.percent,
        eta_seconds=run.eta_seconds,
        attempt=run.attempt,
        reason=run.reason,
        started_by=run.started_by,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )
