"""The real stack: SuperLink with TLS and registered keys, SuperNodes, our workers; killed and restarted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.home import SiteHome
from client.processes import site_processes
from privacy.cli.supervisor import ProcessEvent, Supervisor
from server.flower_control import Control, ControlError
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
            if spec.name in {"superlink", "worker", "gateway"}
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

            def finished() -> bool:
                try:
                    return control.run_status(run_id).finished
                except ControlError:  # the SuperLink is being restarted
                    return False

            wait_for(finished, timeout_seconds)
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


@pytest.fixture(autouse=True)
def usual_plans(request: pytest.FixtureRequest) -> None:
    if "stack" in request.fixturenames:
        stack = request.getfixturevalue("stack")
        for site in stack.sites.values():
            stack.plan_site(site)


@pytest.mark.xdist_group("processes")
class TestFederationOfProcesses:
    def test_every_site_answers_every_round_through_the_real_stack(self, stack: Stack) -> None:
        run_id = stack.run(rounds=4)
        assert stack.finish(run_id) == "completed"
        assert [one["answers"] for one in stack.rounds()] == [dict.fromkeys(SITES, "ok")] * 4

    def test_a_site_runs_no_app_that_its_policy_does_not_allow_and_the_round_goes_on(
        self, stack: Stack
    ) -> None:
        north = stack.sites["north"]
        stack.plan_site(north, allowed=[])
        (north.path / "handled.txt").unlink(missing_ok=True)
        assert stack.finish(stack.run(rounds=1)) == "completed"
        answers = stack.rounds()[0]["answers"]
        assert answers["south"] == "ok"
        assert "policy does not allow" in answers["north"]
        assert not (north.path / "handled.txt").exists()
        assert stack.home.app_digest in (north.path / "refused.txt").read_text()

    def test_what_an_exception_says_stays_at_the_site(self, stack: Stack) -> None:
        stack.plan_site(stack.sites["north"], **{"raise": True})
        assert stack.finish(stack.run(rounds=1)) == "completed"
        answers = stack.rounds()[0]["answers"]
        assert answers["north"].startswith("error")
        assert "secret" not in answers["north"]
        for file in stack.home.path.rglob("*"):
            assert not file.is_file() or b"a patient's secret" not in file.read_bytes()
        assert "ValueError" in (stack.sites["north"].logs / "worker.log").read_text()

    def test_a_run_of_a_foreign_app_runs_nothing_at_the_coordinator(self, stack: Stack) -> None:
        ours = stack.home.app_bundle.read_bytes()
        page = zipfile.ZipFile(io.BytesIO(ours)).read("pyproject.toml")
        foreign = io.BytesIO()
        with zipfile.ZipFile(foreign, "w") as archive:
            archive.writestr("pyproject.toml", page + b"# not ours\n")
        try:
            stack.home.app_bundle.write_bytes(foreign.getvalue())
            with Control(stack.home) as control:
                run_id = control.start_run({"run": "r2"})
        finally:
            stack.home.app_bundle.write_bytes(ours)
        assert stack.finish(run_id).startswith("failed not this coordinator's app")

    @pytest.mark.slow
    def test_a_stopped_run_ends_promptly_and_the_next_one_runs(self, stack: Stack) -> None:
        for site in stack.sites.values():
            stack.plan_site(site, sleep_seconds=1.0)
        run_id = stack.run(rounds=100)
        wait_for(stack.rounds, 60)
        with Control(stack.home) as control:
            assert control.stop_run(run_id)
            assert control.run_status(run_id).state == "stopped"
            assert not control.stop_run(run_id)
        for site in stack.sites.values():
            stack.plan_site(site)
        assert stack.finish(stack.run(rounds=1)) == "completed"
        assert len(stack.rounds()) == 1

    def test_a_site_registers_once_under_its_key(self, stack: Stack) -> None:
        with Control(stack.home) as control:
            before = control.nodes()
            again = control.register_site("north", stack.sites["north"].node_public_key)
            assert control.nodes() == before
        assert again in {node.node_id for node in before if node.site == "north"}

    @pytest.mark.slow
    def test_a_killed_superlink_comes_back_and_the_run_completes(self, stack: Stack) -> None:
        for site in stack.sites.values():
            stack.plan_site(site, sleep_seconds=2.0)
        run_id = stack.run(rounds=3)
        wait_for(stack.rounds, 60)
        os.kill(stack.supervisors["coordinator"].pids["superlink"], signal.SIGKILL)
        assert stack.finish(run_id) == "completed"
        assert [one["answers"] for one in stack.rounds()] == [dict.fromkeys(SITES, "ok")] * 3

    @pytest.mark.slow
    def test_a_killed_worker_of_the_coordinator_ends_its_run_soon_and_the_next_one_runs(
        self, stack: Stack
    ) -> None:
        run_id = stack.run(rounds=1000)
        wait_for(stack.rounds, 60)
        killed = time.monotonic()
        os.kill(stack.supervisors["coordinator"].pids["worker"], signal.SIGKILL)
        assert stack.finish(run_id) == "failed the worker was killed"
        assert time.monotonic() - killed < 50  # Flower itself needs a minute
        assert stack.finish(stack.run(rounds=1)) == "completed"

    @pytest.mark.slow
    def test_a_killed_worker_fails_its_site_for_the_round_and_is_back_for_the_next(
        self, stack: Stack
    ) -> None:
        handled = stack.sites["north"].path / "handled.txt"
        handled.unlink(missing_ok=True)
        for site in stack.sites.values():
            stack.plan_site(site, sleep_seconds=2.0)
        run_id = stack.run(rounds=2, deadline_seconds=30.0)
        wait_for(handled.exists, 60)
        os.kill(stack.supervisors["north"].pids["worker"], signal.SIGKILL)
        assert stack.finish(run_id) == "completed"
        first, second = (one["answers"] for one in stack.rounds())
        assert first["north"].startswith("unavailable: the site's worker")
        assert second == dict.fromkeys(SITES, "ok")

    @pytest.mark.slow
    def test_a_killed_supernode_fails_its_site_for_the_round_and_no_other(self, stack: Stack) -> None:
        for site in stack.sites.values():
            stack.plan_site(site, sleep_seconds=2.0)
        (stack.sites["north"].path / "handled.txt").unlink(missing_ok=True)
        run_id = stack.run(rounds=1, deadline_seconds=15.0)
        wait_for((stack.sites["north"].path / "handled.txt").exists, 60)
        os.kill(stack.supervisors["north"].pids["supernode"], signal.SIGKILL)
        assert stack.finish(run_id) == "completed"
        answers = stack.rounds()[0]["answers"]
        assert answers["south"] == "ok"
        assert answers["north"].split(":")[0] in {"timeout", "unavailable"}

    @pytest.mark.slow
    def test_a_killed_supernode_is_let_in_again_and_its_worker_goes_on(self, stack: Stack) -> None:
        os.kill(stack.supervisors["north"].pids["supernode"], signal.SIGKILL)
        worker = stack.supervisors["north"].pids["worker"]
        with Control(stack.home) as control:
            online = lambda: {node.site for node in control.nodes() if node.status == "online"}  # noqa: E731
            wait_for(lambda: online() == {"south"}, 120)
            wait_for(lambda: online() == set(SITES), 120)
        assert stack.finish(stack.run(rounds=1)) == "completed"
        assert stack.rounds()[0]["answers"] == dict.fromkeys(SITES, "ok")
        assert stack.supervisors["north"].pids["worker"] == worker
