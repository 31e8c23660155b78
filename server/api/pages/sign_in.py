"""Sign in with an API key, and out."""

from __future__ import annotations

import hmac
import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from server.api.auth import StoreDep
from server.api.invitations import WrongAnswers
from server.api.pages.access import AnyRole, Form, Posted, SessionsDep, read_form, session_or_none
from server.api.pages.rendering import places_of, render
from server.api.pages.sessions import COOKIE, LIFETIME, VISIT_COOKIE, Sessions, is_visit
from server.keys import KeyRefusedError, check_key

router = APIRouter()


@router.get("/sign-in")
def ask(request: Request, sessions: SessionsDep, next: str = "/") -> Response:
    """The form to sign in; who is signed in goes on."""
    if session_or_none(request) is not None:
        return RedirectResponse(_inside(next), 303)
    return _form(request, sessions, target=_inside(next))


@router.post("/sign-in")
def sign_in(
    request: Request, store: StoreDep, sessions: SessionsDep, form: Annotated[Form, Depends(read_form)]
) -> Response:
    """Check a key and begin a session."""
    target = _inside(form.one("next"))
    visit = request.cookies.get(VISIT_COOKIE)
    expected = sessions.visit_token(visit) if visit is not None and is_visit(visit) else secrets.token_hex()
    if not hmac.compare_digest(form.one("form_token").encode(), expected.encode()):
        return _form(
            request, sessions, target=target, status=403, fault="The page was too old. Try once more."
        )
    address = request.client.host if request.client else "?"
    wrong: WrongAnswers = request.app.state.wrong_answers
    wrong.check(address)
    try:
        key = check_key(store, form.one("key"))
    except KeyRefusedError as error:
        wrong.count(address)
        text = str(error)
        return _form(request, sessions, target=target, status=401, fault=f"{text[0].upper()}{text[1:]}.")
    reached = places_of(key)
    answer = RedirectResponse(reached[0].path if target == "/" and reached else target, 303)
    set_session(answer, sessions.begin(key))
    answer.delete_cookie(VISIT_COOKIE, secure=True, httponly=True, samesite="strict")
    return answer


@router.post("/sign-out")
def sign_out(session: AnyRole, _form: Posted, sessions: SessionsDep) -> Response:
    """End the session."""
    sessions.end(session.token)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
    return answer


def _form(
    request: Request, sessions: Sessions, *, target: str, status: int = 200, fault: str = ""
) -> Response:
    visit = request.cookies.get(VISIT_COOKIE)
    if visit is None or not is_visit(visit):
        visit = secrets.token_urlsafe(16)
    context = {"form_token": sessions.visit_token(visit), "target": target, "fault": fault}
    answer = render(request, "sign_in.html", context, status=status)
    _set_cookie(answer, VISIT_COOKIE, visit, seconds=3600)
    return answer


def set_session(answer: Response, token: str) -> None:
    """Let the browser carry a session from now on."""
    _set_cookie(answer, COOKIE, token, seconds=int(LIFETIME.total_seconds()))


def _set_cookie(answer: Response, name: str, value: str, *, seconds: int) -> None:
    answer.set_cookie(name, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="strict")


def _inside(target: str) -> str:
    """A path of ours; anything that could lead elsewhere becomes the first page."""
    plain = target.startswith("/") and target[1:2] not in {"/", "\\"} and target.isprintable()
    return target if plain and "\\" not in target and target.isascii() else "/"
