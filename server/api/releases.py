"""/v1/releases: the catalogue; publish, withhold and withdraw."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.study import Study
from server import releases, studies
from server.api.auth import AnyRole, Operator, StoreDep
from server.api.conditional import NOT_MODIFIED
from server.api.kept_answers import kept_answer
from server.api.paging import Cursor, Limit, Page, decode_cursor, page_of
from server.api.problems import responses
from server.api.runs import SpendOut, spend_out
from server.cohorts import CohortRequest
from server.errors import NotFoundError
from server.exports.context import ExportContext
from server.exports.formats import FORMATS
from server.keys import ApiKey
from server.spends import run_spends
from server.store import Store
from server.tables import ReleaseState

router = APIRouter(prefix="/v1/releases", tags=["releases"])
Digest = Annotated[str, Path(description="`sha256:` and 64 hexadecimal digits.", max_length=71)]
# What a researcher may see: what is served, and what was and no longer is.
SEEN_BY_RESEARCHERS = ("published", "withdrawn")


class ColumnOut(BaseModel):
    """A column of the data dictionary."""

    name: str
    kind: str = Field(examples=["integer"])
    title: str
    description: str
    unit: str | None
    missing: bool = Field(description="Whether a value may be absent.")
    categories: list[str] | None
    minimum: float | int | str | None
    maximum: float | int | str | None
    levels: int = Field(description="How finely the model knows it.")


class ReleaseOut(BaseModel):
    """A release as the catalogue lists it."""

    digest: str
    state: str = Field(examples=["published"])
    study: str
    title: str
    modality: str
    sites: list[str]
    gate: str = Field(description="The tests that it passed before it was served.", examples=["none passed"])
    created_at: dt.datetime


class FormatOut(BaseModel):
    """A format that cohorts of the release can be had in, or the reason why not."""

    name: str = Field(examples=["fhir"])
    title: str = Field(examples=["FHIR R4 NDJSON"])
    missing: str | None = Field(description="Why it cannot be given; null where it can.")
    columns_left_out: dict[str, str] = Field(description="Columns that it cannot carry, and why.")


class ReleaseDetail(ReleaseOut):
    """A release with its data dictionary, its budgets and its limits."""

    description: str
    study_digest: str
    run: str
    round: int
    weights_digest: str
    budget: dict[str, float] = Field(
        description="The study's cap per patient of one site.", examples=[{"epsilon": 3.0, "delta": 1e-05}]
    )
    spends: list[SpendOut]
    columns: list[ColumnOut]
    label: str | None
    scores: dict[str, Any] = Field(description="From noisy statistics only.")
    formats: list[FormatOut]
    limits_of_use: list[str]
    reason: str
    ledger_index: int | None


class Reason(BaseModel):
    """Why; for people."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"reason": "a site asked for it"}}
    )
    reason: str = Field(default="", max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")


@router.get(
    "", summary="List releases", response_model=Page[ReleaseOut], responses={**NOT_MODIFIED, **responses()}
)
async def list_releases(
    request: Request,
    key: AnyRole,
    store: StoreDep,
    limit: Limit = 50,
    cursor: Cursor = None,
    q: Annotated[
        str | None, Query(max_length=200, description="Words that its study's texts or columns hold.")
    ] = None,
    study: Annotated[str | None, Query(max_length=128, description="Only this study's.")] = None,
    modality: Annotated[str | None, Query(max_length=40, examples=["table"])] = None,
    column: Annotated[
        str | None, Query(max_length=128, description="Only with a column of this name.")
    ] = None,
    state: ReleaseState | None = None,
) -> Response:
    """Releases, newest first. Researchers see what was published; operators and auditors see all."""

    def make() -> Page[ReleaseOut]:
        return _catalogue(
            store,
            is_researcher=key.role == "researcher",
            limit=limit,
            before=decode_cursor(cursor),
            wanted={"q": q, "name": study, "modality": modality, "column": column},
            state=state,
        )

    return await kept_answer(request, key, make)


def _catalogue(
    store: Store,
    *,
    is_researcher: bool,
    limit: int,
    before: tuple[dt.datetime, str] | None,
    wanted: Mapping[str, str | None],
    state: ReleaseState | None,
) -> Page[ReleaseOut]:
    seen = SEEN_BY_RESEARCHERS if is_researcher else None
    states = seen if state is None else tuple(one for one in (state,) if seen is None or one in seen)
    matching = None
    if any(one is not None for one in wanted.values()):
        matching = [kept.study.name for kept in studies.list_studies(store) if _matches(kept.study, **wanted)]
    found = releases.list_releases(store, limit=limit + 1, before=before, states=states, studies=matching)
    known = studies.get_studies(store, {one.study for one in found[:limit]})
    return page_of(
        found,
        limit,
        place=lambda one: (one.created_at, one.digest),
        show=lambda one: ReleaseOut(**_fields(one, known[one.study].study)),
    )


@router.get(
    "/{digest}",
    summary="Show a release",
    response_model=ReleaseDetail,
    responses={**NOT_MODIFIED, **responses(404)},
)
async def get_release(request: Request, digest: Digest, key: AnyRole, store: StoreDep) -> Response:
    """Data dictionary, budgets and limits of use of a release."""
    return await kept_answer(request, key, lambda: _detail(store, visible_release(store, key, digest)))


@router.post("/{digest}/publish", summary="Publish a release", responses=responses(404, 409))
def publish(digest: Digest, _key: Operator, store: StoreDep) -> ReleaseDetail:
    """Serve a release to researchers, with a ledger entry."""
    return _detail(store, releases.publish_release(store, digest))


@router.post("/{digest}/withhold", summary="Withhold a candidate", responses=responses(404, 409))
def withhold(digest: Digest, why: Reason, _key: Operator, store: StoreDep) -> ReleaseDetail:
    """Keep a candidate from being served, with a ledger entry; it can be published later."""
    return _detail(store, releases.withhold_release(store, digest, reason=why.reason))


@router.post("/{digest}/withdraw", summary="Withdraw a release", responses=responses(404, 409))
def withdraw(digest: Digest, why: Reason, _key: Operator, store: StoreDep) -> ReleaseDetail:
    """Stop serving a release for good, with a ledger entry."""
    return _detail(store, releases.withdraw_release(store, digest, reason=why.reason))


def _matches(
    study: Study, *, q: str | None, name: str | None, modality: str | None, column: str | None
) -> bool:
    """Whether a study is one that is looked for; of `q` every word must occur."""
    texts = [study.name, study.title, study.description]
    texts += [text for one in study.table.columns for text in (one.name, one.title, one.description)]
    held = " ".join(texts).casefold()
    return (
        (name is None or study.name == name)
        and (modality is None or study.modality == modality)
        and (column is None or column in study.table.names)
        and all(word in held for word in (q or "").casefold().split())
    )


def visible_release(store: Store, key: ApiKey, digest: str) -> releases.Release:
    """The release, if this key may know of it.

    Raises:
        NotFoundError: there is none, or none for a researcher.
    """
    release = releases.get_release(store, digest)
    if key.role == "researcher" and release.state not in SEEN_BY_RESEARCHERS:
        raise NotFoundError("release", digest)
    return release


def _fields(release: releases.Release, study: Study) -> dict[str, Any]:
    return {
        "digest": release.digest,
        "state": release.state,
        "study": release.study,
        "title": study.title or study.name,
        "modality": study.modality,
        "sites": list(release.sites),
        "gate": release.gate,
        "created_at": release.created_at,
    }


def _detail(store: Store, release: releases.Release) -> ReleaseDetail:
    study = studies.get_study(store, release.study).study
    return ReleaseDetail(
        **_fields(release, study),
        description=study.description,
        study_digest=release.study_digest,
        run=release.run,
        round=release.round,
        weights_digest=release.weights_digest,
        budget={"epsilon": study.privacy.epsilon, "delta": study.privacy.delta},
        spends=[spend_out(spend) for spend in run_spends(store, release.run)],
        columns=[_column(column) for column in study.table.columns],
        label=study.table.label,
        scores=dict(release.scores),
        formats=_formats(release, study),
        limits_of_use=list(releases.LIMITS_OF_USE),
        reason=release.reason,
        ledger_index=release.entry,
    )


def _formats(release: releases.Release, study: Study) -> list[FormatOut]:
    context = ExportContext.of(release, study, CohortRequest(release=release.digest, num_patients=1, seed=0))
    return [
        FormatOut(
            name=one.name,
            title=one.title,
            missing=(missing := one.missing(context)),
            columns_left_out={} if missing else dict(one.left_out(context)),
        )
        for one in FORMATS.values()
    ]


def _column(column: Any) -> ColumnOut:
    bounds = [getattr(column, name, None) for name in ("minimum", "maximum")]
    low, high = (bound.isoformat() if isinstance(bound, dt.date) else bound for bound in bounds)
    categories = getattr(column, "categories", None)
    return ColumnOut(
        name=column.name,
        kind=column.kind,
        title=column.title or column.name,
        description=column.description,
        unit=getattr(column, "unit", None) or None,
        missing=column.missing,
        categories=None if categories is None else list(categories),
        minimum=low,
        maximum=high,
        levels=column.cardinality,
    )
