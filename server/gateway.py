"""The coordinator's one public port: HTTPS, the API, and of the SuperLink nothing but the fleet's calls.

Flower's SuperLink knows no users: whoever reaches its port can start runs. So it listens on loopback, and this
process forwards `POST /v1/fleet/NAME` to it, and everything else to the API. A path is compared as it came, before
anything decodes or shortens it, so that `/v1/fleet/../control/...` is no way around.

A SuperNode tries again on 502, 503 and 504 and gives up on others: an outage is therefore never a 500 here, and a
client that asks too often is told 503 on the fleet's path and 429 elsewhere.

`python -m server.gateway` with FEDTWIN_HOME set. Bodies pass through in pieces, both ways.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from server.gateway_limits import (
    BodyTooLargeError,
    ClientGoneError,
    ClientTooSlowError,
    RateLimit,
    RequestBody,
    TimedHeadProtocol,
    client_address,
    timed,
)
from server.home import CoordinatorHome

FLEET = b"/v1/fleet"
FLEET_CALL = re.compile(rb"/v1/fleet/[a-z]+(-[a-z]+)*")
KEEP_ALIVE_SECONDS = 15
MAX_CONNECTIONS = 512
MAX_HEAD_BYTES = 32 * 1024
STOP_SECONDS = 3
FLEET_TIMEOUT = httpx.Timeout(120, connect=5, pool=10)
API_TIMEOUT = httpx.Timeout(300, connect=5, pool=10)
EVENT_IDLE_SECONDS = 60
# RFC 9110 section 7.6.1: they speak of one connection, not of the message.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade".split()
)
# Ours to say: who the client is, and how much comes.
REPLACED = frozenset(
    b"host content-length expect forwarded x-forwarded-for x-forwarded-proto x-forwarded-host "
    b"x-forwarded-port x-real-ip".split()
)

# What the public port says of itself.
SAID_HERE = frozenset({b"date", b"server"})

Headers = Iterable[tuple[bytes, bytes]]
_log = logging.getLogger("fedtwin.gateway")


class Gateway:
    """The ASGI application.

    Args:
        fleet: a client whose base is the SuperLink.
        api: a client whose base is the API.
        body_bytes: the most that one request may carry.
        requests_per_second: of one client address, for long; four seconds' worth may come at once.
    """

    def __init__(
        self,
        *,
        fleet: httpx.AsyncClient,
        api: httpx.AsyncClient,
        body_bytes: int,
        requests_per_second: float,
    ) -> None:
        self._fleet = fleet
        self._api = api
        self._body_bytes = body_bytes
        self._rates = RateLimit(requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, timed(send))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._fleet.aclose()
        await self._api.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path: bytes = scope["raw_path"]
        of_fleet = raw_path == FLEET or raw_path.startswith(FLEET + b"/")
        body = RequestBody(receive, limit=self._body_bytes)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def refuse(status: int, detail: str, **headers: str) -> None:
            if started:  # the answer is cut off, and uvicorn closes the connection: the client notices
                return
            if not body.ended.is_set():
                headers["connection"] = "close"  # what is left of the body is not waited for
            content = {"type": "about:blank", "status": status, "detail": detail}
            response = JSONResponse(content, status, headers, media_type="application/problem+json")
            with suppress(ClientTooSlowError):
                await response(scope, receive, sending)

        wait_seconds = self._rates.wait_seconds(client_address(scope))
        if wait_seconds:
            retry_after = str(math.ceil(wait_seconds))
            await refuse(503 if of_fleet else 429, "too many requests", **{"retry-after": retry_after})
            return
        if not raw_path.startswith(b"/"):
            await refuse(400, "the address must be a path")
            return
        if of_fleet and (scope["method"] != "POST" or scope["query_string"] or not _is_call(raw_path)):
            await refuse(404, "there is nothing here")
            return
        if _length(scope["headers"]) > self._body_bytes:
            await refuse(413, f"the body is larger than {self._body_bytes:,} bytes")
            return
        try:
            await _while_there(body, self._forward(scope, body, sending, of_fleet=of_fleet))
        except ClientGoneError:
            return
        except BodyTooLargeError:
            await refuse(413, f"the body is larger than {self._body_bytes:,} bytes")
        except ClientTooSlowError:
            await refuse(408, "the request came too slowly")
        except httpx.InvalidURL:
            await refuse(400, "the address cannot be read")
        except httpx.TimeoutException as error:
            _log.warning("no answer in time from %s", self._name(of_fleet))
            status = 502 if isinstance(error, httpx.ConnectTimeout) else 504
            await refuse(status, f"{self._name(of_fleet)} does not answer in time")
        except httpx.TransportError as error:
            _log.warning("no answer from %s (%s)", self._name(of_fleet), type(error).__name__)
            await refuse(502, f"{self._name(of_fleet)} does not answer")
        except Exception:
            _log.exception("a request could not be forwarded")
            await refuse(502, "the request could not be forwarded")

    async def _forward(self, scope: Scope, body: RequestBody, send: Send, *, of_fleet: bool) -> None:
        client = self._fleet if of_fleet else self._api
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = _kept(scope["headers"])
        headers += [(b"x-forwarded-for", client_address(scope).encode()), (b"x-forwarded-proto", b"https")]
        # What the browser calls us: the pages hold a form's Origin against it.
        headers += [(b"x-forwarded-host", value) for name, value in scope["headers"] if name == b"host"]
        names = {name for name, _ in scope["headers"]}
        if b"content-length" in names and b"transfer-encoding" not in names:
            headers.append((b"content-length", str(_length(scope["headers"])).encode()))
        carries = bool(names & {b"content-length", b"transfer-encoding"})
        if not carries:
            async for _ in body:  # learn that there is none, so that a hang-up is noticed
                pass
        request = client.build_request(
            scope["method"],
            client.base_url.copy_with(raw_path=target),
            headers=headers,
            content=body if carries else None,
        )
        response = await client.send(request, stream=True)
        try:
            status = response.status_code
            if of_fleet and status == 500:
                _log.warning("the SuperLink failed on %s", scope["path"])
                status = 502
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [
                        one
                        for one in _kept(response.headers.raw, but=frozenset({b"content-length"}))
                        if one[0] not in SAID_HERE
                    ],
                }
            )
            async for piece in _pieces(response):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    def _name(self, of_fleet: bool) -> str:
        return "the SuperLink" if of_fleet else "the API"


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, nothing held back; an event stream says something four times within its limit.

    Raises:
        httpx.TimeoutException: nothing came in time.
    """
    kind = response.headers.get("content-type", "")
    limit = EVENT_IDLE_SECONDS if kind.startswith("text/event-stream") else None
    pieces = response.aiter_raw()
    while True:
        try:
            # Not wait_for, which before Python 3.12 may swallow the cancellation that lets a client go.
            async with asyncio.timeout(limit):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise httpx.ReadTimeout("the event stream fell silent") from None
        yield piece


async def _while_there(body: RequestBody, forwarding: Coroutine[Any, Any, None]) -> None:
    """Forward for as long as the client is there: a long poll that nobody waits for is given up."""
    work = asyncio.create_task(forwarding)
    watch = asyncio.create_task(body.hung_up())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        await work
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


def _is_call(raw_path: bytes) -> bool:
    return FLEET_CALL.fullmatch(raw_path) is not None


def _kept(headers: Headers, *, but: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    """The headers that go on to the other side; `but` names some of ours that do too."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")
    }
    dropped = HOP_BY_HOP | named | (REPLACED - but)
    return [(name, value) for name, value in pairs if name not in dropped]


def _length(headers: Headers) -> int:
    """The announced length; h11 has refused what is no number."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def make_gateway(home: CoordinatorHome) -> Gateway:
    """The gateway of a coordinator; it trusts the coordinator's own authority and uses no proxy."""
    trust = ssl.create_default_context(cafile=str(home.ca_certificate))
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64, keepalive_expiry=3)
    return Gateway(
        fleet=httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{home.superlink_port}",
            verify=trust,
            timeout=FLEET_TIMEOUT,
            limits=limits,
            trust_env=False,
        ),
        api=httpx.AsyncClient(
            base_url=home.api_url, verify=trust, timeout=API_TIMEOUT, limits=limits, trust_env=False
        ),
        body_bytes=home.gateway.body_bytes,
        requests_per_second=home.gateway.requests_per_second,
    )


def server_config(app: Gateway, home: CoordinatorHome) -> uvicorn.Config:
    """How uvicorn serves it: TLS, HTTP/1.1, bounded heads, and no header that names the software."""
    return uvicorn.Config(
        app,
        host=home.gateway.host,
        port=home.gateway.port,
        ssl_certfile=home.server_certificate,
        ssl_keyfile=home.server_key,
        http=TimedHeadProtocol,
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        proxy_headers=bool(home.gateway.trusted_proxies),
        forwarded_allow_ips=list(home.gateway.trusted_proxies),
        server_header=False,
        access_log=False,
    )


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    home = CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))
    uvicorn.Server(server_config(make_gateway(home), home)).run()


if __name__ == "__main__":
    main()
