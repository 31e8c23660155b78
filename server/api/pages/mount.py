"""Where the pages are: beside the API in one ASGI application, under headers that let a browser run nothing foreign."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders, State
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.pages import audit, catalogue, cohorts, errors, keys, reference, runs, sign_in, sites
from server.api.pages.sessions import Sessions

OF_API = ("/v1", "/openapi.json")
STATIC = Path(__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: a browser would then send forms with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def create_pages(state: State) -> FastAPI:
    """The pages' own application over the API's state (store, starter, facts, wrong answers, description)."""
    app = FastAPI(
        title="fedtwin pages", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state = state
    state.sessions = Sessions(state.store)
    errors.install(app)
    for feature in (sign_in, catalogue, cohorts, runs, sites, audit, keys, reference):
        app.include_router(feature.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


class PagesBesideApi:
    """Middleware of the API: what is not the API's goes to the pages.

    Args:
        app: the API.
        pages: the pages.
    """

    def __init__(self, app: ASGIApp, *, pages: ASGIApp) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _is_of_api(scope["path"]) or "\x00" in scope["path"]:
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # A page is one person's; a file of ours is asked for again by its ETag.
                kept = "no-cache" if scope["path"].startswith("/static/") else "no-store"
                headers.setdefault("Cache-Control", kept)
            await send(message)

        await self._pages({**scope, "app": self._pages}, receive, with_headers)


def _is_of_api(path: str) -> bool:
    return any(path == own or path.startswith(f"{own}/") for own in OF_API)
