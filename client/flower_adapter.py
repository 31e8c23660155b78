"""Flower's internals that a site needs, in two modules, pinned by contract tests.

Two things: `make_app`, the ClientApp around a handler, and `TaskSource`, from which the site's own worker takes
tasks of the local SuperNode. The other half, `client.flower_supernode`, is that SuperNode.

How a stop gets here: while a task is worked on, the SuperNode asks the coordinator now and then whether its run is
still running. If it is not, the SuperNode drops the task, whose token is void from then on; the worker's next
heartbeat is refused, and the round in hand ends. The fleet's calls do not tell a run that was stopped from one
whose coordinator crashed: both end the round in hand, and a run that goes on later asks again.

A task carries the coordinator's app bundle. It is hashed and never unpacked: what runs is what the site has
installed. None of Flower's retry helpers is used here, since they end the process on a lost login.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.interruption import RoundInterruptedError
from models.exchange import (
    APP_REFUSED_CODE,
    MESSAGE_TYPES,
    RECORD_NAME,
    ExchangeError,
)
from privacy.cli.folders import write_private

Answer = Callable[[Message, Context], Message]

_HEARTBEAT_SECONDS = 1.0  # a task without one for 60 s is given up by the SuperNode
_PART_SECONDS = 0.05
_LAST_PART_SECONDS = 2.0
_PARTS_SECONDS = 30.0  # from a message's announcement to its last part; on the coordinator's own machine

_log = logging.getLogger(__name__)


def make_app(answer: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> ClientApp:
    """A ClientApp that answers each kind of message: body and payload in, body and payload out."""
    app = ClientApp()

    def carry(message: Message, context: Context) -> Message:
        body, payload = (message.content[RECORD_NAME][part] for part in ("body", "payload"))
        if not isinstance(body, bytes) or not isinstance(payload, bytes):
            raise ExchangeError("body and payload must be bytes")
        body, payload = answer(body, payload)
        content = RecordDict({RECORD_NAME: ConfigRecord({"body": body, "payload": payload})})
        return Message(content, reply_to=message)

    for message_type in MESSAGE_TYPES.values():
        category, action = message_type.split(".")
        getattr(app, category)(action)(carry)
    return app


class SourceLostError(ConnectionError):
    """The SuperNode does not answer, or no longer knows the task (it was restarted)."""


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """What is known of a task without looking into its message.

    Attributes:
        run_id: Flower's id of the run.
        message_type: such as `train.measure`.
        app_digest: SHA-256 of the app bundle that came with it, hexadecimal.
    """

    run_id: int
    message_type: str
    app_digest: str


class Task:
    """One message from the coordinator, held by this worker until it is answered.

    Args:
        client: logged in with the task's token.
        held: a file that is there as long as the task is; see `TaskSource.give_up_held`.
    """

    def __init__(self, client: RuntimeHttpClient, held: _HeldTask) -> None:
        self._client = client
        self._held = held
        try:
            self._message, self._context, run, bundle = pull_task_input(client)
        except (httpx.HTTPError, RunNotRunningException, RuntimeError) as error:
            client.close()
            raise SourceLostError("the SuperNode took the task back") from error
        held.write(self._message)
        self.head = TaskHead(
            run_id=run.run_id,
            message_type=self._message.metadata.message_type,
            app_digest=hashlib.sha256(bundle.content).hexdigest(),
        )

    def run(self, app: Answer, *, on_gone: Callable[[], None] = lambda: None) -> bool:
        """Let the installed app answer.

        What an exception says may depend on patients, so that the coordinator is told its type only.

        Args:
            app: the installed app.
            on_gone: called, in another thread, when the SuperNode has dropped the task because its run has ended.

        Returns:
            Whether there was an answer; not if the app raised RoundInterruptedError.

        Raises:
            SourceLostError: the reply could not be delivered.
        """
        with _Heartbeat(self._client, on_gone):
            try:
                reply = app(self._message, self._context)
            except RoundInterruptedError:
                self._held.clear()
                self._client.close()
                return False
            except Exception as error:
                where = "".join(traceback.format_tb(error.__traceback__))  # lines of code, no values
                _log.error("the app could not answer: %s\n%s", type(error).__name__, where)
                reason = f"the site could not answer ({type(error).__name__})"
                self._answer(
                    self._error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), SubStatus.FAILED, reason
                )
            else:
                self._answer(reply, SubStatus.COMPLETED, "")
        return True

    def refuse(self) -> None:
        """Answer that this app is not allowed here.

        Raises:
            SourceLostError: the reply could not be delivered.
        """
        reason = f"this site does not allow the app {self.head.app_digest}"
        self._answer(self._error(APP_REFUSED_CODE, reason), SubStatus.FAILED, reason)

    def _error(self, code: int, reason: str) -> Message:
        return Message(Error(code=code, reason=reason), reply_to=self._message)

    def _answer(self, reply: Message, status: str, details: str) -> None:
        try:
            push_message(self._client, reply, self._context)
            push_task_output(self._client, self._context, status, details)
            self._held.clear()
        except (httpx.HTTPError, RunNotRunningException, RuntimeError) as error:
            raise SourceLostError("the reply could not be delivered to the SuperNode") from error
        finally:
            self._client.close()


class TaskSource:
    """Tasks of the SuperNode on this machine.

    Args:
        port: where the SuperNode serves, on the loopback interface.
        secret: shared with the SuperNode; without it nobody is given a task.
        held_file: remembers the task in hand, so that a killed worker's successor can answer for it.
    """

    def __init__(self, *, port: int, secret: bytes, held_file: Path) -> None:
        run_clientapp = importlib.import_module("flwr.supernode.runtime.run_clientapp")
        pulling = run_clientapp.pull_and_inflate_object_from_tree
        if not isinstance(pulling, functools.partial):
            run_clientapp.pull_and_inflate_object_from_tree = soon(pulling)  # type: ignore[attr-defined]
        self._address = f"127.0.0.1:{port}"
        self._held_file = held_file
        self._client = self._connect(
            "SuperExec",
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
            ),
        )

    def acquire(self) -> Task | None:
        """Take the next task, if there is one.

        Raises:
            SourceLostError: the SuperNode does not answer.
        """
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError as error:
            raise SourceLostError(f"the SuperNode at {self._address} does not answer") from error
        if not (answer.HasField("task") and answer.token):
            return None
        held = _HeldTask(file=self._held_file, token=answer.token)
        held.write(None)
        return Task(self._connect("flwr-clientapp", RuntimeTokenHttpInterceptor(answer.token)), held)

    def give_up_held(self) -> bool:
        """Answer for the task that a killed worker left in hand, so that the site is free again at once.

        Without it the SuperNode waits for 60 s, and for ever if the message had not been fetched yet.

        Returns:
            Whether there was one that still waited for its answer.
        """
        read = _HeldTask.read(self._held_file)
        if read is None:
            return False
        held, message = read
        client = self._connect("flwr-clientapp", RuntimeTokenHttpInterceptor(held.token))
        try:
            if message is None:
                message = pull_task_input(client)[0]
            TaskIdentity.run_id = message.metadata.run_id
            TaskIdentity.node_id = message.metadata.dst_node_id
            context = Context(message.metadata.run_id, message.metadata.dst_node_id, {}, RecordDict(), {})
            error = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason="the site's worker was restarted")
            push_message(client, Message(error, reply_to=message), context)
            push_task_output(client, None, SubStatus.FAILED, "the site's worker was restarted")
        except (httpx.HTTPError, RunNotRunningException, RuntimeError):
            return False  # the SuperNode was restarted too, or has given the task up itself
        finally:
            client.close()
            held.clear()
        return True

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _connect(self, component: str, interceptor: Any) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), interceptor],
        )


@dataclass(frozen=True, kw_only=True)
class _HeldTask:
    """The task in hand, on disk: its token and its message without content. The file is the site's alone."""

    file: Path
    token: str

    def write(self, message: Message | None) -> None:
        proto = b"" if message is None else _head_of(message).SerializeToString()
        draft = self.file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        write_private(draft, json.dumps({"token": self.token, "message": proto.hex()}).encode())
        draft.replace(self.file)

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)

    @classmethod
    def read(cls, file: Path) -> tuple[_HeldTask, Message | None] | None:
        try:
            data = json.loads(file.read_bytes())
            proto = ProtoMessage.FromString(bytes.fromhex(data["message"]))
        except (OSError, ValueError, KeyError):
            return None
        return cls(file=file, token=data["token"]), message_from_proto(proto) if data["message"] else None


def _head_of(message: Message) -> ProtoMessage:
    return message_to_proto(remove_content_from_message(message))


class _Heartbeat:
    """Tells the SuperNode that a task is still worked on, and hears from it when nobody waits for that any more.

    A SuperNode that was away and no longer knows the task was restarted: the run may well go on, so that the round
    is worked on to its end, and its reply is there when the coordinator asks again.
    """

    def __init__(self, client: RuntimeHttpClient, on_gone: Callable[[], None]) -> None:
        self._client = client
        self._on_gone = on_gone
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(_HEARTBEAT_SECONDS):
            try:
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    _log.warning("the run of the task in hand has ended")
                    self._on_gone()
                    return
                _log.warning("heartbeat failed (%s)", error.response.status_code)
            except httpx.HTTPError as error:
                _log.warning("the SuperNode is away (%s); working on", type(error).__name__)
                return


def soon(pull: Callable[..., Any]) -> Callable[..., Any]:
    """A message is announced before its parts are there: ask again soon, not after a second, and not for ever.

    A SuperLink that was killed while it took a message announces parts that will never come.
    """
    return functools.partial(
        pull, initial_backoff=_PART_SECONDS, backoff_cap=_LAST_PART_SECONDS, max_time=_PARTS_SECONDS
    )
