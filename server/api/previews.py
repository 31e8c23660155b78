"""/v1/releases/{digest}/preview, /pictures: a few synthetic patients under conditions, or their pictures, at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.concurrency import run_in_threadpool

from server.api.auth import AnyRole, OperatorOrResearcher, StoreDep
from server.api.conditional import NOT_MODIFIED, VALIDATORS, body_answer, json_body
from server.api.problems import ProblemError, responses
from server.api.releases import Digest, visible_release
from server.cohorts import MAX_CONDITIONS, MAX_SEED
from server.keys import ApiKey
from server.previews import Preview, Previewer, PreviewUnavailableError
from server.store import Store

router = APIRouter(prefix="/v1/releases", tags=["releases"])
ERRORS = responses(404, 409, 503)
RETRY_SECONDS = "2"
T = TypeVar("T")
Where = Annotated[
    list[str] | None,
    Query(
        max_length=MAX_CONDITIONS,
        description="Conditions as text; all must hold.",
        examples=["age >= 60"],
    ),
]


class PreviewIn(BaseModel):
    """What you want to see."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"conditions": ["age >= 60 and sex == 'female'"], "columns": ["age"]}},
    )
    conditions: str | list[str | dict[str, Any]] = Field(
        default=[], max_length=4000, description="All must hold; as for a cohort."
    )
    columns: list[str] = Field(default=[], max_length=4096, description="Names; none: all.")
    seed: StrictInt = Field(default=0, ge=0, le=MAX_SEED, description="Another seed, other patients.")


class PreviewOut(BaseModel):
    """Twenty synthetic patients, and how the conditions meet the release."""

    synthetic: bool = True
    release: str
    columns: list[str] = Field(examples=[["age", "sex"]])
    rows: list[list[str | int | float | bool | None]] = Field(examples=[[[71, "female"]]])
    conditions: list[str | dict[str, Any]]
    share_of_release: float = Field(
        description="Probability of a patient of the release to satisfy the conditions."
    )
    share_is_exact: bool = Field(description="Computed; else estimated from a draw.")
    effective_components: float = Field(
        description="How many of the generator's shapes support such patients; a small number says that few do."
    )
    effective_sample_size: int = Field(
        description="Independent patients among those shown: all, because draws are never re-used."
    )


@router.get(
    "/{digest}/preview",
    summary="Preview a cohort",
    response_model=PreviewOut,
    responses={**NOT_MODIFIED, **ERRORS},
)
async def get_preview(
    request: Request,
    digest: Digest,
    key: OperatorOrResearcher,
    store: StoreDep,
    where: Where = None,
    column: Annotated[list[str] | None, Query(max_length=4096, description="Only these; none: all.")] = None,
    seed: Annotated[int, Query(ge=0, le=MAX_SEED)] = 0,
) -> Response:
    """Twenty synthetic patients under conditions; costs no privacy budget and no row of your quota."""
    shown = await _preview(
        request, store, key, digest, conditions=where or (), columns=column or (), seed=seed
    )
    return body_answer(request, *json_body(shown))


@router.post("/{digest}/preview", summary="Preview a cohort by an object", responses=ERRORS)
async def post_preview(
    request: Request, digest: Digest, wanted: PreviewIn, key: OperatorOrResearcher, store: StoreDep
) -> PreviewOut:
    """As by GET, with conditions of any form and length."""
    conditions = [wanted.conditions] if isinstance(wanted.conditions, str) else wanted.conditions
    return await _preview(
        request, store, key, digest, conditions=conditions, columns=wanted.columns, seed=wanted.seed
    )


PNG: dict[int | str, dict[str, Any]] = {
    **NOT_MODIFIED,
    200: {"description": "The sheet.", "content": {"image/png": {}}, "headers": VALIDATORS},
    **ERRORS,
}


@router.get("/{digest}/pictures", summary="Preview pictures", response_class=Response, responses=PNG)
async def get_pictures(
    request: Request,
    digest: Digest,
    key: AnyRole,
    store: StoreDep,
    where: Where = None,
    seed: Annotated[int, Query(ge=0, le=MAX_SEED)] = 0,
) -> Response:
    """Pictures of the first 24 synthetic patients under conditions, on one sheet; costs nothing.

    404 where the release has none. For pictures one by one, with their rows, ask for a cohort as `png` or `dicom`.
    """
    return await show_pictures(request, key, store, digest, where=where or (), seed=seed)


async def show_pictures(
    request: Request,
    key: ApiKey,
    store: Store,
    digest: str,
    *,
    where: Sequence[str] = (),
    seed: int = 0,
    is_patient: bool = False,
) -> Response:
    """A sheet of pictures.

    Args:
        is_patient: whether who asks waits as long as it takes the process that draws them to start.

    Raises:
        ProblemError: 503, with Retry-After.
    """
    previewer: Previewer = request.app.state.previewer

    def ask() -> Future[bytes]:
        release = visible_release(store, key, digest)
        return previewer.ask_pictures(store, release, conditions=where, seed=seed)

    sheet = await _in_time(previewer, ask, seconds=None if is_patient else previewer.seconds)
    return body_answer(request, sheet, hashlib.sha256(sheet).hexdigest(), "image/png")


async def _in_time(previewer: Previewer, ask: Callable[[], Future[T]], *, seconds: float | None) -> T:
    """What the process that draws previews gives, if it does so in time; None: it has its own limit.

    Raises:
        ProblemError: 503, with Retry-After.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(await run_in_threadpool(ask)), seconds)
    except TimeoutError as error:
        detail = f"no preview within {previewer.seconds:g} s: what draws them starts or is busy; ask again"
        raise ProblemError(503, "unavailable", detail, headers={"Retry-After": RETRY_SECONDS}) from error
    except PreviewUnavailableError as error:
        raise ProblemError(503, "unavailable", str(error), headers={"Retry-After": RETRY_SECONDS}) from error


async def _preview(
    request: Request,
    store: Store,
    key: ApiKey,
    digest: str,
    *,
    conditions: Sequence[str | Mapping[str, Any]],
    columns: Sequence[str],
    seed: int,
) -> PreviewOut:
    previewer: Previewer = request.app.state.previewer

    def ask() -> Future[Preview]:
        release = visible_release(store, key, digest)
        return previewer.ask(store, release, conditions=conditions, columns=columns, seed=seed)

    preview = await _in_time(previewer, ask, seconds=previewer.seconds)
    return PreviewOut(
        release=digest,
        columns=list(preview.columns),
        rows=[list(row) for row in preview.rows],
        conditions=[one if isinstance(one, str) else dict(one) for one in conditions],
        share_of_release=preview.share,
        share_is_exact=preview.share_is_exact,
        effective_components=preview.effective_components,
        effective_sample_size=preview.effective_sample_size(len(preview.rows)),
    )
