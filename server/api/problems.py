"""Errors as problem+json (RFC 9457): the coordinator's own errors are translated here, once.

Every answer beyond 399 has `type`, `title`, `status` and `detail`; what is wrong with single fields is listed in
`errors`, each with `field` and `detail`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from models.study import StudyError
from privacy.merkle import LedgerVerificationError
from server.errors import ConflictError, InvalidError, NotFoundError, QuotaExceededError
from server.store import StoredFileError

MEDIA_TYPE = "application/problem+json"
MAX_SHOWN = 200

log = logging.getLogger("fedtwin.api")


class Fault(BaseModel):
    """What is wrong with one field."""

    field: str = Field(examples=["num_patients"])
    detail: str = Field(examples=["num_patients is 0: Input should be greater than or equal to 1"])


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(examples=["urn:fedtwin:problem:invalid"])
    title: str = Field(examples=["Invalid request"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["num_patients is 0: Input should be greater than or equal to 1"])
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


TITLES = {
    "invalid": "Invalid request",
    "unauthenticated": "A key is needed",
    "forbidden": "Not for this role",
    "not-found": "Not found",
    "conflict": "Not possible in the present state",
    "too-large": "Request too large",
    "unsupported-media-type": "Media type not supported",
    "too-many": "Too many requests",
    "quota": "Quota used up",
    "gone": "No longer there",
    "range": "Range not satisfiable",
    "unavailable": "Not available now",
    "internal": "Internal error",
}


def problem_response(error: ProblemError) -> JSONResponse:
    """The problem as a response."""
    title = TITLES.get(error.kind) or HTTPStatus(error.status).phrase
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


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declares errors for OpenAPI: those of every endpoint and these."""
    described = {
        400: "The request cannot be read.",
        401: "No key, or one that is not good.",
        403: "The key's role may not do this.",
        404: "There is no such thing, or it is somebody else's.",
        409: "It does not fit the present state.",
        410: "Its files were removed when it expired.",
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
        for status in sorted({400, 401, 403, 413, 422, 429, *statuses})
    }


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

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
    def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(fault) for fault in error.errors()]
        detail = "; ".join(text for _, text in faults[:5])
        return problem_response(ProblemError(422, "invalid", detail, errors=faults[:100]))

    @app.exception_handler(UnicodeEncodeError)
    def _unicode(_request: Request, _error: UnicodeEncodeError) -> JSONResponse:
        return problem_response(
            ProblemError(422, "invalid", "a text holds a lone surrogate, which is no character")
        )

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> JSONResponse:
        kinds = {404: "not-found", 405: "method-not-allowed", 400: "bad-request", 413: "too-large"}
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


def _fault(fault: Mapping[str, Any]) -> tuple[str, str]:
    """A pydantic error as (field, sentence): the field, the value, the bound."""
    place = [str(part) for part in fault["loc"] if part not in {"body", "query", "path", "header"}]
    name = ".".join(place) or "body"
    if fault["type"] in {"missing", "json_invalid"}:
        return name if fault["type"] == "missing" else "body", f"{name}: {fault['msg']}"
    shown = repr(fault.get("input"))
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    return name, f"{name} is {shown}: {fault['msg']}"


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
