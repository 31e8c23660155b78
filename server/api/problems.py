"""Errors as problem+json (RFC 9457): the coordinator's own errors are translated here, once.

Every answer beyond 399 has `type`, `title`, `status` and `detail`; what is wrong with single fields is listed in
`errors`, each with `field` and `detail`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from models.study import StudyError
from privacy.merkle import LedgerVerificationError
from server.api.faults import read_faults
from server.errors import ConflictError, InvalidError, NotFoundError, QuotaExceededError
from server.store import StoredFileError

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger("fedtwin.api")


class Fault(BaseModel):
    """What is wrong with one field."""

    field: str = Field(examples=["num_patients"])
    detail: str = Field(examples=["num_patients is 0: it must be greater than or equal to 1"])


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(examples=["urn:fedtwin:problem:invalid"])
    title: str = Field(examples=["Invalid request"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["num_patients is 0: it must be greater than or equal to 1"])
    errors: list[Fault] = []


class ProblemError(Exception):
    """Ends a request with a problem.

    Args:
        status: HTTP status, 400 or more.
        kind: last part of the problem's type.
        detail: a sentence for the caller.
        errors: (field, detail) pairs.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.errors, self.headers = errors, headers


@dataclass(frozen=True, kw_only=True)
class ProblemKind:
    """A kind of problem, `urn:fedtwin:problem:NAME`, for the API's description."""

    status: int
    title: str
    advice: str


KINDS = {
    "bad-request": ProblemKind(
        status=400,
        title="The request cannot be read",
        advice="Look at its address and headers; it did not get as far as its fields.",
    ),
    "unauthenticated": ProblemKind(
        status=401,
        title="A key is needed",
        advice="Send `Authorization: Bearer ftw_...`. A key that expired or was revoked is told so; ask the operator.",
    ),
    "forbidden": ProblemKind(
        status=403,
        title="Not for this key",
        advice="Its role or its scopes do not reach here; `WWW-Authenticate` names a scope that is lacking.",
    ),
    "not-found": ProblemKind(
        status=404,
        title="Not found",
        advice="There is no such thing, or it is another researcher's, which is the same to you.",
    ),
    "method-not-allowed": ProblemKind(
        status=405, title="Method not allowed", advice="`Allow` names what this address takes."
    ),
    "conflict": ProblemKind(
        status=409,
        title="Not possible in the present state",
        advice="Look at how it stands now, and decide again.",
    ),
    "gone": ProblemKind(
        status=410,
        title="No longer there",
        advice="The cohort's files were removed. The same request with the same seed gives the same bytes.",
    ),
    "too-large": ProblemKind(
        status=413, title="Request too large", advice="A body has at most 1 MiB, a study 4 MiB."
    ),
    "unsupported-media-type": ProblemKind(
        status=415, title="Media type not supported", advice="Send what the operation takes, uncompressed."
    ),
    "range": ProblemKind(
        status=416,
        title="Range not satisfiable",
        advice="It begins behind the file's end; `Content-Range` says where that is.",
    ),
    "invalid": ProblemKind(
        status=422,
        title="Invalid request",
        advice="`errors` names each field with its value and its bound. Nothing was done.",
    ),
    "too-many": ProblemKind(
        status=429, title="Too many requests", advice="Wait as long as `Retry-After` says."
    ),
    "too-many-streams": ProblemKind(
        status=429, title="Too many streams", advice="Close one, or ask for the run itself from time to time."
    ),
    "quota": ProblemKind(
        status=429,
        title="Quota used up",
        advice="Ask for fewer rows, or again after `Retry-After`; the `RateLimit` headers say what is left.",
    ),
    "internal": ProblemKind(
        status=500,
        title="Internal error",
        advice="The coordinator made a mistake; its operator finds it in `logs/api.log`.",
    ),
    "damaged": ProblemKind(
        status=500,
        title="What is stored does not verify",
        advice="A file or the ledger was changed on disk; tell the operator. Nothing of it is served.",
    ),
    "unavailable": ProblemKind(
        status=503,
        title="Not available now",
        advice="A part of the coordinator starts, is busy or does not answer; ask again after `Retry-After`.",
    ),
}


def problem_response(error: ProblemError) -> JSONResponse:
    """The problem as a response."""
    known = KINDS.get(error.kind)
    title = HTTPStatus(error.status).phrase if known is None else known.title
    body = Problem(
        type=f"urn:fedtwin:problem:{error.kind}",
        title=title,
        status=error.status,
        detail=_printable(error.detail),
        errors=[Fault(field=_printable(name), detail=_printable(text)) for name, text in error.errors],
    )
    return JSONResponse(
        body.model_dump(), status_code=error.status, media_type=MEDIA_TYPE, headers=dict(error.headers or {})
    )


def located(status: int) -> dict[int | str, dict[str, Any]]:
    """Declares for OpenAPI that an answer says where the thing that was made is."""
    where = {
        "description": "Where to follow it.",
        "schema": {"type": "string", "format": "uri-reference"},
    }
    return {status: {"headers": {"Location": where}}}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declares errors for OpenAPI: those of every endpoint and these."""
    described = {
        400: "The request cannot be read.",
        401: "No key, or one that is not good.",
        403: "The key's role or its scopes do not reach here.",
        404: "There is no such thing, or it is somebody else's.",
        409: "It does not fit the present state.",
        410: "Its files were removed: it expired, or its owner deleted it.",
        413: "The request's body is too large.",
        415: "The request's media type is not supported.",
        416: "The range lies behind the file's end.",
        429: "Too many requests, wrong answers or rows; wait as Retry-After says.",
        422: "A field has a value that it cannot have; `errors` names each.",
        503: "A part of the coordinator does not answer.",
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": described[status], "content": content}
        for status in sorted({400, 401, 403, 413, 415, 422, 429, *statuses})
    }


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make every error of the app a problem.

    Args:
        routers: those that it includes.
    """

    @app.exception_handler(ProblemError)
    def _problem(_request: Request, error: ProblemError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(NotFoundError)
    def _not_found(_request: Request, error: NotFoundError) -> JSONResponse:
        return problem_response(ProblemError(404, "not-found", str(error)))

    @app.exception_handler(ConflictError)
    def _conflict(_request: Request, error: ConflictError) -> JSONResponse:
        return problem_response(ProblemError(409, "conflict", str(error)))

    @app.exception_handler(QuotaExceededError)
    def _quota(_request: Request, error: QuotaExceededError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after_seconds)}
        return problem_response(
            ProblemError(429, "quota", str(error), errors=[(error.field, str(error))], headers=headers)
        )

    @app.exception_handler(InvalidError)
    def _invalid(_request: Request, error: InvalidError) -> JSONResponse:
        return problem_response(ProblemError(422, "invalid", str(error), errors=[(error.field, str(error))]))

    @app.exception_handler(StudyError)
    def _study(_request: Request, error: StudyError) -> JSONResponse:
        faults = [line.strip().partition(": ") for line in str(error).splitlines()[1:]]
        listed = [(field, detail) for field, _, detail in faults if detail]
        return problem_response(
            ProblemError(422, "invalid", str(error), errors=listed or [("study", str(error))])
        )

    @app.exception_handler(RequestValidationError)
    def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes) and error.body:  # it was not looked into
            kind = request.headers.get("content-type", "of no type")
            detail = f"the body is {kind[:100]}; send application/json"
            return problem_response(ProblemError(415, "unsupported-media-type", detail))
        faults = read_faults(error.errors(), error.body)
        detail = "; ".join(text for _, text in faults[:5])
        return problem_response(ProblemError(422, "invalid", detail, errors=faults[:100]))

    @app.exception_handler(UnicodeEncodeError)
    def _unicode(_request: Request, _error: UnicodeEncodeError) -> JSONResponse:
        return problem_response(
            ProblemError(422, "invalid", "a text holds a lone surrogate, which is no character")
        )

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            return problem_response(_not_allowed(request, routers))
        kinds = {404: "not-found", 400: "bad-request", 413: "too-large"}
        kind = kinds.get(error.status_code, "http")
        detail = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
        return problem_response(ProblemError(error.status_code, kind, detail, headers=error.headers))

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeoutError)
    def _database(_request: Request, error: Exception) -> JSONResponse:
        log.error("the database does not answer: %s", error)
        detail = "the database is busy or does not answer; try again"
        return problem_response(ProblemError(503, "unavailable", detail, headers={"Retry-After": "5"}))

    @app.exception_handler(LedgerVerificationError)
    @app.exception_handler(StoredFileError)
    def _damaged(_request: Request, error: Exception) -> JSONResponse:
        log.error("what is stored does not verify: %s", error)
        return problem_response(ProblemError(500, "damaged", f"what is stored does not verify: {error}"))

    @app.exception_handler(Exception)
    def _unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return problem_response(
            ProblemError(
                500, "internal", "the coordinator made a mistake; its operator finds it in logs/api.log"
            )
        )


def _not_allowed(request: Request, routers: Sequence[APIRouter]) -> ProblemError:
    """What an address takes, from all routes that it has."""
    allowed: set[str] = set()
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.path_regex.match(request.url.path):
                allowed |= route.methods or set()
    names = ", ".join(sorted(allowed))
    detail = f"this address takes {names}, not {request.method[:20]}"
    return ProblemError(405, "method-not-allowed", detail, headers={"Allow": names})


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
