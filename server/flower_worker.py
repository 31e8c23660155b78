"""The coordinator's worker in Flower: takes one run from the SuperLink and runs the installed ServerApp.

A run with another app than this coordinator's is refused, whoever started it. The messages of a run are
`server.flower_adapter`'s.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from flwr.app import Context
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from privacy.cli.folders import write_private
from server.flower_adapter import pull_in_time
from server.home import CoordinatorHome

_RUN_IN_HAND = "run-in-hand"
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


def serve_run(home: CoordinatorHome, app: Callable[[Grid, Context], None]) -> None:
    """Wait for a run, run it to its end, and return; the supervisor then starts a fresh, warm process.

    Raises:
        KeyboardInterrupt: the run was stopped (Flower's client raises SIGINT), or this process is to end.
    """
    http_grid.pull_objects = pull_in_time
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
            time.sleep(_POLL_SECONDS)
    finally:
        client.close()
