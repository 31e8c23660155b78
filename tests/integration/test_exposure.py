"""The public port before a real SuperLink; sites that can go out by HTTPS through their hospital's proxy only."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from client.home import SiteHome
from client.processes import site_processes
from privacy.cli.supervisor import Supervisor
from server.certificates import Certificates, make_certificates
from server.flower_control import Control, ControlError
from server.gateway_check import check_gateway
from server.home import CoordinatorHome
from server.processes import coordinator_processes

# No machine here resolves it: whoever gets there has asked the proxy.
HOST = "coordinator.example.org"


class HospitalProxy:
    """A proxy that answers CONNECT for the coordinator only; one with certificates of its own reads along.

    Args:
        home: whose gateway stands behind HOST:443.
        inspects: the hospital's authority and its certificate for HOST.
        folder: for those certificates.
    """

    def __init__(self, home: CoordinatorHome, folder: Path, inspects: Certificates | None = None) -> None:
        self.asked: list[str] = []
        self.num_bytes = 0  # from sites
        self._gateway_port = home.gateway.port
        self._outside = ssl.create_default_context(cafile=str(home.ca_certificate))
        self._inside: ssl.SSLContext | None = None
        if inspects is not None:
            file = folder / "inspecting.pem"
            file.write_bytes(inspects.server_key + inspects.server_certificate)
            self._inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._inside.load_cert_chain(file)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> HospitalProxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            asked = head.split("\r\n")[0]
            self.asked.append(asked)
            if not asked.startswith(f"CONNECT {HOST}:443 "):
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
            trust = None if self._inside is None else self._outside
            name = None if trust is None else HOST
            far = await asyncio.open_connection(
                "127.0.0.1", self._gateway_port, ssl=trust, server_hostname=name
            )
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            if self._inside is not None:
                await writer.start_tls(self._inside)
            await asyncio.gather(self._pump(reader, far[1], count=True), self._pump(far[0], writer))
        writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False
    ) -> None:
        with suppress(OSError, ssl.SSLError):
            while piece := await reader.read(65_536):
                self.num_bytes += len(piece) if count else 0
                writer.write(piece)
                await writer.drain()
        writer.close()


def wait_for(condition: Callable[[], object], timeout_seconds: float = 120) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Exposed:
    """A coordinator whose worker and jobs are left out, and SuperNodes behind proxies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = CoordinatorHome.create(folder / "lab", superlink_address=f"{HOST}:443")
        self.supervisors: dict[str, Supervisor] = {}

    def up(self) -> None:
        wanted = {"superlink", "gateway", "api"}
        specs = [spec for spec in coordinator_processes(self.home) if spec.name in wanted]
        self._start("coordinator", specs, self.home.logs)
        self.supervisors["coordinator"].wait_until_ready(120)

    def site_up(self, name: str, proxy: HospitalProxy, further_authority: bytes = b"") -> None:
        site = SiteHome.create(
            self.folder / name,
            name=name,
            superlink_address=self.home.superlink_address,
            ca_certificate=self.home.ca_certificate.read_bytes() + further_authority,
            coordinator_key=self.home.verify_key.text,
            data_path="none.csv",
        )
        with Control(self.home) as control:
            control.register_site(name, site.node_public_key)
        specs = [
            replace(spec, environment={**spec.environment, "HTTPS_PROXY": proxy.url, "HTTP_PROXY": proxy.url})
            for spec in site_processes(site)
            if spec.name == "supernode"
        ]
        self._start(name, specs, site.logs)

    def _start(self, name: str, specs: list, logs: Path) -> None:
        self.supervisors[name] = Supervisor(specs, logs)
        self.supervisors[name].start()

    def online(self) -> set[str]:
        with suppress(ControlError), Control(self.home) as control:
            return {node.site for node in control.nodes() if node.status == "online"}
        return set()

    def ask(self, method: str, path: str) -> httpx.Response:
        trust = ssl.create_default_context(cafile=str(self.home.ca_certificate))
        with httpx.Client(verify=trust, trust_env=False, timeout=20) as client:
            return client.request(method, f"https://127.0.0.1:{self.home.gateway.port}{path}")

    def down(self) -> None:
        for supervisor in self.supervisors.values():
            supervisor.stop()


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    exposed = Exposed(tmp_path_factory.mktemp("exposed"))
    try:
        exposed.up()
        yield exposed
    finally:
        exposed.down()


@pytest.mark.xdist_group("exposure")
class TestExposure:
    def test_the_public_port_serves_the_api_and_the_fleet(self, exposed: Exposed) -> None:
        assert check_gateway(exposed.home) is None
        assert exposed.ask("GET", "/v1/health").json()["status"] == "ok"
        # The SuperLink itself says that this is no node's message.
        assert exposed.ask("POST", "/v1/fleet/pull-messages").status_code in {400, 401, 415, 422}

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/../control/x",
        ],
    )
    def test_nothing_else_of_the_superlink_is_there(self, exposed: Exposed, path: str) -> None:
        assert exposed.ask("POST", path).status_code == 404

    def test_flowers_own_control_client_cannot_start_anything_through_it(self, exposed: Exposed) -> None:
        with Control(exposed.home) as inside:
            assert isinstance(inside.nodes(), list)
        outside = replace(exposed.home, superlink_port=exposed.home.gateway.port)
        with Control(outside) as control:
            for call in (control.nodes, lambda: control.start_run({"run": "r1"})):
                with pytest.raises(ControlError, match="404"):
                    call()

    def test_the_superlink_listens_on_loopback_only(self, exposed: Exposed) -> None:
        listening = f":{exposed.home.superlink_port:04X}"
        own = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            if Path(f"/proc/net/{table}").exists()
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[1].endswith(listening) and line.split()[3] == "0A"
        ]
        assert own == [f"0100007F{listening}"]

    def test_sites_behind_proxies_join_and_outlive_a_killed_superlink(self, exposed: Exposed) -> None:
        hospital = make_certificates("hospital", [HOST])
        with (
            HospitalProxy(exposed.home, exposed.folder) as plain,
            HospitalProxy(exposed.home, exposed.folder, inspects=hospital) as reads_along,
        ):
            exposed.site_up("north", plain)
            exposed.site_up("south", reads_along, further_authority=hospital.ca_certificate)
            wait_for(lambda: exposed.online() == {"north", "south"})
            assert {asked.rpartition(" ")[0] for asked in plain.asked + reads_along.asked} == {
                f"CONNECT {HOST}:443"  # and nothing of this machine's own calls
            }

            nodes = {name: exposed.supervisors[name].pids for name in ("north", "south")}
            os.kill(exposed.supervisors["coordinator"].pids["superlink"], signal.SIGKILL)
            seen = []

            def is_back() -> bool:
                seen.append(exposed.ask("POST", "/v1/fleet/pull-messages").status_code)
                return 502 in seen and seen[-1] < 500

            wait_for(is_back)
            assert not {500, 404} & set(seen)
            before = plain.num_bytes, reads_along.num_bytes
            wait_for(lambda: plain.num_bytes > before[0] and reads_along.num_bytes > before[1])
            assert exposed.online() == {"north", "south"}
            assert {name: exposed.supervisors[name].pids for name in nodes} == nodes
            for name in nodes:
                exposed.supervisors[name].stop()
