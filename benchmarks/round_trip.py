"""Seconds per round that computes nothing: our warm workers beside Flower's stock executor, same machine, same run.

    python benchmarks/round_trip.py [--sites 3] [--rounds 8] [--json]

Both stacks are real and equal up to the executor: SuperLink with TLS, registered keys, a database file and process
isolation, one SuperNode per site. The stock one starts a process per message, which imports torch and opacus as a
site's training must, and its ServerApp uses `Grid.send_and_receive`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.home import SiteHome
from client.processes import site_processes
from privacy.cli.supervisor import ProcessSpec, Supervisor
from server.flower_control import Control
from server.home import CoordinatorHome
from server.processes import coordinator_processes

ECHO = Path(__file__).resolve().parents[1] / "tests" / "integration" / "echo_federation.py"
SCRIPTS = Path(sysconfig.get_path("scripts"))
TARGET = 0.40
STUDY: dict[str, Any] = {
    "name": "no-op",
    "privacy": {"epsilon": 1.0, "delta": 1e-5},
    "measure": {"budget_share": 0.5},
    "refine": {"rounds": 99},
    "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
}
STOCK_PAGE = """\
[project]
name = "roundtrip"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedtwin"
[tool.flwr.app.components]
serverapp = "stock_app:server"
clientapp = "stock_app:client"
[tool.flwr.app.config]
run = ""
"""
STOCK_APP = """\
import json, os, time
import opacus, torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client, server = ClientApp(), ServerApp()

@client.train("refine")
def refine(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    home = os.environ["FEDTWIN_HOME"]
    plan = json.load(open(f"{home}/echo.json"))
    while len(list(grid.get_node_ids())) < len(plan["sites"]):
        time.sleep(0.1)
    for number in range(1, plan["rounds"] + 1):
        started = time.time()
        content = RecordDict({"arrays": ArrayRecord([torch.arange(4.0).numpy()])})
        messages = [
            Message(content, dst_node_id=node, message_type="train.refine") for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages, timeout=plan["deadline_seconds"]))
        answers = {str(n): "error" if one.has_error() else "ok" for n, one in enumerate(replies)}
        entry = {"round": number, "started": started, "ended": time.time(), "answers": answers}
        with open(f"{home}/rounds.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\\n")
"""


class Stack:
    """A coordinator and its sites, with our executor or with Flower's."""

    def __init__(self, folder: Path, num_sites: int, *, stock: bool) -> None:
        self.home = CoordinatorHome.create(folder / "coordinator")
        self.sites = [self._site(folder, f"site-{number}") for number in range(1, num_sites + 1)]
        self.supervisors: list[Supervisor] = []
        self.stock = stock
        if stock:
            self.home.app_bundle.write_bytes(_stock_bundle())

    def _site(self, folder: Path, name: str) -> SiteHome:
        site = SiteHome.create(
            folder / name,
            name=name,
            superlink_address=self.home.superlink_address,
            ca_certificate=self.home.ca_certificate.read_bytes(),
            coordinator_key=self.home.verify_key.text,
            data_path="none.csv",
        )
        (site.path / "echo.json").write_text(json.dumps({"allowed": [self.home.app_digest]}))
        return site

    def measure(self, num_rounds: int) -> list[dict[str, Any]]:
        """Run rounds and return what each recorded."""
        try:
            self._up()
            plan = {
                "sites": [site.name for site in self.sites],
                "study": STUDY,
                "rounds": num_rounds,
                "deadline_seconds": 120.0,
            }
            (self.home.path / "echo.json").write_text(json.dumps(plan))
            with Control(self.home) as control:
                run_id = control.start_run({"run": "bench"})
                finished = False
                while not finished:
                    time.sleep(0.5)
                    for supervisor in self.supervisors:
                        supervisor.check()
                    status = control.run_status(run_id)
                    finished = status.finished
            if status.state != "completed":
                raise SystemExit(f"the run {status.state}: {status.detail}")
        finally:
            for supervisor in self.supervisors:
                supervisor.stop()
        rounds = [json.loads(line) for line in (self.home.path / "rounds.jsonl").read_text().splitlines()]
        if any(list(one["answers"].values()) != ["ok"] * len(self.sites) for one in rounds):
            raise SystemExit(f"a site failed: {rounds}")
        return rounds

    def handled(self) -> dict[int, list[float]]:
        """When each site's handler was called, by round; ours only."""
        calls: dict[int, list[float]] = {}
        for site in self.sites:
            for line in (site.path / "handled.txt").read_text().splitlines():
                number, at = line.split()
                calls.setdefault(int(number), []).append(float(at))
        return calls

    def _up(self) -> None:
        self._start(coordinator_processes(self.home), self.home.logs, "coordinator", self._stock_superexec())
        for site in self.sites:
            executor = self._stock_superexec(site)
            self._start(site_processes(site), site.logs, "site", executor)
        self.supervisors[0].wait_until_ready(120)
        with Control(self.home) as control:
            for site in self.sites:
                control.register_site(site.name, site.node_public_key)
        for supervisor in self.supervisors:
            supervisor.wait_until_ready(120)

    def _start(self, specs: list[ProcessSpec], logs: Path, role: str, executor: tuple[str, ...]) -> None:
        changed = []
        for spec in specs:
            if spec.name == "worker" and self.stock:
                path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
                environment = {**spec.environment, "PATH": path}
                changed.append(replace(spec, command=executor, environment=environment, ready_line=None))
            elif spec.name == "worker":
                changed.append(replace(spec, command=(sys.executable, str(ECHO), role)))
            elif spec.name == "supernode" and self.stock:
                changed.append(replace(spec, command=(str(SCRIPTS / "flower-supernode"), *spec.command[3:])))
            elif spec.name in {"superlink", "gateway", "supernode"}:
                changed.append(spec)
        supervisor = Supervisor(changed, logs)
        self.supervisors.append(supervisor)
        supervisor.start()

    def _stock_superexec(self, site: SiteHome | None = None) -> tuple[str, ...]:
        command = str(SCRIPTS / "flower-superexec")
        if site is None:
            return (
                *(command, "--root-certificates", str(self.home.ca_certificate)),
                *("--runtime-api-address", f"127.0.0.1:{self.home.superlink_port}"),
                *("--superexec-auth-secret-file", str(self.home.superexec_secret)),
            )
        return (
            *(command, "--insecure", "--runtime-api-address", f"127.0.0.1:{site.supernode_port}"),
            *("--superexec-auth-secret-file", str(site.worker_secret)),
        )


def _stock_bundle() -> bytes:
    from flwr.cli.build import build_fab_from_files

    bundle, _ = build_fab_from_files(
        {"pyproject.toml": STOCK_PAGE.encode(), "stock_app.py": STOCK_APP.encode()}
    )
    return bundle


def summary(rounds: list[Mapping[str, Any]]) -> dict[str, float]:
    """Median, quickest and slowest round, without the first, which starts whatever is not warm."""
    seconds = [one["ended"] - one["started"] for one in rounds[1:]]
    return {
        "first": rounds[0]["ended"] - rounds[0]["started"],
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.sites < 1:
        parser.error("--rounds must be 2 or more, --sites 1 or more")
    console = Console(width=None if sys.stdout.isatty() else 110)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        for label, stock in (("fedtwin", False), ("stock", True)):
            status.update(f"{label}: {arguments.rounds} rounds over {arguments.sites} sites")
            stack = Stack(Path(folder) / label, arguments.sites, stock=stock)
            rounds = stack.measure(arguments.rounds)
            results[label] = summary(rounds)
            if not stock:
                calls = stack.handled()
                there = [max(calls[one["round"]]) - one["started"] for one in rounds[1:]]
                back = [one["ended"] - max(calls[one["round"]]) for one in rounds[1:]]
                results[label]["until the last site began"] = statistics.median(there)
                results[label]["from there to the end"] = statistics.median(back)
    share = results["fedtwin"]["median"] / results["stock"]["median"]
    if arguments.json:
        figures = {"sites": arguments.sites, "seconds": results, "share_of_stock": share, "target": TARGET}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    _show(console, results, share, arguments.sites)
    sys.exit(0 if share <= TARGET else 1)


def _show(console: Console, results: Mapping[str, Mapping[str, float]], share: float, sites: int) -> None:
    table = Table(title=f"Seconds per round without work, {sites} sites")
    for column in ("executor", "median", "quickest", "slowest", "first round", "of stock"):
        table.add_column(column, justify="left" if column == "executor" else "right")
    for label, row in results.items():
        part = f"{share:.0%}" if label == "fedtwin" else "100%"
        cells = [f"{row[key]:.2f}" for key in ("median", "min", "max", "first")]
        table.add_row("our warm workers" if label == "fedtwin" else "Flower's stock executor", *cells, part)
    console.print(table)
    ours = results["fedtwin"]
    console.print(
        f"Of ours, {ours['until the last site began']:.2f} s pass until the last site's handler is called "
        f"(SuperNodes' and workers' polls) and {ours['from there to the end']:.2f} s from there to the last reply."
    )


if __name__ == "__main__":
    main()
