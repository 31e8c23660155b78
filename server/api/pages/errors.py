"""Every error as a page that says what happened and what to do; a program that wants no HTML gets problem+json."""

from __future__ import annotations

import logging
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from jinja2 import TemplateError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from models.study import StudyError
from privacy.merkle import LedgerVerificationError
from server.api.pages.rendering import render
from server.api.pages.sessions import SignInNeededError
from server.api.problems import KINDS, ProblemError, problem_response
from server.errors import ConflictError, InvalidError, NotFoundError
from server.store import StoredFileError

log = logging.getLogger("fedtwin.api")

ADVICE = {
    401: "Sign in with your API key; the operator makes keys.",
    403: "If you need this, ask the operator of the coordinator for a key that may do it.",
    404: "It may be somebody else's, or the address may be cut off. Start from the places above.",
    405: "Open the page again and use its buttons.",
    409: "Look at how it stands now, and decide again.",
    413: "Make it smaller: shorten long lists of conditions.",
    422: "Go back, change that field, and send it again.",
    429: "Wait as long as it says; then try again.",
    500: "Try again. If it stays, tell the operator, who finds the reason in logs/api.log.",
    503: "Wait a few seconds and try again. If it stays, tell the operator.",
}


def install(app: FastAPI) -> None:
    """Make every error of the pages a page."""

    @app.exception_handler(SignInNeededError)
    def _sign_in(request: Request, error: SignInNeededError) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("hx-request") == "true":
            return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
        if request.method not in {"GET", "HEAD"} or not wants_html(request):
            return _answer(
                request, 401, "unauthenticated", str(error) or "Nobody is signed in here. Nothing was done."
            )
        return RedirectResponse(f"/sign-in?next={quote(target, safe='/')}", 303)

    @app.exception_handler(ProblemError)
    def _problem(request: Request, error: ProblemError) -> Response:
        return _answer(request, error.status, error.kind, error.detail, dict(error.headers or {}))

    @app.exception_handler(NotFoundError)
    def _not_found(request: Request, error: NotFoundError) -> Response:
        return _answer(request, 404, "not-found", str(error))

    @app.exception_handler(ConflictError)
    def _conflict(request: Request, error: ConflictError) -> Response:
        return _answer(request, 409, "conflict", str(error))

    @app.exception_handler(InvalidError)
    @app.exception_handler(StudyError)
    def _invalid(request: Request, error: Exception) -> Response:
        return _answer(request, 422, "invalid", str(error))

    @app.exception_handler(RequestValidationError)
    def _validation(request: Request, error: RequestValidationError) -> Response:
        names = ", ".join(sorted({str(fault["loc"][-1]) for fault in error.errors()}))
        return _answer(request, 422, "invalid", f"The address has no good value for: {names}.")

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        kinds = {404: "not-found", 405: "method-not-allowed"}
        detail = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
        headers = dict(error.headers or {})
        return _answer(request, error.status_code, kinds.get(error.status_code, "http"), detail, headers)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeoutError)
    def _database(request: Request, error: Exception) -> Response:
        log.error("the database does not answer: %s", error)
        detail = "The database is busy or does not answer."
        return _answer(request, 503, "unavailable", detail, {"Retry-After": "5"})

    @app.exception_handler(LedgerVerificationError)
    @app.exception_handler(StoredFileError)
    def _damaged(request: Request, error: Exception) -> Response:
        log.error("what is stored does not verify: %s", error)
        return _answer(request, 500, "damaged", f"What is stored does not verify: {error}.")

    @app.exception_handler(Exception)
    def _unexpected(request: Request, _error: Exception) -> Response:
        return _answer(request, 500, "internal", "The coordinator made a mistake.")


def wants_html(request: Request) -> bool:
    """Whether a person's browser is asking, and not a program."""
    return "text/html" in request.headers.get("accept", "")


def _answer(
    request: Request, status: int, kind: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    if not wants_html(request):
        return problem_response(ProblemError(status, kind, detail, headers=headers))
    text = detail[:1].upper() + detail[1:]
    context = {
        "status": status,
        "title": KINDS[kind].title if kind in KINDS else "This did not work",
        "detail": text if text.endswith((".", "!", "?")) else f"{text}.",
        "advice": ADVICE.get(status, ADVICE[500] if status >= 500 else ADVICE[422]),
    }
    try:
        return render(request, "error.html", context, status=status, headers=headers)
    except (
        TemplateError,
        OperationalError,
        InterfaceError,
        PoolTimeoutError,
    ):  # the nav asks who is signed in
        return Response(f"{context['title']}\n\n{context['detail']}\n{context['advice']}\n", status, headers)
