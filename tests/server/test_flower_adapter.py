"""An exchange over a Grid: who is asked, what comes back, and that no reply can stop a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)
from flwr.supercore.task_identity import TaskIdentity

from models.exchange import APP_REFUSED_CODE, RECORD_NAME, RoundReply, RoundRequest
from models.parts import PartsLackingError
from models.study import Study
from server import flower_adapter as adapter
from server.federation import SiteFailure
from server.flower_adapter import FlowerFederation

STUDY = Study.from_dict(
    {
        "name": "echo",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "measure": {"budget_share": 0.5},
        "refine": {"rounds": 9},
        "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
    }
)

Answer = Callable[[Message], Message | None]


class DirectGrid(Grid):
    """A Grid that calls the sites in this process; a site that answers None stays silent."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.names = {index + 2: name for index, name in enumerate(answers)}
        self.answers = answers
        self.sent: dict[str, Message] = {}
        self.waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.metadata.message_id)
            self.sent[ids[-1]] = message
            reply = self.answers[self.names[message.metadata.dst_node_id]](message)
            if reply is not None:
                self.waiting[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.waiting.pop(one) for one in message_ids if one in self.waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def request(site: str, **changes: Any) -> RoundRequest:
    values: dict[str, Any] = {"kind": "refine", "run": "r1", "round": 2, "nonce": f"n-{site}", "study": STUDY}
    return RoundRequest(**{**values, "arrays": {"w": torch.ones(3)}, **changes})


def carry(message: Message, body: object, payload: object) -> Message:
    record = ConfigRecord({"body": body, "payload": payload})  # type: ignore[dict-item]
    return Message(RecordDict({RECORD_NAME: record}), reply_to=message)


def echo(site: str) -> Answer:
    def answer(message: Message) -> Message:
        record = message.content[RECORD_NAME]
        asked = RoundRequest.decode(record["body"], record["payload"])
        reply = RoundReply(
            kind=asked.kind,
            run=asked.run,
            round=asked.round,
            nonce=asked.nonce,
            site=site,
            arrays=asked.arrays,
        )
        return carry(message, *reply.encode())

    return answer


def fail(code: int) -> Answer:
    return lambda message: Message(Error(code=code, reason="private words of the site"), reply_to=message)


def exchange(answers: dict[str, Answer], *extra: str, deadline: float = 5.0) -> dict[str, Any]:
    sites = [*answers, *extra]
    federation = FlowerFederation(DirectGrid(answers))
    return dict(federation.exchange({site: request(site) for site in sites}, deadline_seconds=deadline))


def test_each_site_gets_its_own_request_and_its_reply_comes_back_under_its_name() -> None:
    results = exchange({"north": echo("north"), "south": echo("south")})
    assert {site: (one.site, one.nonce) for site, one in results.items()} == {
        "north": ("north", "n-north"),
        "south": ("south", "n-south"),
    }
    assert torch.equal(results["north"].arrays["w"], torch.ones(3))


def test_a_site_that_is_not_connected_fails_at_once_and_the_others_are_asked() -> None:
    results = exchange({"north": echo("north")}, "away")
    assert results["away"].code == "unavailable"
    assert isinstance(results["north"], RoundReply)


def test_a_silent_site_fails_at_the_deadline_and_no_later() -> None:
    started = time.monotonic()
    grid = DirectGrid({"north": echo("north"), "mute": lambda message: None})
    federation = FlowerFederation(grid)
    results = federation.exchange({s: request(s) for s in ("north", "mute")}, deadline_seconds=0.4)
    assert time.monotonic() - started < 2.0
    assert results["mute"] == SiteFailure(code="timeout", reason="no reply within 0.4 s")
    assert isinstance(results["north"], RoundReply)


def test_a_late_reply_is_asked_for_until_it_comes() -> None:
    naps: list[float] = []
    late = echo("mute")
    grid = DirectGrid({"mute": lambda message: None})

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) > 8:
            grid.waiting = {one: reply for one, message in grid.sent.items() if (reply := late(message))}

    results = FlowerFederation(grid, sleep=sleep).exchange({"mute": request("mute")}, deadline_seconds=60)
    assert isinstance(results["mute"], RoundReply)
    assert len(naps) == 9


@pytest.mark.parametrize(
    ("code", "expected", "word"),
    [
        (ErrorCode.NODE_UNAVAILABLE, "unavailable", "SuperNode"),
        (ErrorCode.CLIENT_APP_CRASHED, "unavailable", "worker"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "error", "could not answer"),
        (APP_REFUSED_CODE, "foreign-app", "policy does not allow"),
        (77, "error", "could not answer"),
    ],
)
def test_an_error_becomes_a_failure_in_our_words_whatever_the_site_wrote(
    code: int, expected: str, word: str
) -> None:
    failure = exchange({"north": fail(code)})["north"]
    assert failure.code == expected
    assert word in failure.reason
    assert "private" not in failure.reason


@pytest.mark.parametrize(
    "spoil",
    [
        lambda message: carry(message, b"", b""),
        lambda message: carry(message, b"[1, 2]", b""),
        lambda message: carry(message, b"\xff\xfe", b""),
        lambda message: carry(message, "text", b""),
        lambda message: carry(message, 3, [1.0]),
        lambda message: Message(RecordDict(), reply_to=message),
        lambda message: Message(RecordDict({RECORD_NAME: ConfigRecord({})}), reply_to=message),
        lambda message: carry(message, RoundReply(**HEAD).encode()[0], b"\xff" * 64),
        lambda message: carry(
            message, RoundReply(**HEAD).encode()[0].replace(b'"refusal":null', b'"refusal":3'), b""
        ),
        lambda message: carry(message, b"[" * 100_000, b""),
    ],
)
def test_no_reply_stops_a_round(spoil: Answer) -> None:
    results = exchange({"bad": spoil, "north": echo("north")})
    assert results["bad"].code == "garbled"
    assert isinstance(results["north"], RoundReply)


HEAD: dict[str, Any] = {"kind": "refine", "run": "r1", "round": 2, "nonce": "n", "site": "bad"}


def test_the_name_in_a_reply_does_not_make_it_another_sites() -> None:
    results = exchange({"north": echo("south"), "south": lambda message: None}, deadline=0.2)
    assert results["north"].site == "south"  # as it came: the round loop checks its signature
    assert results["south"].code == "timeout"


def withheld(object_id: str) -> bytes:
    raise ObjectUnavailableError(object_id)


def wait_for_parts(seconds: float) -> float:
    """How long a reply is waited for whose parts never come."""
    started = time.monotonic()
    with pytest.raises(ObjectPullError):
        adapter.pull_in_time(["part"], withheld)
    took = time.monotonic() - started
    assert took < seconds
    return took


def test_a_reply_that_is_announced_and_never_sent_does_not_outlast_the_deadline() -> None:
    token = adapter._parts_time.set(adapter._PartsTime(deadline=time.monotonic() + 0.3))
    try:
        wait_for_parts(3.0)
        found = adapter.pull_in_time(["part"], lambda object_id: b"of another site")
        assert found == {"part": b"of another site"}
    finally:
        adapter._parts_time.reset(token)


def test_sites_that_withhold_parts_together_hold_up_an_exchange_for_so_long_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "_LEAST_PARTS_SECONDS", 0.1)
    token = adapter._parts_time.set(adapter._PartsTime(deadline=float("inf"), left_seconds=1.0))
    try:
        assert wait_for_parts(10.0) >= 1.0
        assert wait_for_parts(0.9) < 0.9  # the second one finds no time left
    finally:
        adapter._parts_time.reset(token)


class ForgetfulGrid(DirectGrid):
    """A SuperLink that is killed while it takes a part, so many times, and knows nothing of the session then."""

    def __init__(self, answers: dict[str, Answer], times: int) -> None:
        super().__init__(answers)
        self.times = times

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.times > 0:
            self.times -= 1
            raise ObjectPushError("part", 1, "session")
        return super().push_messages(messages)


def test_a_superlink_that_lost_a_request_while_it_took_it_is_given_it_again() -> None:
    federation = FlowerFederation(ForgetfulGrid({"ash": echo("ash")}, times=2), sleep=lambda _seconds: None)
    replies = federation.exchange({"ash": request("ash")}, deadline_seconds=5)
    assert isinstance(replies["ash"], RoundReply)


def test_a_superlink_that_never_takes_a_request_fails_its_sites_by_the_deadline_and_no_more() -> None:
    federation = FlowerFederation(ForgetfulGrid({"ash": echo("ash")}, times=10**9))
    replies = federation.exchange({"ash": request("ash")}, deadline_seconds=0.5)
    assert replies["ash"] == SiteFailure(code="error", reason="the SuperLink did not take the request")


def test_a_site_is_sent_what_it_lacks_in_the_same_exchange_and_nothing_twice() -> None:
    held: dict[str, bytes] = {}
    sizes: list[int] = []

    class Store:
        find = staticmethod(held.get)
        keep = staticmethod(held.__setitem__)

    def site(message: Message) -> Message:
        record = message.content[RECORD_NAME]
        sizes.append(len(record["payload"]))
        try:
            asked = RoundRequest.decode(record["body"], record["payload"], store=Store())
        except PartsLackingError as lacking:
            return carry(message, *RoundReply.of_lacking(lacking, site="north").encode())
        head = {name: getattr(asked, name) for name in ("kind", "run", "round", "nonce")}
        return carry(message, *RoundReply(**head, site="north").encode())

    federation = FlowerFederation(DirectGrid({"north": site}))
    asked = {"north": request("north", arrays={"anchor": torch.ones(100), "w": torch.zeros(3)})}
    following = {"north": request("north", arrays={"anchor": torch.ones(100), "w": torch.ones(3)}, round=3)}

    def ask(what: dict[str, RoundRequest]) -> RoundReply:
        reply = federation.exchange(what, deadline_seconds=5)["north"]
        assert isinstance(reply, RoundReply)
        assert not reply.lacks
        return reply

    ask(asked)
    ask(following)
    assert len(sizes) == 2
    assert sizes[0] > 500
    assert sizes[1] < 150  # only the new array
    held.clear()  # its disk was wiped
    sizes.clear()
    ask(following)
    assert len(sizes) == 2
    assert sizes[0] == 0
    assert sizes[1] > 500


def test_a_site_that_goes_on_lacking_what_it_was_sent_fails_and_does_not_hold_up_the_round() -> None:
    def lacking(message: Message) -> Message:
        body, payload = message.content[RECORD_NAME]["body"], message.content[RECORD_NAME]["payload"]
        asked = RoundRequest.decode(body, payload)
        error = PartsLackingError(asked.parts.values())
        error.head = {name: getattr(asked, name) for name in ("kind", "run", "round", "nonce")}
        return carry(message, *RoundReply.of_lacking(error, site="bad").encode())

    results = exchange({"bad": lacking, "north": echo("north")})
    assert results["bad"].code == "error"
    assert "lacks" in results["bad"].reason
    assert isinstance(results["north"], RoundReply)
