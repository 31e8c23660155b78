"""Who may see the page: who came with the token, under this machine's own name; forms from the page itself only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/page.css", "/icon.svg"})  # nothing of the site is in them
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: a browser would then send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ASK_FOR_THE_ADDRESS = (
    "This page opens with the address that `fedtwin site page` printed, token included. "
    "It changes each time the command is started."
)


class Door:
    """ASGI middleware in front of everything.

    Guarantees:
        Nothing of the site is answered without the cookie that the token was exchanged for. A request under another
        host name is refused, so that no website can reach the page by pointing its own name here. A POST
        counts only with the page's own origin; handlers check the form's `csrf` as well.

    Args:
        app: what is behind the door.
        port: where the page is, on the loopback interface.
        token: the secret in the address.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"{host}:{port}" for host in ("127.0.0.1", "localhost")}
        self._token = token
        self._session = secrets.token_urlsafe(32)
        # Cookies know no ports: pages of two sites on one machine must not take each other's.
        self._cookie = f"fedtwin-site-{port}"
        self.csrf = hmac.new(self._session.encode(), b"form", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets here: uvicorn closes what is not accepted

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._look(scope)
        await (refusal or self._app)(scope, receive, with_headers)

    def _look(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts or len(headers.getlist("host")) != 1:
            return PlainTextResponse(
                f"This page answers under {' and '.join(sorted(self._hosts))} only.", status_code=421
            )
        if scope["path"] in OPEN_PATHS:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if scope["method"] == "GET" and scope["path"] == "/" and given is not None:
            if not _same(given[0], self._token):
                return PlainTextResponse(f"The token is wrong. {_ASK_FOR_THE_ADDRESS}", status_code=403)
            welcome = RedirectResponse("/", status_code=303)
            welcome.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
            return welcome
        if not _same(_cookie(headers, self._cookie), self._session):
            return PlainTextResponse(_ASK_FOR_THE_ADDRESS, status_code=403)
        if scope["method"] not in {"GET", "HEAD"} and headers.get("origin") != f"http://{host}":
            return PlainTextResponse("This form was not sent from the page itself.", status_code=403)
        return None


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())
