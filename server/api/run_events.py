"""/v1/runs/{id}/events: a run as it happens, as server-sent events.

References:
    WHATWG HTML, section 9.2, Server-sent events: `id`, `event`, `data`, `retry`, comments, `Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server import releases
from server.api.auth import OperatorOrAuditor, StoreDep
from server.api.problems import ProblemError, responses
from server.api.runs import message_out, round_out, run_out, spend_out
from server.run_news import News, Seen, look
from server.runs import get_run
from server.store import Store

router = APIRouter(prefix="/v1/runs", tags=["runs"])
MEDIA_TYPE = "text/event-stream"
LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
# Then the stream ends and the client comes again, with a key that must still be good.
MAX_STREAM_SECONDS = 900.0
RETRY_MILLISECONDS = 2000
MAX_STREAMS_PER_KEY = 4
MAX_STREAMS = 64


class StreamSlots:
    """Counts open streams: so many of one key, and so many in all."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, key: str) -> None:
        """Open one more.

        Raises:
            ProblemError: 429, as many are open as may be.
        """
        with self._lock:
            if self._open[key] >= MAX_STREAMS_PER_KEY:
                raise _too_many(f"{MAX_STREAMS_PER_KEY} streams of this key are open, the most there may be")
            if self._open.total() >= MAX_STREAMS:
                raise _too_many(f"{MAX_STREAMS} streams are open, the most there may be")
            self._open[key] += 1

    def give_back(self, key: str) -> None:
        """Close one."""
        with self._lock:
            self._open[key] -= 1
            self._open += Counter()  # forgets those at zero

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open.total()


class EventStream(StreamingResponse):
    """The stream, which gives its slot back however it ends."""

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncIterator[str], slots: StreamSlots, key: str) -> None:
        # nginx and its like would otherwise keep events until a buffer is full.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._slots, self._key = slots, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the run ends or the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._slots.give_back(self._key)


EXAMPLE = """id: 12.4
event: message
data: {"at":"2026-03-01T12:00:00Z","level":"info","text":"round 4 is recorded"}"""
EVENT_SCHEMA = {  # of one event
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}


@router.get(
    "/{run_id}/events",
    summary="Follow a run as it happens",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Events until the run ends.",
            "content": {MEDIA_TYPE: {"schema": EVENT_SCHEMA, "example": EXAMPLE}},
        },
        **responses(404, 422, 429),
    },
)
def get_events(
    run_id: str,
    key: OperatorOrAuditor,
    store: StoreDep,
    request: Request,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=64)] = None,
) -> EventStream:
    """Server-sent events: `state`, `sites`, `round`, `message`, and `end` once the run has ended.

    Come back with `Last-Event-ID` and nothing is missed or told twice but the present `state` and `sites`.
    """
    seen = Seen() if last_event_id is None else Seen.read(last_event_id)
    get_run(store, run_id)
    slots: StreamSlots = request.app.state.streams
    slots.take(key.prefix)
    return EventStream(_events(store, run_id, seen), slots, key.prefix)


async def _events(store: Store, run_id: str, seen: Seen) -> AsyncIterator[str]:
    begun = said = time.monotonic()
    shown: dict[str, Any] = {}
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    while True:
        news = await run_in_threadpool(look, store, run_id, seen)
        seen = news.seen
        text = "".join(_told(news, shown))
        now = time.monotonic()
        if not text and now - said >= HEARTBEAT_SECONDS:
            text = ": nothing new\n\n"
        if text:
            said = now
            yield text
        if news.ended:
            yield await run_in_threadpool(_end, store, news)
            return
        if now - begun > MAX_STREAM_SECONDS:
            return
        if news.complete:
            await asyncio.sleep(LOOK_SECONDS)


def _told(news: News, shown: dict[str, Any]) -> list[str]:
    """The events; what stands as it was shown last is not shown again."""
    told = [event("message", message_out(one).model_dump(mode="json"), at) for at, one in news.messages]
    for at, one in news.rounds:
        content = round_out(one).model_dump(mode="json")
        content["sites"] = [spend_out(spend).model_dump(mode="json") for spend in one.spends]
        told.append(event("round", content, at))
    standing = {
        "sites": [spend_out(spend).model_dump(mode="json") for spend in news.spends],
        "state": run_out(news.run).model_dump(mode="json"),
    }
    for name, content in standing.items():
        if content and shown.get(name) != content:
            shown[name] = content
            told.append(event(name, content, news.seen))
    return told


def _end(store: Store, news: News) -> str:
    release = releases.release_of_run(store, news.run.id)
    digest = None if release is None else release.digest
    return event("end", {"state": news.run.state, "reason": news.run.reason, "release": digest}, news.seen)


def event(name: str, content: Any, seen: Seen) -> str:
    """One event as it goes over the wire; JSON has no line ends, so that `data` is one line."""
    return f"id: {seen.text}\nevent: {name}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n"


def _too_many(detail: str) -> ProblemError:
    return ProblemError(
        429,
        "too-many-streams",
        f"{detail}; close one, or ask for the run itself",
        headers={"Retry-After": "15"},
    )
