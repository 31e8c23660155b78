"""The public port before real servers: what it lets through, what it refuses, and what an outage looks like."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from privacy.cli.proxies import LOOPBACK, without_proxy
from server import gateway_limits
from server.gateway import make_gateway, server_config
from server.gateway_check import check_gateway
from server.gateway_limits import RateLimit, timed
from server.home import CoordinatorHome

MEBIBYTE = 2**20


class Upstream:
    """Answers what it was asked, slowly or in pieces where the path says so; notes what it saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[dict[str, Any]] = []
        self.hung_up = threading.Event()
        self.go_on = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path, size, pieces = scope["path"], 0, 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.hung_up.set()
                return
            size, pieces = size + len(message["body"]), pieces + 1
            more = message.get("more_body", False)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        target = scope["raw_path"].decode()
        self.seen.append({"path": target, "headers": headers, "size": size, "pieces": pieces})
        if path.endswith("/long-poll"):
            while (await receive())["type"] != "http.disconnect":
                pass
            self.hung_up.set()
            return
        status = {"/v1/fleet/fails": 500, "/v1/fleet/refuses": 401, "/v1/fails": 500}.get(path, 200)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json"), (b"x-kept", b"1"), (b"keep-alive", b"9")],
            }
        )
        if path == "/v1/pieces":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            while not self.go_on.is_set():
                await asyncio.sleep(0.02)
            await send({"type": "http.response.body", "body": b"second"})
        elif path == "/v1/large":
            for _ in range(64):
                await send({"type": "http.response.body", "body": bytes(MEBIBYTE), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/v1/breaks":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            raise RuntimeError("broken on purpose")
        else:
            body = json.dumps({"by": self.name, "path": target, "size": size}).encode()
            await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[uvicorn.Server]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            assert thread.is_alive()
            time.sleep(0.02)
        yield server
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


class Front:
    """A gateway with both servers behind it."""

    def __init__(self, folder: Path) -> None:
        self.home = CoordinatorHome.create(folder / "lab")
        self.superlink, self.api = Upstream("superlink"), Upstream("api")
        self.trust = ssl.create_default_context(cafile=str(self.home.ca_certificate))

    def superlink_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.superlink,
            port=self.home.superlink_port,
            ssl_certfile=self.home.server_certificate,
            ssl_keyfile=self.home.server_key,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,  # the gateway keeps idle connections
        )

    def api_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.api,
            port=self.home.api_port,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )

    def client(self) -> httpx.Client:
        base = f"https://127.0.0.1:{self.home.gateway.port}"
        return httpx.Client(base_url=base, verify=self.trust, trust_env=False, timeout=30)

    def raw(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.home.gateway.port), timeout=20)
        return self.trust.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, head: bytes) -> tuple[int, bytes]:
        """What a request that no library would send is answered with."""
        with closing(self.raw()) as connection:
            connection.sendall(head)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()

    @contextmanager
    def gateway(self, **changes: Any) -> Iterator[None]:
        settings = self.home.gateway.model_copy(update=changes)
        home = CoordinatorHome(**{**self.home.__dict__, "gateway": settings})
        config = server_config(make_gateway(home), home)
        config.log_level = "critical"
        config.configure_logging()
        with serving(config):
            yield


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("front"))
    with serving(front.superlink_config()), serving(front.api_config()), front.gateway():
        yield front


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "front" in request.fixturenames:
        front = request.getfixturevalue("front")
        for upstream in (front.superlink, front.api):
            upstream.seen.clear()
            upstream.hung_up.clear()
            upstream.go_on.clear()


def test_the_fleets_calls_go_to_the_superlink_and_all_else_to_the_api(front: Front) -> None:
    with front.client() as client:
        assert client.post("/v1/fleet/pull-messages", content=b"abc").json() == {
            "by": "superlink",
            "path": "/v1/fleet/pull-messages",
            "size": 3,
        }
        assert client.get("/v1/runs?limit=3").json()["by"] == "api"
        assert client.post("/v1/control/start-run").json()["by"] == "api"
        assert client.post("/v1/runtime/acquire-task").json()["by"] == "api"
    assert len(front.superlink.seen) == 1


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/fleet/../control/start-run",
        b"/v1/fleet/../../v1/control/start-run",
        b"/v1/fleet/%2e%2e/control/start-run",
        b"/v1/fleet/..%2fcontrol%2fstart-run",
        b"/v1/fleet/./pull-messages",
        b"/v1/fleet//pull-messages",
        b"/v1/fleet/pull-messages/",
        b"/v1/fleet/pull-messages/..",
        b"/v1/fleet/pull-messages?x=1",
        b"/v1/fleet/pull-messages;x",
        b"/v1/fleet/",
        b"/v1/fleet",
        b"/v1/fleet/Pull-Messages",
    ],
)
def test_no_other_spelling_of_a_path_below_fleet_reaches_the_superlink(front: Front, target: bytes) -> None:
    status, _ = front.ask(b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert status == 404
    assert front.superlink.seen == front.api.seen == []


@pytest.mark.parametrize(
    "target",
    [b"/v1/./fleet/x", b"/v1/x/../fleet/pull-messages", b"//v1/fleet/x", b"/V1/fleet/x", b"/v1%2ffleet/x"],
)
def test_a_path_that_only_becomes_fleet_when_it_is_shortened_stays_with_the_api(
    front: Front, target: bytes
) -> None:
    front.ask(b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert front.superlink.seen == []


def test_an_address_that_is_no_path_and_a_get_of_a_fleet_call_are_refused(front: Front) -> None:
    assert front.ask(b"GET http://elsewhere/v1/fleet/x HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 400
    assert front.ask(b"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404
    assert front.superlink.seen == front.api.seen == []


def test_headers_of_one_connection_stay_there_and_nobody_says_for_himself_who_he_is(front: Front) -> None:
    told = {
        "connection": "close, x-private",
        "x-private": "1",
        "te": "trailers",
        "proxy-authorization": "Basic abc",
        "x-forwarded-for": "10.9.8.7",
        "forwarded": "for=10.9.8.7",
        "flwr-signature": "kept",
        "authorization": "Bearer kept",
    }
    with front.client() as client:
        answer = client.post("/v1/fleet/pull-messages", content=b"x", headers=told)
    passed = front.superlink.seen[0]["headers"]
    assert passed["flwr-signature"] == "kept"
    assert passed["authorization"] == "Bearer kept"
    assert passed["x-forwarded-for"] == "127.0.0.1"
    assert not {"x-private", "te", "proxy-authorization", "forwarded"} & set(passed)
    assert answer.headers["x-kept"] == "1"
    assert "keep-alive" not in answer.headers


def test_a_large_body_passes_in_pieces_and_whole(front: Front) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(128):
            yield bytes(65_536)

    with front.client() as client:
        assert client.post("/v1/fleet/push-object", content=pieces()).json()["size"] == 8 * MEBIBYTE
        assert (
            client.post("/v1/fleet/push-object", content=bytes(8 * MEBIBYTE)).json()["size"] == 8 * MEBIBYTE
        )
    chunked, announced = front.superlink.seen
    assert chunked["pieces"] > 8
    assert announced["headers"]["content-length"] == str(8 * MEBIBYTE)


def test_an_answer_arrives_as_it_is_made(front: Front) -> None:
    with front.client() as client, client.stream("GET", "/v1/pieces") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"first"  # the second is not made yet
        front.api.go_on.set()
        assert b"".join(parts) == b"second"


def test_an_answer_that_breaks_off_is_seen_as_broken(front: Front) -> None:
    with front.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/v1/breaks")


def test_a_cancellation_that_meets_what_was_awaited_is_not_lost() -> None:
    """`asyncio.wait_for` loses it before Python 3.12, and the client's place stayed taken for ever."""

    async def given_up() -> bool:
        taken = asyncio.get_running_loop().create_future()

        async def send(_: object) -> None:
            await taken

        async def forwarding() -> None:
            await timed(send)({"type": "http.response.body"})
            await asyncio.Event().wait()  # more would come, but nobody is there

        work = asyncio.create_task(forwarding())
        for _ in range(3):
            await asyncio.sleep(0)
        taken.set_result(None)
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work}, timeout=2)
        return work.cancelled()

    assert asyncio.run(given_up())


def test_a_long_poll_that_nobody_waits_for_is_given_up(front: Front) -> None:
    with closing(front.raw()) as connection:
        connection.sendall(b"POST /v1/fleet/long-poll HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        deadline = time.monotonic() + 20
        while not front.superlink.seen:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert front.superlink.hung_up.wait(20)


def test_a_superlink_that_fails_is_a_bad_gateway_and_its_refusals_pass(front: Front) -> None:
    with front.client() as client:
        assert client.post("/v1/fleet/fails").status_code == 502
        assert client.post("/v1/fleet/refuses").status_code == 401
        assert client.get("/v1/fails").status_code == 500  # the API's own words


def test_heads_are_bounded(front: Front) -> None:
    head = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    with suppress(ConnectionError, ssl.SSLError):  # it may be cut off while it still sends
        assert front.ask(head)[0] == 400
    assert front.api.seen == []


def test_the_check_finds_nothing_wrong(front: Front) -> None:
    assert check_gateway(front.home) is None


def test_a_port_without_anybody_behind_it_answers_502_and_is_well_again(tmp_path: Path) -> None:
    front = Front(tmp_path)
    assert "does not answer" in str(check_gateway(front.home))
    with front.gateway(), front.client() as client:
        for _ in range(2):
            assert client.post("/v1/fleet/pull-messages", content=b"abc").status_code == 502
            assert client.get("/v1/health").status_code == 502
            assert "502" in str(check_gateway(front.home))
            with serving(front.superlink_config()), serving(front.api_config()):
                assert client.post("/v1/fleet/pull-messages", content=b"abc").status_code == 200
                assert client.get("/v1/health").status_code == 200


def test_a_body_beyond_the_limit_is_refused_announced_or_not(tmp_path: Path) -> None:
    front = Front(tmp_path)

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(MEBIBYTE // 2)

    with serving(front.superlink_config()), front.gateway(body_bytes=2 * MEBIBYTE), front.client() as client:
        assert client.post("/v1/fleet/push-object", content=bytes(2 * MEBIBYTE)).status_code == 200
        for content in (bytes(2 * MEBIBYTE + 1), pieces()):
            try:
                assert client.post("/v1/fleet/push-object", content=content).status_code == 413
            except httpx.TransportError:
                assert not isinstance(content, bytes)  # closed while it still sent: nothing passed either
    assert [one["size"] for one in front.superlink.seen] == [2 * MEBIBYTE]


def test_a_client_that_asks_too_often_waits_and_a_supernode_takes_it_for_an_outage(tmp_path: Path) -> None:
    front = Front(tmp_path)
    with (
        serving(front.superlink_config()),
        serving(front.api_config()),
        front.gateway(requests_per_second=0.5),
        front.client() as client,
    ):
        answers = [client.get("/v1/health") for _ in range(4)]
        assert [one.status_code for one in answers] == [200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert client.post("/v1/fleet/pull-messages").status_code == 503


def test_a_trusted_proxy_says_who_the_client_is(tmp_path: Path) -> None:
    front = Front(tmp_path)
    with (
        serving(front.api_config()),
        front.gateway(requests_per_second=0.25, trusted_proxies=("127.0.0.1",)),
        front.client() as client,
    ):
        codes = [
            client.get("/v1/health", headers={"x-forwarded-for": address}).status_code
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
        ]
    assert codes == [200, 200, 429]


def test_clients_that_send_too_slowly_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_limits, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(gateway_limits.TimedHeadProtocol, "head_seconds", 0.3)
    front = Front(tmp_path)
    with serving(front.superlink_config()), front.gateway():
        silent, half, second = front.raw(), front.raw(), front.raw()
        half.sendall(b"GET /v1/health HTTP/1.1\r\nHost")
        second.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        answer = http.client.HTTPResponse(second)
        answer.begin()
        assert answer.read()
        second.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nHost")  # and no more
        for connection in (silent, half, second):
            with closing(connection), suppress(ConnectionError, ssl.SSLError):
                assert connection.recv(1) == b""
        head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
        assert front.ask(head)[0] == 408


def test_a_process_of_its_own_holds_no_body_in_memory(tmp_path: Path) -> None:
    front = Front(tmp_path)
    environment = {**os.environ, "FEDTWIN_HOME": str(front.home.path)}
    process = subprocess.Popen([sys.executable, "-m", "server.gateway"], env=environment)

    def peak_bytes() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    try:
        with serving(front.superlink_config()), serving(front.api_config()), front.client() as client:
            deadline = time.monotonic() + 60
            while check_gateway(front.home) is not None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            client.post("/v1/fleet/push-object", content=bytes(MEBIBYTE))
            before = peak_bytes()
            size = client.post("/v1/fleet/push-object", content=(bytes(65_536) for _ in range(1024))).json()[
                "size"
            ]
            assert size == 64 * MEBIBYTE
            with client.stream("GET", "/v1/large") as answer:
                pieces = answer.iter_raw()
                size = len(next(pieces))
                time.sleep(1.0)  # a client that takes its time
                assert size + sum(map(len, pieces)) == 64 * MEBIBYTE
            assert peak_bytes() - before < 16 * MEBIBYTE
    finally:
        process.terminate()
        assert process.wait(30) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("missing", ["certs/ca.crt", "keys/server.key"])
def test_a_gateway_without_its_keys_does_not_start(tmp_path: Path, missing: str) -> None:
    front = Front(tmp_path)
    (front.home.path / missing).unlink()
    with pytest.raises(OSError, match="No such file"):
        server_config(make_gateway(front.home), front.home).load()


class TestRateLimit:
    def test_a_burst_passes_then_the_rate(self) -> None:
        now = 0.0
        limit = RateLimit(10, burst_seconds=2, clock=lambda: now)
        assert [limit.wait_seconds("192.0.2.1") for _ in range(20)] == [0.0] * 20
        assert limit.wait_seconds("192.0.2.1") == pytest.approx(0.1)
        assert limit.wait_seconds("192.0.2.2") == 0.0
        now = 0.11
        assert limit.wait_seconds("192.0.2.1") == 0.0
        assert limit.wait_seconds("192.0.2.1") > 0.0

    def test_addresses_of_one_ipv6_network_are_one_client(self) -> None:
        limit = RateLimit(1, burst_seconds=1, clock=lambda: 0.0)
        assert limit.wait_seconds("2001:db8::1") == 0.0
        assert limit.wait_seconds("2001:db8::ffff:2") > 0.0
        assert limit.wait_seconds("2001:db8:0:1::1") == 0.0
        assert limit.wait_seconds("::ffff:192.0.2.1") == 0.0
        assert limit.wait_seconds("192.0.2.1") > 0.0

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway_limits, "MAX_ADDRESSES", 100)
        limit = RateLimit(1, clock=lambda: 0.0)
        for number in range(1000):
            limit.wait_seconds(f"192.0.{number // 250}.{number % 250}")
        assert len(limit._left) == 100


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, []),
        ({"NO_PROXY": "a.example, b.example"}, ["a.example", "b.example"]),
        ({"NO_PROXY": "a.example", "no_proxy": "b.example"}, ["b.example"]),
        ({"no_proxy": "localhost"}, []),
    ],
)
def test_this_machine_is_never_asked_for_through_a_proxy(given: dict[str, str], kept: list[str]) -> None:
    made = without_proxy(given)
    assert made["NO_PROXY"] == made["no_proxy"]
    hosts = made["no_proxy"].split(",")
    assert hosts[: len(kept)] == kept
    assert set(LOOPBACK) <= set(hosts)
    assert len(set(hosts)) == len(hosts)
