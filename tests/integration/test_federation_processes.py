"""The real stack: SuperLink with TLS and registered keys, SuperNodes, our workers; killed and restarted."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.home import SiteHome
from client.processes import site_processes
from privacy.cli.supervisor import ProcessEvent, Supervisor
from server.flower_adapter import Control
from server.home import CoordinatorHome
from server.processes import coordinator_processes

ECHO = Path(__file__).with_name("echo_federation.py")
STUDY: dict[str, Any] = {
    "name": "echo",
    "privacy": {"epsilon": 1.0, "delta": 1e-5},
    "measure": {"budget_share": 0.5},
    "refine": {"rounds": 9},
    "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
}
SITES = ("north", "south")


class Stack:
    """A coordinator and two sites that echo, each under its own supervisor."""

    def __init__(self, folder: Path) -> None:
        self.events: list[ProcessEvent] = []
        self.home = CoordinatorHome.create(folder / "coordinator")
        self.sites = {
            name: SiteHome.create(
                folder / name,
                name=name,
                superlink_address=self.home.superlink_address,
                ca_certificate=self.home.ca_certificate.read_bytes(),
                coordinator_key=self.home.verify_key.text,
                data_path="none.csv",
            )
            for name in SITES
        }
        for site in self.sites.values():
            self.plan_site(site)
        self.supervisors: dict[str, Supervisor] = {}

    def plan_site(self, site: SiteHome, **plan: Any) -> None:
        content = {"allowed": [self.home.app_digest], **plan}
        (site.path / "echo.json").write_text(json.dumps(content))

    def up(self) -> None:
        specs = [
            replace(spec, command=(sys.executable, str(ECHO), "coordinator"))
            if spec.name == "worker"
            else spec
            for spec in coordinator_processes(self.home)
            if spec.name != "api"
        ]
        self.start("coordinator", Supervisor(specs, self.home.logs))
        for name, site in self.sites.items():
            specs = [
                replace(spec, command=(sys.executable, str(ECHO), "site")) if spec.name == "worker" else spec
                for spec in site_processes(site)
            ]
            self.start(name, Supervisor(specs, site.logs))
        self.supervisors["coordinator"].wait_until_ready(90)
        with Control(self.home) as control:
            for name, site in self.sites.items():
                control.register_site(name, site.node_public_key)
        for name in self.sites:
            self.supervisors[name].wait_until_ready(90)

    def start(self, name: str, supervisor: Supervisor) -> None:
        self.supervisors[name] = supervisor
        supervisor.start(on_event=self.events.append)

    def down(self) -> None:
        for supervisor in self.supervisors.values():
            supervisor.stop()

    def run(self, **plan: Any) -> int:
        (self.home.path / "rounds.jsonl").unlink(missing_ok=True)
        content = {"sites": list(self.sites), "study": STUDY, "deadline_seconds": 90.0, **plan}
        (self.home.path / "echo.json").write_text(json.dumps(content))
        with Control(self.home) as control:
            return control.start_run({"run": "r1"})

    def rounds(self) -> list[dict[str, Any]]:
        file = self.home.path / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def finish(self, run_id: int, timeout_seconds: float = 150) -> str:
        with Control(self.home) as control:
            wait_for(lambda: control.run_status(run_id).finished, timeout_seconds)
            status = control.run_status(run_id)
        return f"{status.state} {status.detail}".strip()


def wait_for(condition: Callable[[], object], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def group_members(leaders: list[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) in leaders and entry.name.isdigit():
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
        started = [event.pid for event in stack.events if event.kind == "starting" and event.pid]
        assert group_members(started) == []


@pytest.mark.xdist_group("processes")
class TestFederationOfProcesses:
    def test_every_site_answers_every_round_through_the_real_stack(self, stack: Stack) -> None:
        run_id = stack.run(rounds=4)
        assert stack.finish(run_id) == "completed"
        assert [one["answers"] for one in stack.rounds()] == [dict.fromkeys(SITES, "ok")] * 4
        print([round(one["seconds"], 2) for one in stack.rounds()])
