"""/v1/cohorts: ask for synthetic patients, watch, cancel, download, delete."""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from privacy.cohort_certificate import CERTIFICATE_FILE
from server import cohorts
from server.api.auth import OperatorOrResearcher, StoreDep
from server.api.conditional import NOT_MODIFIED, VALIDATORS, has_already, validators
from server.api.metering import tell_rows
from server.api.paging import Cursor, Limit, Page, decode_cursor, page_of
from server.api.problems import ProblemError, located, responses
from server.api.ranges import keep_range
from server.api.releases import visible_release
from server.cohorts import FORMATS, MADE_STATES, MAX_CONDITIONS, MAX_PATIENTS, MAX_SEED, Cohort, Format
from server.errors import NotFoundError
from server.keys import ApiKey
from server.provenance import certificate_bytes
from server.row_quotas import row_quota
from server.store import Store

router = APIRouter(prefix="/v1/cohorts", tags=["cohorts"])


class CohortIn(BaseModel):
    """What you want."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "release": "sha256:" + "4f" * 32,
                "num_patients": 5000,
                "conditions": ["age >= 60", "sex == 'female'"],
                "formats": ["csv", "parquet"],
                "seed": 7,
            }
        },
    )
    release: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="Digest of a published release.")
    num_patients: StrictInt = Field(ge=1, le=MAX_PATIENTS)
    seed: StrictInt | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="The same request with the same seed gives the same bytes.",
    )
    conditions: str | list[str | dict[str, Any]] = Field(
        default=[],
        max_length=4000,
        description="All must hold: texts such as `age >= 60 and sex == 'female'`, or objects such as "
        '`{"column": "age", "op": ">=", "value": 60}`.',
    )
    columns: list[str] = Field(
        default=[],
        max_length=4096,
        description="Names of the columns wanted; none: all. They change no draw.",
    )
    formats: list[Format] = Field(default=["csv", "parquet"], min_length=1, max_length=len(FORMATS))


class FileOut(BaseModel):
    """A file to download."""

    name: str = Field(examples=["cohort.csv"])
    num_bytes: int
    digest: str = Field(examples=["sha256:" + "4f" * 32])
    media_type: str
    url: str = Field(examples=["/v1/cohorts/cohort-3f2a9c01d4e5/files/cohort.csv"])


class CohortOut(BaseModel):
    """A cohort and how far it is."""

    id: str = Field(examples=["cohort-3f2a9c01d4e5"])
    owner: str
    state: str = Field(
        examples=["running"], description="queued, running, completed, failed, cancelled, expired or deleted."
    )
    release: str
    num_patients: int
    seed: int
    conditions: list[str | dict[str, Any]]
    columns: list[str] = Field(description="Those asked for; none: all.")
    formats: list[str]
    percent: float = Field(ge=0, le=100)
    patients_done: int
    eta_seconds: float | None
    reason: str
    files: list[FileOut] = Field(
        description="Those to download: all of a completed cohort, and the certificate of one whose files are gone."
    )
    ledger_index: int | None
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    expires_at: dt.datetime | None = Field(
        description="When the files are removed; the certificate and the ledger entry stay."
    )
    deleted_at: dt.datetime | None = Field(description="When its owner removed the files before that.")


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+$",
        description="Your own name for this request: sent again, it gives back the first cohort.",
    ),
]


@router.post(
    "", status_code=202, summary="Request a cohort", responses={**located(202), **responses(404, 409)}
)
def create_cohort(
    request: Request,
    wanted: CohortIn,
    key: OperatorOrResearcher,
    store: StoreDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> CohortOut:
    """Queue synthetic patients from a published release; follow the cohort at its `Location`.

    Sampling is post-processing: it costs no privacy budget. It costs rows of your quota for the day, which the
    `RateLimit` headers tell.
    """
    visible_release(store, key, wanted.release)
    conditions = [wanted.conditions] if isinstance(wanted.conditions, str) else wanted.conditions
    asked = cohorts.CohortRequest(
        release=wanted.release,
        num_patients=wanted.num_patients,
        seed=wanted.seed,
        conditions=tuple(conditions[: MAX_CONDITIONS + 1]),
        columns=tuple(wanted.columns),
        formats=tuple(wanted.formats),
    )
    try:
        cohort = cohorts.create_cohort(
            store, asked, owner=key.owner, idempotency_key=idempotency_key, rows_per_day=key.rows_per_day
        )
    finally:
        tell_rows(request, row_quota(store, key.owner, rows_per_day=key.rows_per_day))
    response.headers["Location"] = f"/v1/cohorts/{cohort.id}"
    return _out(store, cohort)


@router.get("", summary="List cohorts", responses=responses())
def list_cohorts(
    key: OperatorOrResearcher, store: StoreDep, limit: Limit = 50, cursor: Cursor = None
) -> Page[CohortOut]:
    """Your cohorts, newest first; an operator sees everybody's, without their files."""
    owner = None if key.role == "operator" else key.owner
    found = cohorts.list_cohorts(store, owner=owner, limit=limit + 1, before=decode_cursor(cursor))
    return page_of(
        found, limit, place=lambda one: (one.created_at, one.id), show=lambda one: _out(store, one)
    )


@router.get("/{cohort_id}", summary="Follow a cohort", responses=responses(404))
def get_cohort(cohort_id: str, key: OperatorOrResearcher, store: StoreDep) -> CohortOut:
    """State, progress, and the files once it is completed."""
    return _out(store, _visible(store, key, cohort_id))


@router.post("/{cohort_id}/cancel", summary="Cancel a cohort", responses=responses(404, 409))
def cancel_cohort(cohort_id: str, key: OperatorOrResearcher, store: StoreDep) -> CohortOut:
    """End a cohort that is queued or running; never touches the files of one that is completed. Again is harmless."""
    _visible(store, key, cohort_id)
    return _out(store, cohorts.cancel_cohort(store, cohort_id))


@router.delete("/{cohort_id}", summary="Delete a cohort", responses=responses(404, 409))
def delete_cohort(cohort_id: str, key: OperatorOrResearcher, store: StoreDep) -> CohortOut:
    """Give a cohort up: cancel it if it is not finished, remove its files now if it is. Again is harmless.

    The record stays, with its certificate and its ledger entry; the same seed gives the same bytes again. The rows
    stay counted for the day. An operator cancels another's cohort so, and does not delete another's files (409).
    """
    if _visible(store, key, cohort_id).owner != key.owner:
        return _out(store, cohorts.cancel_cohort(store, cohort_id))
    return _out(store, cohorts.delete_cohort(store, cohort_id))


_FILES: dict[str, Any] = {
    kind: {}
    for kind in (
        "text/csv",
        "text/html",
        "application/fhir+ndjson",
        "application/json",
        "application/jsonl",
        "application/vnd.apache.parquet",
        "application/zip",
    )
}
FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    **NOT_MODIFIED,
    200: {"description": "The file; ranges are served.", "content": _FILES, "headers": VALIDATORS},
    206: {
        "description": "The range.",
        "content": _FILES,
        "headers": {
            **VALIDATORS,
            "Content-Range": {"description": "Which bytes, of how many.", "schema": {"type": "string"}},
        },
    },
    **responses(404, 409, 410, 416),
}


@router.get(
    "/{cohort_id}/files/{name:path}",
    summary="Download a file",
    response_class=Response,
    responses=FILE_ANSWERS,
)
@router.head(
    "/{cohort_id}/files/{name:path}",
    summary="Ask about a file",
    response_class=Response,
    responses=FILE_ANSWERS,
)
def get_file(
    cohort_id: str, name: str, key: OperatorOrResearcher, store: StoreDep, request: Request
) -> Response:
    """A file of a completed cohort; `ETag` and `Repr-Digest` carry its SHA-256.

    A cohort's certificate stays when its files have expired or were deleted.
    """
    cohort = _visible(store, key, cohort_id)
    if key.owner != cohort.owner:
        raise ProblemError(403, "forbidden", "a cohort's files are for the one who asked for it")
    if cohort.state not in MADE_STATES:
        raise ProblemError(409, "conflict", f"cohort {cohort.id} is {cohort.state}; it has no files")
    file = next((one for one in cohort.files if one.name == name), None)
    if file is None:
        raise NotFoundError("file", name, [one.name for one in cohort.files])
    headers = {**validators(file.sha256), "X-Content-Type-Options": "nosniff"}
    if has_already(request, headers):
        return Response(status_code=304, headers=headers)
    if name == CERTIFICATE_FILE and cohort.certificate is not None:
        return Response(certificate_bytes(cohort.certificate), media_type=file.media_type, headers=headers)
    if cohort.state != "completed":
        ended = cohort.deleted_at if cohort.state == "deleted" else cohort.expires_at
        how = "were deleted" if cohort.state == "deleted" else "expired"
        raise ProblemError(
            410,
            "gone",
            f"the files of cohort {cohort.id} {how} on {ended:%Y-%m-%d}; its certificate.json is still here, and the "
            f"same request with seed {cohort.request.seed} gives the same bytes again",
        )
    path = store.cohorts.joinpath(cohort.id, *file.name.split("/"))
    if not path.is_file():
        raise NotFoundError("file", name, [])
    keep_range(request, size=file.num_bytes, etag=headers["ETag"])
    return FileResponse(
        path,
        media_type=file.media_type,
        filename=f"{cohort.id}-{file.name.replace('/', '-')}",
        headers=headers,
    )


def _visible(store: Store, key: ApiKey, cohort_id: str) -> Cohort:
    """The cohort, if this key may know of it: another researcher's does not exist for it."""
    cohort = cohorts.get_cohort(store, cohort_id)
    if key.role != "operator" and cohort.owner != key.owner:
        raise NotFoundError("cohort", cohort_id)
    return cohort


def _out(store: Store, cohort: Cohort) -> CohortOut:
    return CohortOut(
        id=cohort.id,
        owner=cohort.owner,
        state=cohort.state,
        release=cohort.request.release,
        num_patients=cohort.request.num_patients,
        seed=cohort.request.seed or 0,
        conditions=json.loads(json.dumps(list(cohort.request.conditions))),
        columns=list(cohort.request.columns),
        formats=list(cohort.request.formats),
        percent=round(cohort.percent, 1),
        patients_done=cohort.patients_done,
        eta_seconds=cohort.eta_seconds(store.clock()),
        reason=cohort.reason,
        files=[
            FileOut(
                name=one.name,
                num_bytes=one.num_bytes,
                digest=f"sha256:{one.sha256}",
                media_type=one.media_type,
                url=f"/v1/cohorts/{cohort.id}/files/{one.name}",
            )
            for one in cohort.files
            if cohort.state == "completed" or (cohort.state in MADE_STATES and one.name == CERTIFICATE_FILE)
        ],
        ledger_index=cohort.entry,
        created_at=cohort.created_at,
        started_at=cohort.started_at,
        ended_at=cohort.ended_at,
        expires_at=cohort.expires_at,
        deleted_at=cohort.deleted_at,
    )
