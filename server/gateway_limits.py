"""What one client of the public port may ask for: how often, how much, and how slowly.

References:
    RFC 6585 section 4 (429 and Retry-After). The token bucket is that of RFC 2697 with one rate.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0
SEND_SECONDS = 60.0
MINIMUM_BYTES_PER_SECOND = 1024
BURST_SECONDS = 4.0
MAX_ADDRESSES = 10_000


class BodyTooLargeError(Exception):
    """The client sends more than the limit."""


class ClientTooSlowError(Exception):
    """The client sends, or takes, less than the least rate."""


class ClientGoneError(Exception):
    """The client hung up."""


class RateLimit:
    """A token bucket per client: an IPv4 address, or an IPv6 network of 64 bits, which one client has to itself.

    Args:
        per_second: requests a second that may go on for ever.
        burst_seconds: so many seconds' worth may come at once.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        per_second: float,
        *,
        burst_seconds: float = BURST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * burst_seconds)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """Zero if one more request may be served now, and it is counted; else how long to wait for that."""
        client, now = _client(address), self._clock()
        left, then = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._per_second)
        admitted = left >= 1.0
        self._left[client] = (left - 1.0 if admitted else left, now)
        if len(self._left) > MAX_ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if admitted else (1.0 - left) / self._per_second


class RequestBody:
    """A request's body as it comes, counted and timed; nothing of it is kept.

    Args:
        receive: ASGI's.
        limit: bytes.
    """

    def __init__(self, receive: Receive, *, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0
        self._waited = 0.0  # for the client only: what the other side takes to read is not its fault
        self.ended = asyncio.Event()

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes.

        Raises:
            BodyTooLargeError: that is more than the limit.
            ClientTooSlowError: they come below the least rate.
            ClientGoneError: they will not come.
        """
        if self.ended.is_set():
            raise StopAsyncIteration
        behind = self._waited - self._seen / MINIMUM_BYTES_PER_SECOND
        begun = time.monotonic()
        try:
            async with asyncio.timeout(BODY_SECONDS - max(0.0, behind)):
                message: Message = await self._receive()
        except TimeoutError:
            raise ClientTooSlowError from None
        self._waited += time.monotonic() - begun
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        data: bytes = message.get("body", b"")
        self._seen += len(data)
        if self._seen > self._limit:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            self.ended.set()
        return data

    async def hung_up(self) -> None:
        """Return once the client has gone; never before it has sent its body."""
        await self.ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def timed(send: Send) -> Send:
    """ASGI's `send`, which raises `ClientTooSlowError` when the client does not take what it asked for."""

    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        except TimeoutError:
            raise ClientTooSlowError from None

    return send_in_time


def client_address(scope: Scope) -> str:
    """Whom a request is counted for; uvicorn has put in what a trusted proxy says."""
    client = scope.get("client")
    return str(client[0]) if client else ""


class TimedHeadProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which drops a connection whose request line and headers do not come in time."""

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Wait on for a head that is not whole; the pause between two requests is uvicorn's keep-alive."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _client(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
