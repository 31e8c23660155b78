"""What a request may be at most, decided before anything of it is parsed: a plain ASGI middleware."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.problems import ProblemError, problem_response

MEBIBYTE = 2**20
BODY_LIMIT = MEBIBYTE
STUDY_BODY_LIMIT = 4 * MEBIBYTE
# A line end at the end of a path would be overlooked by the pattern that finds its route.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED_NUL = re.compile(rb"%00")


class RequestLimits:
    """Refuses bodies beyond the limit, compressed bodies, and addresses that hold a control character.

    What `request.state.answer_headers` holds is added to the answer, whatever kind of answer it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = STUDY_BODY_LIMIT if scope["path"].rstrip("/") == "/v1/studies" else BODY_LIMIT
        refusal = _refuse_head(scope, limit)
        if refusal is not None:
            await problem_response(refusal)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise HTTPException(413, _too_large(limit).detail)
            return message

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                more: dict[str, str] = scope.get("state", {}).get("answer_headers", {})
                known = {name.lower() for name, _ in message.get("headers", ())}
                added = [(name.lower().encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [
                    *message.get("headers", ()),
                    *(one for one in added if one[0] not in known),
                ]
            await send(message)

        await self._app(scope, counted, told)


def _refuse_head(scope: Scope, limit: int) -> ProblemError | None:
    headers = dict(scope["headers"])
    if _CONTROL.search(scope["path"]) or _ENCODED_NUL.search(scope.get("query_string", b"")):
        return ProblemError(400, "bad-request", "the address holds a control character")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return ProblemError(415, "unsupported-media-type", "send the body uncompressed")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        return ProblemError(400, "bad-request", "Content-Length is not a number")
    return _too_large(limit) if len(length) > 12 or int(length) > limit else None


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        413, "too-large", f"the body is larger than {limit:,} bytes, the most that this address takes"
    )
