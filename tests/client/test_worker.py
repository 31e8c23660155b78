"""The site's worker against a SuperNode's own service, without a coordinator."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from client import flower_adapter as adapter
from client import flower_supernode as supernode_adapter
from client.flower_adapter import TaskHead, TaskSource, make_app
from client.home import SiteHome
from client.interruption import Interruption
from client.record import Record
from client.worker import FOREIGN_APP, note_foreign_app, run_worker
from models.exchange import APP_REFUSED_CODE, RECORD_NAME, RoundReply, RoundRequest
from models.study import Study
from privacy.signing import SigningKey

BUNDLE = b"a zip file that must never be opened"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()
RUN, NODE, COORDINATOR = 11, 22, 1
STUDY = Study.from_dict(
    {
        "name": "echo",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
    }
)
REQUEST = RoundRequest(
    kind="measure", run="r1", round=1, nonce="n", study=STUDY, arrays={"w": torch.arange(3.0)}
)


class SuperNode:
    """A SuperNode's service and memory, without its connection to a coordinator."""

    def __init__(self, home: SiteHome) -> None:
        self.factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state = self.factory.state()
        self.state.set_node_id(NODE)
        app = create_app(self.factory, home.worker_secret.read_bytes())
        config = uvicorn.Config(app, host="127.0.0.1", port=home.supernode_port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def deliver(self, body: bytes, payload: bytes, message_type: str = "train.measure") -> None:
        """What the SuperNode's loop does with a message of the coordinator."""
        run = Run.create_empty(RUN)
        run.fab_hash, run.series_id = DIGEST, 5
        context = Context(RUN, NODE, {}, RecordDict(), {}, series_id=5)
        self.state.set_run_series_context(5, context)
        self.state.store_run(run)
        self.state.store_fab(Fab(DIGEST, BUNDLE, {}))
        assert self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=DIGEST)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, COORDINATOR, 1
        record = ConfigRecord({"body": body, "payload": payload})
        message = Message(RecordDict({RECORD_NAME: record}), dst_node_id=NODE, message_type=message_type)
        _insert_message(message, self.state, self.factory.objectstore_factory.store())

    def reply(self, timeout_seconds: float = 10) -> Message:
        found: list[Message] = []
        wait_for(
            lambda: found or found.extend(self.state.get_messages_legacy(is_reply=True)), timeout_seconds
        )
        return found[0]


class Site:
    """A worker in a thread, with an echo for an app."""

    def __init__(self, home: SiteHome) -> None:
        self.home = home
        self.allowed = {DIGEST}
        self.handled: list[RoundRequest] = []
        self.refused: list[TaskHead] = []
        self.stop_event = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.handle: Callable[[RoundRequest], None] = self.handled.append
        self.interruption = Interruption()

    def serve(self) -> None:
        run_worker(
            self.home,
            make_app(lambda body, payload: self.answer(RoundRequest.decode(body, payload)).encode()),
            allowed_apps=lambda: self.allowed,
            on_refused=self.refused.append,
            interruption=self.interruption,
            stop_event=self.stop_event,
        )

    def answer(self, request: RoundRequest) -> RoundReply:
        self.handle(request)
        return RoundReply(
            kind=request.kind, run=request.run, round=request.round, nonce=request.nonce, site=self.home.name
        )


def wait_for(condition: Callable[[], object], timeout_seconds: float = 10) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome.create(
        tmp_path / "site",
        name="north",
        superlink_address="127.0.0.1:1",
        ca_certificate=b"",
        coordinator_key=SigningKey.generate(name="lab").public.text,
        data_path="none.csv",
    )


@pytest.fixture
def supernode(home: SiteHome) -> Iterator[SuperNode]:
    supernode = SuperNode(home)
    yield supernode
    supernode.stop()


@pytest.fixture
def site(home: SiteHome) -> Iterator[Site]:
    site = Site(home)
    yield site
    site.stop_event.set()
    if site.thread.is_alive():
        site.thread.join()


def test_a_request_reaches_the_handler_and_its_reply_the_supernode(site: Site, supernode: SuperNode) -> None:
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    reply = supernode.reply()
    assert not reply.has_error()
    assert [one.digest for one in site.handled] == [REQUEST.digest]
    wait_for(lambda: not (site.home.state / "task-in-hand.json").exists())


def test_a_foreign_app_is_refused_noted_and_nothing_is_run(site: Site, supernode: SuperNode) -> None:
    site.allowed = {"0" * 64}
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    error = supernode.reply().error
    assert (error.code, DIGEST in error.reason) == (APP_REFUSED_CODE, True)
    assert site.refused == [TaskHead(run_id=RUN, message_type="train.measure", app_digest=DIGEST)]
    assert site.handled == []


def test_a_changed_policy_counts_from_the_next_task(site: Site, supernode: SuperNode) -> None:
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    supernode.reply()
    site.allowed = set()
    supernode.deliver(*REQUEST.encode())
    wait_for(lambda: site.refused)
    assert len(site.handled) == 1


def test_an_exceptions_words_are_neither_sent_nor_logged(
    site: Site, supernode: SuperNode, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: RoundRequest) -> None:
        raise ValueError(f"patient {4700 + 11}")

    site.handle = fail
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    error = supernode.reply().error
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "ValueError" in error.reason
    assert "4711" not in error.reason + caplog.text


@pytest.mark.parametrize(("body", "payload"), [(b"", b""), (b"{}", b""), (REQUEST.encode()[0], b"\xff" * 40)])
def test_a_request_that_cannot_be_read_reaches_no_handler_and_the_next_one_is_served(
    site: Site, supernode: SuperNode, body: bytes, payload: bytes
) -> None:
    site.thread.start()
    supernode.deliver(body, payload)
    assert supernode.reply().error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert site.handled == []
    supernode.deliver(*REQUEST.encode())
    wait_for(lambda: site.handled)


def test_an_unknown_kind_of_message_reaches_no_handler(site: Site, supernode: SuperNode) -> None:
    site.thread.start()
    supernode.deliver(*REQUEST.encode(), message_type="train.everything")
    assert supernode.reply().has_error()
    assert site.handled == []


def test_the_worker_outlives_its_supernode(site: Site, home: SiteHome) -> None:
    site.thread.start()
    for _ in range(2):
        supernode = SuperNode(home)
        try:
            before = len(site.handled)
            supernode.deliver(*REQUEST.encode())
            wait_for(lambda seen=before: len(site.handled) > seen)  # type: ignore[misc]
            supernode.reply()
        finally:
            supernode.stop()
    assert site.thread.is_alive()


def test_a_supernode_that_goes_away_during_a_task_costs_only_that_reply(site: Site, home: SiteHome) -> None:
    first = SuperNode(home)
    site.handle = lambda request: (first.stop(), site.handled.append(request))  # type: ignore[func-returns-value]
    site.thread.start()
    first.deliver(*REQUEST.encode())
    wait_for(lambda: site.handled)
    site.handle = site.handled.append
    second = SuperNode(home)
    try:
        second.deliver(*REQUEST.encode())
        assert not second.reply().has_error()
    finally:
        second.stop()


def die(client: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fetched", [True, False])
def test_a_killed_workers_successor_answers_for_the_task_in_hand(
    site: Site, supernode: SuperNode, monkeypatch: pytest.MonkeyPatch, fetched: bool
) -> None:
    supernode.deliver(*REQUEST.encode())
    home = site.home
    source = TaskSource(
        port=home.supernode_port,
        secret=home.worker_secret.read_bytes(),
        held_file=home.state / "task-in-hand.json",
    )
    if fetched:
        assert source.acquire() is not None
    else:
        with monkeypatch.context() as patch:
            patch.setattr("client.flower_adapter.pull_task_input", die)
            with pytest.raises(KeyboardInterrupt):
                source.acquire()
    assert (home.state / "task-in-hand.json").stat().st_mode & 0o777 == 0o600
    site.thread.start()
    assert supernode.reply(3).error.code == ErrorCode.CLIENT_APP_CRASHED
    supernode.deliver(*REQUEST.encode())
    assert not supernode.reply().has_error()


def test_without_the_secret_no_task_is_given(site: Site, supernode: SuperNode, tmp_path: Path) -> None:
    supernode.deliver(*REQUEST.encode())
    thief = TaskSource(port=site.home.supernode_port, secret=b"guess" * 8, held_file=tmp_path / "held")
    with pytest.raises(ConnectionError):
        thief.acquire()


def test_a_refused_app_is_one_entry_in_the_sites_record_however_often_it_comes(home: SiteHome) -> None:
    head = TaskHead(run_id=2**63 + 1, message_type="train.measure", app_digest=DIGEST)
    for _ in range(3):
        note_foreign_app(home, head)
    note_foreign_app(home, replace(head, app_digest="0" * 64))
    entries = [entry for entry in Record(home.record_file).entries() if entry.kind == FOREIGN_APP]
    assert [entry.body["app_digest"] for entry in entries] == [DIGEST, "0" * 64]
    assert entries[0].body["run"] == str(2**63 + 1)
    assert home.notices.read_text().count("refused train.measure") == 2
    Record(home.record_file).verify()


def test_a_message_whose_run_ends_while_it_is_received_leaves_nothing_behind(
    site: Site, supernode: SuperNode
) -> None:
    def ended(*, state: object) -> None:
        supernode.deliver(*REQUEST.encode())

    assert not supernode_adapter._whole(ended)(state=supernode.state)
    assert not supernode.state.get_tasks(statuses=["pending", "starting", "running"])
    assert not supernode.state.get_messages_legacy()
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    assert not supernode.reply().has_error()
    assert len(site.handled) == 1


def test_a_task_that_is_being_answered_is_not_dropped(site: Site, supernode: SuperNode) -> None:
    site.handle = lambda request: time.sleep(0.5)
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    wait_for(lambda: supernode.state.get_tasks(statuses=["running"]))
    supernode_adapter._whole(lambda state: None)(state=supernode.state)
    assert not supernode.reply().has_error()


def compute_until_interrupted(site: Site) -> Callable[[RoundRequest], None]:
    def compute(request: RoundRequest) -> None:
        site.handled.append(request)
        for _ in range(2000):
            site.interruption.check()
            time.sleep(0.005)

    return compute


class Loop:
    """What Flower's loop in a SuperNode does after it has received a message, with a run that may end."""

    def __init__(self, supernode: SuperNode) -> None:
        self.runs = True
        self.asked = 0
        self.sent: list[Message] = []
        self._supernode = supernode
        self._pace = supernode_adapter._Pace()
        watching = supernode_adapter._WhileRunning(self._pace)
        watching.receiving(lambda **_: RUN)(get_run=self.get_run)
        self._reply = watching.replying(self._wait)

    def get_run(self, run_id: int) -> None:
        self.asked += 1
        if not self.runs:
            raise RunNotRunningException

    def _wait(self, *, state: Any, object_store: object) -> None:
        while not (found := state.get_messages_legacy(is_reply=True)):
            self._pace.sleep(0.5)
        self.sent += found

    def serve(self) -> threading.Thread:
        store = self._supernode.factory.objectstore_factory.store()
        thread = threading.Thread(
            target=self._reply, kwargs={"state": self._supernode.state, "object_store": store}
        )
        thread.start()
        return thread


def test_a_round_whose_run_has_ended_is_given_up_and_the_next_one_served(
    site: Site, supernode: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(supernode_adapter, "_RUN_CHECK_SECONDS", 0.1)
    site.handle = compute_until_interrupted(site)
    site.thread.start()
    supernode.deliver(*REQUEST.encode())
    loop = Loop(supernode)
    serving = loop.serve()
    wait_for(lambda: site.handled and loop.asked > 2)
    loop.runs = False
    serving.join(5)
    assert not serving.is_alive()
    assert loop.sent == []
    assert not supernode.state.get_tasks(statuses=["pending", "starting", "running"])
    assert not supernode.state.get_messages_legacy()
    wait_for(lambda: not (site.home.state / "task-in-hand.json").exists(), 5)
    site.handle, loop.runs = site.handled.append, True
    supernode.deliver(*REQUEST.encode())
    loop.serve().join(5)
    assert [one.has_error() for one in loop.sent] == [False]


def test_a_supernode_that_was_restarted_does_not_end_the_round_in_hand(
    site: Site, home: SiteHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adapter, "_HEARTBEAT_SECONDS", 0.1)
    begun, done = threading.Event(), threading.Event()

    def compute(request: RoundRequest) -> None:
        begun.set()
        for _ in range(100):
            site.interruption.check()
            time.sleep(0.01)
        done.set()

    site.handle = compute
    first = SuperNode(home)
    site.thread.start()
    first.deliver(*REQUEST.encode())
    wait_for(begun.is_set)
    first.stop()
    wait_for(lambda: "the SuperNode is away" in caplog.text)
    second = SuperNode(home)
    try:
        wait_for(done.is_set, 30)
    finally:
        second.stop()
