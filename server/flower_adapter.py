"""All of Flower's internals that the coordinator needs, in one place, pinned by contract tests.

Three things: `Control` (start, stop and follow runs, register sites), `FlowerFederation` (an exchange over a
run's Grid), and `serve_run` (our own worker, which takes one run from the SuperLink and runs the installed
ServerApp; a run with another app than this coordinator's is refused, whoever started it).
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from models.exchange import APP_REFUSED_CODE, MESSAGE_TYPES, RECORD_NAME, RoundReply, RoundRequest
from privacy.cli.folders import write_private
from privacy.cli.polling import poll_pause
from server.federation import Enough, SiteFailure
from server.home import CoordinatorHome
from server.transfer import HeldParts

_RUN_IN_HAND = "run-in-hand"
_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_PART_SECONDS = 0.05
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
    APP_REFUSED_CODE: ("error", "the site's policy does not allow this coordinator's app"),
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
        return SiteFailure(code=code, reason=reason)
    try:
        record = message.content[RECORD_NAME]
        body, payload = record["body"], record["payload"]
        if not isinstance(body, bytes) or not isinstance(payload, bytes):
            raise TypeError("body and payload must be bytes")
        return RoundReply.decode(body, payload)
    except Exception as error:  # hostile input: no site may stop a round by what it sends
        return SiteFailure(code="garbled", reason=f"the reply cannot be read ({type(error).__name__})")


def _pull_in_time(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
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
            backoff_cap=_RETRY_SECONDS,
        )
    except ObjectPullError:
        time_left.left_seconds -= time.monotonic() - begun
        raise
    return parts


def serve_run(home: CoordinatorHome, app: Callable[[Grid, Context], None]) -> None:
    """Wait for a run, run it to its end, and return; the supervisor then starts a fresh, warm process.

    Raises:
        KeyboardInterrupt: the run was stopped (Flower's client raises SIGINT), or this process is to end.
    """
    http_grid.pull_objects = _pull_in_time
    _give_up_run_in_hand(home)
    token = _wait_for_run(home)
    in_hand = home.path / _RUN_IN_HAND
    in_hand.unlink(missing_ok=True)
    write_private(in_hand, token.encode())
    grid = http_grid.HttpGrid(
        runtime_api_address=f"127.0.0.1:{home.superlink_port}",
        root_certificates=home.ca_certificate.read_bytes(),
        token=token,
    )
    grid._retry_invoker.wait_gen_factory = lambda: exponential(max_delay=_RETRY_SECONDS)
    client = grid._runtime_client
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    outcome = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="the coordinator's worker ended")
    try:
        heartbeat.start()
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        run, context = run_from_proto(given.run), context_from_proto(given.context)
        digest = hashlib.sha256(given.fab.content).hexdigest()
        if digest != home.app_digest:
            _log.error("refused run %s of a foreign app %s", run.run_id, digest)
            outcome = PushTaskOutputRequest(
                sub_status=SubStatus.FAILED, details="not this coordinator's app; nothing of it was run"
            )
            return
        grid.set_run(run)
        context.run_config = dict(run.override_config)
        _log.info("run %s: started", run.run_id)
        app(grid, context)
        outcome = PushTaskOutputRequest(sub_status=SubStatus.COMPLETED)
        _log.info("run %s: completed", run.run_id)
    except Exception as error:
        _log.exception("the run failed")
        details = f"{type(error).__name__}: {error}"[:500]
        outcome = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details)
    finally:
        grid._retry_invoker.max_tries = 1 if outcome.sub_status == SubStatus.FAILED else 10
        with suppress(httpx.HTTPError, KeyboardInterrupt):
            client.PushTaskOutput(outcome)
        if heartbeat.is_running:
            heartbeat.stop()
        grid.close()
        in_hand.unlink(missing_ok=True)


def _give_up_run_in_hand(home: CoordinatorHome) -> None:
    """End the run that a killed worker left: Flower would call it running for another minute."""
    in_hand = home.path / _RUN_IN_HAND
    if not in_hand.exists():
        return
    client = _runtime_client(home, "flwr-serverapp", RuntimeTokenHttpInterceptor(in_hand.read_text()))
    with suppress(httpx.HTTPError):  # it has ended otherwise: its token is void
        client.PushTaskOutput(
            PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="the worker was killed")
        )
        _log.warning("ended the run that was in hand when the worker was killed")
    client.close()
    in_hand.unlink(missing_ok=True)


def _runtime_client(home: CoordinatorHome, component: str, login: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{home.superlink_port}",
        insecure=False,
        root_certificates=home.ca_certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), login],
    )


def _wait_for_run(home: CoordinatorHome) -> str:
    """Poll the SuperLink until it gives this worker a run; returns the run's token."""
    login = SuperExecAuthHttpInterceptor(
        master_secret=home.superexec_secret.read_bytes(),
        protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
    )
    client = _runtime_client(home, "SuperExec", login)
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    try:
        while True:
            try:
                answer = client.AcquireTask(request)
                if answer.HasField("task") and answer.token:
                    return str(answer.token)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                _log.warning("the SuperLink gave no answer (%s); asking again", type(error).__name__)
                time.sleep(_RETRY_SECONDS)
            time.sleep(_LAST_POLL_SECONDS)
    finally:
        client.close()
