"""`kill -9` of each process at each phase of a run: it completes, nothing is debited twice, everything verifies.

The processes are those of `fedtwin server up` and `fedtwin site up`, under their own supervisors. The phase is told
from what the run leaves on disk: the coordinator's row of it, and the hospitals' records.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from client.guard import Guard
from client.home import SiteHome
from client.policy import load_policy, policy_text
from client.processes import site_processes
from models.study import Study
from privacy.cli.supervisor import Supervisor
from privacy.verification import audit_export
from server import ledger_store, sites, studies
from server.flower_control import Control, ControlError
from server.home import CoordinatorHome
from server.keys import create_key
from server.processes import coordinator_processes
from server.store import Store

SITES = ("north", "south", "west")
ROUNDS = 4
STUDY: dict[str, Any] = {
    "privacy": {"epsilon": 60.0, "delta": 1e-5},
    "measure": {"budget_share": 0.5, "noise_multiplier": 2.0},
    "warm_start": {"components": 20, "steps": 30},
    "refine": {
        **{"rounds": ROUNDS - 2, "steps": 40, "num_judged": 20_000, "hidden_width": 16},
        **{"sample_rate": 0.05, "noise_multiplier": 2.0},
    },
    "federation": {
        "patients_per_site": 320,
        "quorum": 2,
        "round_deadline_seconds": 120.0,
        "grace_seconds": 2.0,
    },
    "table": {
        "label": "ill",
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "bins": 10},
            {"name": "sex", "kind": "categorical", "categories": ["f", "m"]},
            {"name": "ill", "kind": "boolean"},
        ],
    },
}


def patients(seed: int, count: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.integers(0, 100, count)
    return pd.DataFrame({"age": age, "sex": rng.choice(["f", "m"], count), "ill": age > 60})


class Federation:
    """A coordinator and its hospitals, each under its own supervisor."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.home = CoordinatorHome.create(folder / "coordinator")
        self.store = Store.open(self.home)
        self.key = create_key(self.store, role="operator", owner="olga").text
        self.sites = {name: self._enrol(folder, name, seed) for seed, name in enumerate(names)}
        one_thread = {"OMP_NUM_THREADS": "1"}
        specs = {
            "coordinator": (coordinator_processes(self.home), self.home.logs),
            **{name: (site_processes(site), site.logs) for name, site in self.sites.items()},
        }
        self.supervisors = {
            name: Supervisor(
                [
                    replace(spec, environment={**spec.environment, **one_thread}, max_failures=None)
                    for spec in found
                ],
                logs,
            )
            for name, (found, logs) in specs.items()
        }
        self.api = httpx.Client(
            base_url=f"{self.home.api_url}/v1", headers={"Authorization": f"Bearer {self.key}"}, timeout=30
        )
        self._num_studies = 0

    def _enrol(self, folder: Path, name: str, seed: int) -> SiteHome:
        data = folder / f"{name}.parquet"
        patients(seed).to_parquet(data)
        site = SiteHome.create(
            folder / name,
            name=name,
            superlink_address=self.home.superlink_address,
            ca_certificate=self.home.ca_certificate.read_bytes(),
            coordinator_key=self.home.verify_key.text,
            data_path=data,
            data_kind="parquet",
        )
        site.policy_file.write_text(
            policy_text(
                epsilon_per_run=1e4,
                epsilon_per_study=1e4,
                epsilon_total=1e4,
                max_delta=1e-5,
                min_patients=20,
                app_digests=[self.home.app_digest],
                approval="automatic",
            )
        )
        sites.enrol_site(
            self.store,
            name=name,
            receipt_key=site.receipt_key().public.text,
            node_public_key=site.node_public_key,
            policy=load_policy(site.policy_file).to_dict(),
        )
        return site

    def up(self) -> None:
        for supervisor in self.supervisors.values():
            supervisor.start()
        for supervisor in self.supervisors.values():
            supervisor.wait_until_ready(120)
        self.wait_until_all_online()

    def wait_until_all_online(self) -> None:
        def online() -> bool:
            with suppress(ControlError), Control(self.home) as control:
                return {n.site for n in control.nodes() if n.status == "online"} == set(self.sites)
            return False

        wait_for(online, 150, "a hospital's node did not come back", pause=0.2)

    def down(self) -> None:
        for supervisor in self.supervisors.values():
            supervisor.stop()
        self.api.close()
        self.store.close()

    def start_run(self, **changes: Any) -> Run:
        self._num_studies += 1
        study = Study.from_dict({"name": f"study-{self._num_studies}", **STUDY, **changes})
        studies.register_study(self.store, study, created_by="olga")
        return Run(self, str(self.call("POST", "/runs", json={"study": study.name})["id"]))

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """A call that is made again while the API is being restarted."""
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self.api.request(method, path, **options)
                if answer.status_code < 500:
                    return dict(answer.raise_for_status().json())
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"no answer to {method} {path}"
            time.sleep(0.1)

    def is_up(self, party: str, process: str) -> bool:
        """Whether it runs; one that was killed often is started again only after a pause."""
        return process in self.supervisors[party].pids

    def kill(self, party: str, process: str) -> None:
        os.kill(self.supervisors[party].pids[process], signal.SIGKILL)

    def audit(self) -> None:
        """The ledger as an auditor checks it, and every hospital's own record."""
        files = dict(ledger_store.export_files(self.store))
        audit_export(files.get, key=self.home.verify_key, quorum=1).raise_for_problems()
        for site in self.sites.values():
            Guard(site.record_file, load_policy(site.policy_file)).verify()


class Run:
    """One run, and what it has left on disk so far."""

    def __init__(self, federation: Federation, run_id: str) -> None:
        self.federation = federation
        self.id = run_id

    def row(self) -> dict[str, Any]:
        database = str(self.federation.store.database.engine.url.database)
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            query = (
                "SELECT state, phase, (SELECT COALESCE(MAX(round), 0) FROM rounds WHERE run = runs.id) FROM runs "
                "WHERE id = ?"
            )
            state, phase, recorded = connection.execute(query, (self.id,)).fetchone()
        return {"state": state, "phase": phase, "recorded": recorded}

    def entries(self, site: str, kind: str) -> list[int]:
        """Rounds that a hospital's record names for this run, in one kind of entry."""
        file = self.federation.sites[site].record_file
        if not file.exists():
            return []
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection,
        ):
            rows = connection.execute(
                "SELECT entry FROM record WHERE entry LIKE ? AND entry LIKE ?",
                (f'%"kind":"{kind}"%', f"%{self.id}%"),
            )
            return [json.loads(entry)["body"]["round"] for (entry,) in rows]
        return []

    def kept(self, site: str, number: int, what: str) -> bool:
        return (self.federation.sites[site].state / self.id / f"round-{number:05d}.{what}").exists()

    def reach(self, phase: str, site: str) -> None:
        reached = PHASES[phase]
        wait_for(lambda: reached(self, site) or self.ended(), 120, f"never came to {phase}")

    def ended(self) -> bool:
        return self.row()["state"] in {"completed", "failed", "stopped"}

    def complete(self) -> None:
        """To the end; a run that failed is resumed, as its operator would."""
        for _ in range(6):
            wait_for(self.ended, 180, f"the run did not end: {self.row()}", pause=0.05)
            if self.row()["state"] == "completed":
                break
            self.federation.wait_until_all_online()
            self.federation.call("POST", f"/runs/{self.id}/resume")
        state = self.federation.call("GET", f"/runs/{self.id}")
        assert state["state"] == "completed", [message["text"] for message in state["messages"]]

    def check(self) -> None:
        """Each hospital debited each (run, round) once, and gave one reply for it; what counted was debited."""
        recorded = self.federation.call("GET", f"/runs/{self.id}")
        assert [one["round"] for one in recorded["recorded_rounds"]] == list(range(1, ROUNDS + 1))
        for site in self.federation.sites:
            debits, replies = (Counter(self.entries(site, kind)) for kind in ("debit", "settled"))
            assert set(debits.values()) <= {1}
            assert set(replies.values()) <= {1}
            assert replies.keys() <= debits.keys()
            accepted = {number for number, name in self.accepted() if name == site}
            assert accepted <= replies.keys()

    def accepted(self) -> list[tuple[int, str]]:
        database = str(self.federation.store.database.engine.url.database)
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            query = "SELECT round, site FROM spends WHERE run = ? AND outcome = 'accepted'"
            return list(connection.execute(query, (self.id,)))


def in_hand(run: Run, site: str) -> bool:
    """The hospital's worker has taken a task."""
    return (run.federation.sites[site].state / "task-in-hand.json").exists()


PHASES: dict[str, Callable[[Run, str], bool]] = {
    "quote": lambda run, site: run.row()["phase"] == "quote",
    "measure": lambda run, site: 1 in run.entries(site, "debit"),
    "warm-start": lambda run, site: run.row()["phase"] == "warm-start",
    "before-debit": lambda run, site: (
        run.row()["recorded"] >= 1 and in_hand(run, site) and 2 not in run.entries(site, "debit")
    ),
    "after-debit": lambda run, site: 2 in run.entries(site, "debit"),
    "before-reply-kept": lambda run, site: run.kept(site, 2, "discriminator.safetensors"),
    "after-reply": lambda run, site: 2 in run.entries(site, "settled"),
    "recording": lambda run, site: all(2 in run.entries(name, "settled") for name in run.federation.sites),
}
PROCESSES = (
    ("coordinator", "worker"),
    ("north", "worker"),
    ("coordinator", "superlink"),
    ("coordinator", "api"),
    ("coordinator", "gateway"),
    ("coordinator", "jobs"),
    ("north", "supernode"),
)


def wait_for(condition: Callable[[], object], seconds: float, said: str, *, pause: float = 0.004) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said
        time.sleep(pause)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("three"), SITES)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"), SITES[:2])
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("killed")
def test_a_run_survives_one_kill_in_each_round(federation: Federation) -> None:
    run = federation.start_run()
    run.reach("measure", "north")
    federation.kill("coordinator", "worker")
    run.reach("after-debit", "south")
    federation.kill("south", "worker")
    wait_for(lambda: 3 in run.entries("north", "debit") or run.ended(), 120, "round 3 never came")
    federation.kill("coordinator", "superlink")
    federation.kill("coordinator", "api")
    run.complete()
    run.check()
    federation.audit()
    said = [message["text"] for message in federation.call("GET", f"/runs/{run.id}")["messages"]]
    assert any("goes on by itself" in text for text in said)
    assert not any("resumed" in text for text in said)  # nobody had to


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("killed")
def test_a_stop_ends_the_work_at_the_hospitals_within_seconds_and_frees_them(federation: Federation) -> None:
    long = {"refine": {**STUDY["refine"], "rounds": 1, "steps": 20_000, "noise_multiplier": 8.0}}
    run = federation.start_run(**long)
    run.reach("after-debit", "north")
    federation.call("POST", f"/runs/{run.id}/stop")
    asked = time.monotonic()
    wait_for(run.ended, 30, "the run goes on")
    wait_for(lambda: not any(in_hand(run, site) for site in federation.sites), 30, "a hospital works on")
    assert time.monotonic() - asked < 20  # on a busy machine; 2 to 5 s otherwise
    assert run.row()["state"] == "stopped"
    for site in federation.sites:
        assert set(run.entries(site, "settled")) == {1}
    following = federation.start_run()
    following.complete()
    following.check()
    federation.audit()
    assert run.row()["state"] == "stopped"  # nobody resumed it, and it did not by itself


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("party", "process"), PROCESSES, ids=[f"{a}-{b}" for a, b in PROCESSES])
def test_each_process_killed_at_each_phase(three: Federation, party: str, process: str, phase: str) -> None:
    # A SuperNode that was killed counts as online for up to a minute: until north is back, runs go on without it.
    deadline = time.monotonic() + 240
    while True:
        three.wait_until_all_online()
        run = three.start_run()
        run.reach(phase, "north")
        if three.is_up(party, process) and not run.ended():
            break
        run.complete()  # the next one could not start beside it
        assert time.monotonic() < deadline, f"no run came to {phase} with {party}'s {process} up"
    three.kill(party, process)
    run.complete()
    run.check()
    three.audit()
