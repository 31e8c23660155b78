"""A run followed live, through a real server and the real gateway: nothing missed, nothing twice, nothing left open."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from server import gateway, runs
from server.api import run_events
from server.api.app import create_app
from server.cli.study import app as study_command
from server.gateway import Gateway
from server.keys import create_key
from server.round_records import complete_run


class Starter:
    def start(self, run_id: str) -> str:
        return f"flower-{run_id}"

    def admit_sites(self) -> None:
        pass


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A real server on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def ready(scenario):
    scenario.register()
    scenario.enrol()
    return scenario


@pytest.fixture
def api(ready, monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr(run_events, "LOOK_SECONDS", 0.05)
    app = create_app(store=ready.store, starter=Starter())
    with serving(app) as url:
        yield url, app


def login(store: Any, role: str = "operator") -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(store, role=role, owner='olga').text}"}


class Follower:
    """Reads events in a thread, as they come."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self.comments = 0
        self._client = httpx.Client(timeout=20)
        self._url, self._headers = url, headers
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        with closing(self._client), self._client.stream("GET", self._url, headers=self._headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    self.events.append((fields["id"], fields["event"], json.loads(fields["data"])))
                    fields = {}

    def of(self, name: str) -> list[Any]:
        return [content for _, event, content in self.events if event == name]


def test_a_run_is_followed_from_its_queue_to_its_release(ready, api) -> None:
    url, app = api
    run = runs.create_run(ready.store, "heart", started_by="olga").id
    follower = Follower(f"{url}/v1/runs/{run}/events", login(ready.store, "auditor"))
    wait_for(lambda: follower.of("state"))
    runs.start_running(ready.store, run)
    for number in (1, 2, 3):
        ready.record(run, number)
        wait_for(lambda number=number: len(follower.of("round")) == number)
    release = complete_run(ready.store, run, release_round=2)
    follower.thread.join(10)
    assert [one["round"] for one in follower.of("round")] == [1, 2, 3]
    assert {site["outcome"] for site in follower.of("round")[0]["sites"]} == {"accepted"}
    assert follower.of("sites")[-1][0]["spent_epsilon"]
    assert follower.of("state")[0]["state"] == "queued"
    assert follower.events[-1][1] == "end"
    assert follower.of("end") == [{"state": "completed", "reason": "", "release": release.digest}]
    texts = [one["text"] for one in follower.of("message")]
    assert texts == [message.text for message in runs.run_messages(ready.store, run)]
    wait_for(lambda: app.state.streams.count == 0)


def test_who_comes_back_misses_nothing_and_hears_nothing_twice(ready, api) -> None:
    url, _ = api
    run = ready.start()
    ready.record(run, 1)
    headers = login(ready.store)
    with httpx.stream("GET", f"{url}/v1/runs/{run}/events", headers=headers) as answer:
        last = next(line for line in answer.iter_lines() if line.startswith("event: round"))
        assert last
    runs.add_message(ready.store, run, "while nobody listened")
    ready.record(run, 2)
    first = Follower(f"{url}/v1/runs/{run}/events", headers)
    wait_for(lambda: len(first.of("round")) == 2)
    seen = next(
        number for number, event, content in first.events if event == "round" and content["round"] == 1
    )
    again = Follower(f"{url}/v1/runs/{run}/events", {**headers, "Last-Event-ID": seen})
    wait_for(lambda: again.of("round"))
    runs.finish_run(ready.store, run, "failed", reason="enough")
    for follower in (first, again):
        follower.thread.join(10)
    assert [one["round"] for one in again.of("round")] == [2]
    assert "while nobody listened" in [one["text"] for one in first.of("message")]
    assert [one["text"] for one in again.of("message")] == ["failed: enough"]


def test_streams_are_for_who_may_see_the_run_and_not_without_number(ready, api) -> None:
    url, app = api
    run = ready.start()
    place = f"{url}/v1/runs/{run}/events"
    assert httpx.get(place).status_code == 401
    assert httpx.get(place, headers=login(ready.store, "researcher")).status_code == 403
    headers = login(ready.store)
    assert httpx.get(f"{url}/v1/runs/run-none/events", headers=headers).status_code == 404
    bad = httpx.get(place, headers={**headers, "Last-Event-ID": "7"})
    assert bad.status_code == 422
    assert "send that of the last event" in bad.json()["detail"]
    followers = [Follower(place, headers) for _ in range(run_events.MAX_STREAMS_PER_KEY)]
    wait_for(lambda: all(one.of("state") for one in followers))
    refused = httpx.get(place, headers=headers)
    assert refused.status_code == 429
    assert "the most there may be" in refused.json()["detail"]
    runs.finish_run(ready.store, run, "failed")
    for one in followers:
        one.thread.join(10)
    wait_for(lambda: app.state.streams.count == 0)


def test_a_client_that_goes_away_frees_its_stream(ready, api) -> None:
    url, app = api
    run = ready.start()
    with httpx.stream("GET", f"{url}/v1/runs/{run}/events", headers=login(ready.store)) as answer:
        lines = answer.iter_lines()  # dropped at once, it would take the connection with it
        next(lines)
        assert app.state.streams.count == 1
    wait_for(lambda: app.state.streams.count == 0)


def test_silence_is_broken_by_comments_and_a_long_stream_ends_for_a_new_one(ready, api, monkeypatch) -> None:
    monkeypatch.setattr(run_events, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_events, "MAX_STREAM_SECONDS", 4.0)  # a busy machine is late
    url, _ = api
    follower = Follower(f"{url}/v1/runs/{ready.start()}/events", login(ready.store))
    follower.thread.join(10)
    assert not follower.thread.is_alive()
    assert follower.comments >= 3
    assert follower.of("end") == []


@pytest.fixture
def through_gateway(api) -> Iterator[str]:
    away = httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False)
    forward = httpx.AsyncClient(base_url=api[0], timeout=gateway.API_TIMEOUT, trust_env=False)
    with serving(Gateway(fleet=away, api=forward, body_bytes=2**20, requests_per_second=50)) as url:
        yield url


def test_events_pass_through_the_gateway_one_by_one_and_its_client_is_let_go(
    ready, api, through_gateway
) -> None:
    run = ready.start()
    follower = Follower(f"{through_gateway}/v1/runs/{run}/events", login(ready.store))
    wait_for(lambda: follower.of("state"))
    for number in (1, 2):
        ready.record(run, number)
        wait_for(lambda number=number: len(follower.of("round")) == number)  # now, not with the next
    with httpx.stream("GET", f"{through_gateway}/v1/runs/{run}/events", headers=login(ready.store)) as answer:
        lines = answer.iter_lines()  # dropped at once, it would take the connection with it
        next(lines)
        assert api[1].state.streams.count == 2
    wait_for(lambda: api[1].state.streams.count == 1)
    runs.finish_run(ready.store, run, "failed")
    follower.thread.join(10)
    assert follower.events[-1][1] == "end"


def test_the_gateway_cuts_an_event_stream_that_fell_silent(ready, through_gateway, monkeypatch) -> None:
    monkeypatch.setattr(gateway, "EVENT_IDLE_SECONDS", 0.3)
    run = ready.start()
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("GET", f"{through_gateway}/v1/runs/{run}/events", headers=login(ready.store)) as answer,
    ):
        answer.read()


@pytest.mark.parametrize("streams", [4, 0])
def test_the_command_line_follows_the_stream_and_asks_where_there_is_none(
    ready, api, monkeypatch, streams
) -> None:
    monkeypatch.setattr(run_events, "MAX_STREAMS_PER_KEY", streams)
    key = create_key(ready.store, role="operator", owner="olga").text
    run = ready.start()
    results: list[Any] = []

    def watch() -> None:
        results.append(CliRunner().invoke(study_command, ["watch", run, "--url", api[0], "--key", key]))

    watching = threading.Thread(target=watch)
    watching.start()
    ready.record(run, 1)
    runs.add_message(ready.store, run, "something [odd] happened")
    runs.finish_run(ready.store, run, "failed", reason="no quorum")
    watching.join(20)
    assert results[0].exit_code == 1
    assert results[0].output.count("something [odd] happened") == 1
    assert "the run is failed: no quorum" in results[0].output
    assert "north" in results[0].output
