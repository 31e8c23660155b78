"""Many workers on one record: the cap is exact, each round is given out once."""

from __future__ import annotations

import importlib.util
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.guard import Guard, RefusedError
from privacy.accounting import spend_of

_spec = importlib.util.spec_from_file_location(
    "guard_scenario", Path(__file__).with_name("guard_scenario.py")
)
assert _spec is not None
assert _spec.loader is not None
scenario = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenario)

WORKERS = 64
CAP = 20


@pytest.fixture(scope="module")
def capped():
    """A policy whose caps are exactly CAP debits."""
    scenario.warm(1, CAP + 1)
    cap = spend_of([scenario.EVENT] * CAP, delta=scenario.DELTA).epsilon
    return scenario.open_policy(
        **dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), cap)
    )


def try_debit(path: Path, policy, run: str, number: int) -> str:
    """One worker's attempt: `granted` or the refusal's code."""
    try:
        Guard(path, policy).debit(**scenario.request_of(run, number))
    except RefusedError as refusal:
        return refusal.code
    return "granted"


def check_exact_cap(path: Path, policy) -> None:
    guard = Guard(path, policy)
    guard.verify()
    assert len(guard.events()) == CAP
    assert guard.spent(delta=scenario.DELTA).epsilon == policy.epsilon_total


def test_64_processes_are_granted_exactly_the_cap(tmp_path, capped):
    path, granted = tmp_path / "record.db", tmp_path / "granted"

    def work(run: str) -> None:
        outcome = try_debit(path, capped, run, 1)
        scenario.Marks(granted).note(outcome, run, 1)

    children = [scenario.in_child(lambda run=f"run{number}": work(run)) for number in range(WORKERS)]
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    outcomes = [line.split('"')[1] for line in granted.read_text().splitlines()]
    assert (outcomes.count("granted"), outcomes.count("budget")) == (CAP, WORKERS - CAP)
    check_exact_cap(path, capped)


def test_64_threads_are_granted_exactly_the_cap(tmp_path, capped):
    start = threading.Barrier(WORKERS)

    def work(number: int) -> str:
        start.wait()
        return try_debit(tmp_path / "record.db", capped, f"run{number}", 1)

    with ThreadPoolExecutor(WORKERS) as pool:
        outcomes = list(pool.map(work, range(WORKERS)))
    assert (outcomes.count("granted"), outcomes.count("budget")) == (CAP, WORKERS - CAP)
    check_exact_cap(tmp_path / "record.db", capped)


def test_one_round_is_computed_by_one_of_many_workers(tmp_path, capped):
    start, computing, most = threading.Barrier(16), [], []

    def work(_: int) -> str:
        start.wait()
        try:
            debit = Guard(tmp_path / "record.db", capped).debit(**scenario.request_of("run", 1))
        except RefusedError as refusal:
            return refusal.code
        if debit.reply_digest is not None:
            return "resent"
        computing.append(debit)
        most.append(len(computing))
        Guard(tmp_path / "record.db", capped).settle(computing.pop(), reply_digest=scenario.REPLY)
        return "computed"

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(work, range(16)))
    assert outcomes.count("computed") == 1
    assert set(outcomes) <= {"computed", "busy", "resent"}
    assert most == [1]
    assert len(Guard(tmp_path / "record.db", capped).events()) == 1


def test_a_fork_neither_ends_nor_inherits_its_parents_round(tmp_path, capped):
    debit = Guard(tmp_path / "record.db", capped).debit(**scenario.request_of("run", 1))
    child = scenario.in_child(lambda: debit.claim.release())
    assert os.waitpid(child, 0)[1] == 0
    assert try_debit(tmp_path / "record.db", capped, "run", 1) == "busy"
