"""The SuperNode: Flower's own, with shorter pauses, which gives up what nobody waits for. Half of a site's adapter.

The other half, `client.flower_adapter`, takes its tasks. `python -m client.flower_supernode` with its arguments.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.supercore.run import RunNotRunningException

from client.flower_adapter import soon
from privacy.cli.polling import poll_pause

_BUSY_PAUSE_SECONDS = 0.1
_IDLE_PAUSE_SECONDS = 3.0
_RUN_CHECK_SECONDS = 2.0

_log = logging.getLogger(__name__)


class _Pace:
    """Stands in for the module `time` in the SuperNode's loop, which only sleeps.

    Flower pauses 3 s whenever the coordinator has nothing, which is most of a short round. Here the pause
    is short after each message and grows with the time since then back to those 3 s.
    """

    def __init__(self) -> None:
        self._busy_at = time.monotonic()
        self.run_ended = threading.Event()  # of the message that this site's own worker has in hand

    def sleep(self, seconds: float) -> None:
        if seconds < 1.0:  # waiting for this site's own worker
            if self.run_ended.is_set():
                raise RunNotRunningException
            self._busy_at = time.monotonic()
            time.sleep(min(seconds, _BUSY_PAUSE_SECONDS / 2))
        else:
            idle = time.monotonic() - self._busy_at
            time.sleep(min(seconds, poll_pause(idle, least=_BUSY_PAUSE_SECONDS, most=_IDLE_PAUSE_SECONDS)))


def _whole(receive: Callable[..., int | None]) -> Callable[..., int | None]:
    """Drop a message of which not all was received: its run was stopped meanwhile.

    Flower leaves its task behind. The worker would wait for a minute for parts that never come, and the
    SuperNode, which serves one task at a time, would answer one task late from then on.
    """

    def receive_whole(*, state: Any, **rest: Any) -> int | None:
        tasks_before, messages_before = _unfinished(state), set(state.msg_store)
        received = receive(state=state, **rest)
        if received is None:
            _drop(state, set(_unfinished(state)) - set(tasks_before), set(state.msg_store) - messages_before)
        return received

    return receive_whole


class _WhileRunning:
    """Give up a message whose run has ended while the site's worker has it in hand.

    Flower waits for the reply for as long as it takes, though nobody can take it any more.

    Args:
        pace: through which Flower's loop pauses while it waits.
    """

    def __init__(self, pace: _Pace) -> None:
        self._pace = pace
        self._run_id: int | None = None
        self._get_run: Callable[[int], Any] | None = None

    def receiving(self, receive: Callable[..., int | None]) -> Callable[..., int | None]:
        """Flower's step that receives a message: remember of which run, and how to ask for it."""

        def remember(*, get_run: Callable[[int], Any], **rest: Any) -> int | None:
            self._get_run = get_run
            self._run_id = receive(get_run=get_run, **rest)
            return self._run_id

        return remember

    def replying(self, reply: Callable[..., None]) -> Callable[..., None]:
        """Flower's step that waits for the reply and sends it."""

        def reply_while_running(*, state: Any, object_store: Any, **rest: Any) -> None:
            done = threading.Event()
            self._pace.run_ended = threading.Event()
            threading.Thread(target=self._watch, args=(done, self._pace.run_ended), daemon=True).start()
            try:
                reply(state=state, object_store=object_store, **rest)
            except RunNotRunningException:
                _drop(state, set(_unfinished(state)), set(state.msg_store))
                object_store.delete_objects_in_run(self._run_id)
            finally:
                done.set()
                self._pace.run_ended = threading.Event()

        return reply_while_running

    def _watch(self, done: threading.Event, run_ended: threading.Event) -> None:
        """In a thread of its own: a coordinator that is away must not hold up a reply that is ready."""
        assert self._get_run is not None  # a message was received
        assert self._run_id is not None
        while not done.wait(_RUN_CHECK_SECONDS):
            try:
                self._get_run(self._run_id)
            except RunNotRunningException:
                run_ended.set()
                return
            except httpx.HTTPError as error:
                _log.warning("whether run %s goes on is not known (%s)", self._run_id, type(error).__name__)


def _unfinished(state: Any) -> dict[int, int]:
    """Tasks and their runs; the SuperNode serves one message at a time."""
    unfinished = state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING])
    return {task.task_id: task.run_id for task in unfinished}


def _drop(state: Any, task_ids: Collection[int], message_ids: Collection[str]) -> None:
    """End tasks that nobody waits for; their tokens are void from now on."""
    for task_id in task_ids:
        _log.warning("dropped a task, since its run has ended")
        state.finish_task(task_id, sub_status=SubStatus.STOPPED, details="the run has ended")
    state.delete_messages(message_ids=list(message_ids))


def run_supernode() -> None:
    """Be a SuperNode with the arguments of this process; never returns.

    When Flower's loop ends on an error, its process would stay without it: this one exits, to be restarted.
    """
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    pace = _Pace()
    running = _WhileRunning(pace)
    loop.time = pace  # type: ignore[attr-defined]
    loop.pull_objects = soon(loop.pull_objects)  # type: ignore[attr-defined]
    receive = _whole(loop._pull_and_store_message)  # type: ignore[attr-defined]
    loop._pull_and_store_message = running.receiving(receive)  # type: ignore[attr-defined]
    loop._push_messages = running.replying(loop._push_messages)  # type: ignore[attr-defined]
    try:
        command.flower_supernode()
    finally:
        os._exit(1)


if __name__ == "__main__":
    run_supernode()
