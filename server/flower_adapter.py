"""An exchange with the sites over the Grid of one Flower run.

Flower's internals that the coordinator needs are in three modules, pinned by contract tests: this one,
`server.flower_worker`, which is given the run, and `server.flower_control`, which starts, stops and follows runs and
registers sites. What sites answer is hostile input: nothing of it raises.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_objects

from models.exchange import APP_REFUSED_CODE, MESSAGE_TYPES, RECORD_NAME, RoundReply, RoundRequest
from privacy.cli.polling import poll_pause
from server.federation import Enough, SiteFailure
from server.transfer import HeldParts

_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 0.5
_PART_SECONDS = 0.05
_LAST_PART_SECONDS = 2.0
_PARTS_SECONDS = 30.0
_LEAST_PARTS_SECONDS = 2.0
_FAILURES: Mapping[int, tuple[str, str]] = {
    ErrorCode.NODE_UNAVAILABLE: ("unavailable", "the site's SuperNode went away before it answered"),
    ErrorCode.CLIENT_APP_CRASHED: ("unavailable", "the site's worker went away before it answered"),
    ErrorCode.MESSAGE_UNAVAILABLE: (
        "unavailable",
        "the request expired, or a reply was announced and not sent",
    ),
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: ("unavailable", "the reply expired before it was fetched"),
    APP_REFUSED_CODE: (
        "foreign-app",
        "the site's policy does not allow this coordinator's app; its staff finds the app's digest in its notices",
    ),
}


@dataclass
class _PartsTime:
    """How long an exchange still waits for replies' parts that were announced and have not come.

    Attributes:
        deadline: the exchange's, by `time.monotonic`.
        left_seconds: of what all sites together may cost it: one that withholds parts does not hold up the others.
    """

    deadline: float = math.inf
    left_seconds: float = _PARTS_SECONDS


_parts_time: ContextVar[_PartsTime | None] = ContextVar("parts_time", default=None)
_log = logging.getLogger(__name__)


class FlowerFederation:
    """An exchange with sites over the Grid of one Flower run.

    A site is the node that was registered with its name. While the SuperLink is away, calls wait for it to
    come back; a deadline that passes meanwhile is noticed then.
    """

    def __init__(self, grid: Grid, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._grid = grid
        self._sleep = sleep
        self._held = HeldParts()

    def sites(self) -> frozenset[str]:
        """Names of the sites that are connected now."""
        return frozenset(self._node_ids())

    def exchange(
        self,
        requests: Mapping[str, RoundRequest],
        *,
        deadline_seconds: float,
        enough: Enough | None = None,
    ) -> Mapping[str, RoundReply | SiteFailure]:
        """Send each site its request and collect what comes back; see `server.federation.Federation`."""
        deadline = time.monotonic() + deadline_seconds
        _parts_time.set(_PartsTime(deadline=deadline))
        node_ids = self._node_ids()
        results: dict[str, RoundReply | SiteFailure] = {
            site: SiteFailure(code="unavailable", reason="the site is not connected")
            for site in requests
            if site not in node_ids
        }
        asked = [site for site in requests if site in node_ids]
        message_ids = self._push(requests, {site: node_ids[site] for site in asked}, deadline)
        pending = {
            message_id: site for message_id, site in zip(message_ids, asked, strict=False) if message_id
        }
        for site in set(asked) - set(pending.values()):
            results[site] = SiteFailure(code="error", reason="the SuperLink did not take the request")
        pushed_at, given_up = time.monotonic(), False
        while pending and not given_up and time.monotonic() < deadline:
            for reply in self._grid.pull_messages(list(pending)):
                site = pending.pop(reply.metadata.reply_to_message_id, None)
                if site is None:
                    continue
                heard = self._held.hear(site, requests[site], read_reply(reply))
                if heard is not None:
                    results[site] = heard
                    continue
                (again,) = self._push(requests, {site: node_ids[site]}, deadline) or [None]
                pending |= {again: site} if again else {}
            given_up = enough is not None and enough(results)
            if pending and not given_up:
                now = time.monotonic()
                pause = poll_pause(now - pushed_at, least=_FIRST_POLL_SECONDS, most=_LAST_POLL_SECONDS)
                self._sleep(min(pause, max(0.0, deadline - now)))
        for site in pending.values():
            waited = deadline_seconds - (deadline - time.monotonic() if given_up else 0.0)
            reason = f"no reply within {waited:.3g} s"
            results[site] = SiteFailure(code="timeout", reason=reason)
        return results

    def _push(
        self, requests: Mapping[str, RoundRequest], node_ids: Mapping[str, int], deadline: float
    ) -> list[str | None]:
        """Hand the requests to the SuperLink; one that was killed while it took a part is given them again.

        A site may then be asked twice; it answers the same round with the same bytes.
        """
        while node_ids and (left := deadline - time.monotonic()) > 0:
            messages = [
                write_request(requests[site], node_id=node_id, ttl_seconds=left, held=self._held.of(site))
                for site, node_id in node_ids.items()
            ]
            try:
                return list(self._grid.push_messages(messages))
            except ObjectPushError as error:
                _log.warning("the SuperLink lost a request while it took it; asking again: %s", error)
                self._sleep(_FIRST_POLL_SECONDS)
        return [None] * len(node_ids)

    def _node_ids(self) -> dict[str, int]:
        return {node.name: int(node.node_id) for node in self._grid.get_nodes() if node.name}


def write_request(
    request: RoundRequest, *, node_id: int, ttl_seconds: float, held: Collection[str] = ()
) -> Message:
    """A request as Flower's message, without the parts that the site holds."""
    body, payload = request.encode(held)
    content = RecordDict({RECORD_NAME: ConfigRecord({"body": body, "payload": payload})})
    return Message(
        content,
        dst_node_id=node_id,
        message_type=MESSAGE_TYPES[request.kind],
        ttl=ttl_seconds,
        group_id=str(request.round),
    )


def read_reply(message: Message) -> RoundReply | SiteFailure:
    """What a site answered; whatever it sent, this does not raise."""
    if message.has_error():
        code, reason = _FAILURES.get(message.error.code, ("error", "the site could not answer"))
        return SiteFailure(code=code, reason=reason, final=code == "foreign-app")
    try:
        record = message.content[RECORD_NAME]
        body, payload = record["body"], record["payload"]
        if not isinstance(body, bytes) or not isinstance(payload, bytes):
            raise TypeError("body and payload must be bytes")
        return RoundReply.decode(body, payload)
    except Exception as error:  # hostile input: no site may stop a round by what it sends
        reason = (
            f"the reply cannot be read ({type(error).__name__}): the site may run another version of fedtwin"
        )
        return SiteFailure(code="garbled", reason=reason)


def pull_in_time(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    """Fetch a reply's parts, by the exchange's deadline and without waiting for long for what does not come.

    Flower would wait for three minutes for parts that a site announced and does not send, and for a second
    for those that are still on their way, which is most. The site of such a reply has failed; asked again, it
    sends the same one.
    """
    time_left = _parts_time.get() or _PartsTime()
    begun = time.monotonic()
    wait = min(max(_LEAST_PARTS_SECONDS, time_left.left_seconds), max(0.0, time_left.deadline - begun))
    try:
        parts: dict[str, bytes] = pull_objects(
            object_ids,
            pull_object_fn,
            max_time=wait,
            initial_backoff=_PART_SECONDS,
            backoff_cap=_LAST_PART_SECONDS,
        )
    except ObjectPullError:
        time_left.left_seconds -= time.monotonic() - begun
        raise
    return parts
