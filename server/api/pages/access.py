"""Who may see a page, and whose form is taken: annotated parameters, as `server.api.auth` has them for the API.

A page's tags are the areas that it shows or changes: a key that is narrowed to scopes reaches no further here than
there.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request

from server.api.auth import scope_of
from server.api.metering import meter_request
from server.api.pages.sessions import COOKIE, Session, Sessions, SignInNeededError
from server.api.problems import ProblemError
from server.tables import Role

FORM_BYTES = 256 * 1024
FORM_FIELDS = 10_000


def get_sessions(request: Request) -> Sessions:
    """The coordinator's sessions."""
    sessions: Sessions = request.app.state.sessions
    return sessions


SessionsDep = Annotated[Sessions, Depends(get_sessions)]


def signed_in(request: Request, sessions: SessionsDep) -> Session:
    """The session of the request, which counts like any other request of its key.

    Raises:
        SignInNeededError: there is none.
        ProblemError: 403 where the key's scopes do not reach, 429 too many.
    """
    session = sessions.read(request.cookies.get(COOKIE))
    request.state.session = session
    meter_request(request, session.key)
    route = request.scope["route"]
    for area in route.tags:
        scope = scope_of(area, request.method, route.name)
        if not session.key.allows(scope):
            has = ", ".join(session.key.scopes or ())
            raise ProblemError(403, "forbidden", f"This needs the scope {scope}; your key has {has}.")
    return session


AnyRole = Annotated[Session, Depends(signed_in)]


def session_or_none(request: Request) -> Session | None:
    """The session of the request, if there is one: for pages that anybody sees."""
    if not hasattr(request.state, "session"):
        try:
            request.state.session = get_sessions(request).read(request.cookies.get(COOKIE))
        except SignInNeededError:
            request.state.session = None
    session: Session | None = request.state.session
    return session


def _needs(*roles: Role) -> Callable[[Session], Session]:
    def check(session: AnyRole) -> Session:
        if session.key.role not in roles:
            raise ProblemError(
                403,
                "forbidden",
                f"This is for the role {' or '.join(roles)}; you are signed in with the role {session.key.role}.",
            )
        return session

    return check


Operator = Annotated[Session, Depends(_needs("operator"))]
OperatorOrAuditor = Annotated[Session, Depends(_needs("operator", "auditor"))]
OperatorOrResearcher = Annotated[Session, Depends(_needs("operator", "researcher"))]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form's fields as they came; a field may come several times."""

    fields: Mapping[str, tuple[str, ...]]

    def one(self, name: str) -> str:
        """The field's value without surrounding space; empty where it is absent."""
        return next(iter(self.fields.get(name, ())), "").strip()

    def many(self, name: str) -> tuple[str, ...]:
        """All values of the field."""
        return self.fields.get(name, ())


async def read_form(request: Request) -> Form:
    """The form that a request carries, once it is seen to come from one of our own pages.

    Raises:
        ProblemError: 403 from elsewhere, 413 too large, 415 or 422 no form.
    """
    check_origin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ProblemError(415, "unsupported-media-type", "Send the form from its page.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > FORM_BYTES:
            raise ProblemError(413, "too-large", f"The form holds more than {FORM_BYTES // 1024} kB.")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=FORM_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise ProblemError(422, "invalid", "The form cannot be read. Send it from its page.") from error
    fields: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        fields[name] = (*fields.get(name, ()), value)
    if any("\x00" in value for values in fields.values() for value in values):
        raise ProblemError(422, "invalid", "The form holds a NUL character.")
    return Form(fields=fields)


def check_origin(request: Request) -> None:
    """See that the browser sent the request from one of our own pages.

    Our name is what the browser asked for, which the gateway passes on, or the coordinator's public address.

    Raises:
        ProblemError: 403.
    """
    origin = request.headers.get("origin", "")
    host = request.headers.get("x-forwarded-host", request.headers.get("host", ""))
    facts = request.app.state.facts
    ours = {host.lower(), "" if facts is None else urlsplit(facts.api_url).netloc.lower()}
    try:
        theirs = urlsplit(origin).netloc.lower()
    except ValueError:
        theirs = ""
    known = ours | {one.removesuffix(":443") for one in ours}  # a browser leaves the usual port out
    same = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if not theirs or theirs not in known or not same:
        raise ProblemError(
            403,
            "forbidden",
            "This form was sent from another site. Nothing was done: send it from its own page.",
        )


async def posted(session: AnyRole, form: Annotated[Form, Depends(read_form)]) -> Form:
    """A form of this session.

    Raises:
        ProblemError: 403, it carries another session's token or none.
    """
    if not hmac.compare_digest(form.one("form_token").encode(), session.form_token.encode()):
        raise ProblemError(
            403,
            "forbidden",
            "This form was made before you signed in, or for somebody else. Nothing was done: open its page again.",
        )
    return form


Posted = Annotated[Form, Depends(posted)]
