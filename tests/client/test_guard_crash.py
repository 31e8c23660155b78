"""A site that is killed at any point, or whose disk fails at any write, never releases what it did not debit."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("guard_scenario", HERE / "guard_scenario.py")
assert _spec is not None
assert _spec.loader is not None
scenario = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenario)

PROBES = HERE.parent / "probes"


def kill_and_check(folder: Path, kills: int, *, seed: int) -> tuple[int, int]:
    """Kill a working site again and again; (debits in the record, kills that hit a working site)."""
    source, record, marks = random.Random(seed), folder / "record.db", folder / "marks"
    debited: set[tuple[str, int]] = set()
    hits = 0
    for number in range(kills):
        scenario.warm(len(debited) + 1, len(debited) + 12)
        run = f"run{number}"
        child = scenario.in_child(
            lambda run=run: scenario.serve_rounds(record, scenario.Marks(marks), run, range(1, 11))
        )
        time.sleep(source.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        hits += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if number % 10 == 9 or number == kills - 1:
            before, debited = debited, scenario.check_record(record, marks)
            assert before <= debited, "an acknowledged debit was lost"
    assert {key for kind in scenario.read_marks(marks).values() for key in kind} <= debited
    return len(debited), hits


def test_fifty_kills_lose_no_debit_and_release_nothing_undebited(tmp_path):
    debits, hits = kill_and_check(tmp_path, 50, seed=1)
    assert hits >= 25
    assert debits >= 10


@pytest.mark.slow
@pytest.mark.timeout(5000)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_kills_lose_no_debit_and_release_nothing_undebited(tmp_path, seed):
    debits, hits = kill_and_check(tmp_path, 100, seed=seed)
    assert hits >= 50
    assert debits >= 20


@pytest.fixture(scope="session")
def failing_disk(tmp_path_factory):
    """The library that makes a chosen write call fail, compiled for this machine."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler on Linux here, so no write call can be made to fail: NOT tested")
    library = tmp_path_factory.mktemp("shim") / "failing_writes.so"
    source = PROBES / "failing_writes.c"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def check_faults(library: Path, folder: Path, fault: str, *, stride: int) -> None:
    outcome = subprocess.run(
        [sys.executable, str(HERE / "guard_faults.py"), str(folder), fault, str(stride)],
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report["write_calls"] >= 100, "the scenario hardly wrote; is the library loaded?"
    assert report["faults_hit"] == report["tried"] >= 2 * (report["write_calls"] // stride), report
    assert report["broken"] == [], report["broken"]


@pytest.fixture
def fast_folder(tmp_path):
    """In memory where there is such a place: the faults are in the calls, and fsync costs nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_any_write_call_may_fail_or_be_the_last(failing_disk, fast_folder):
    check_faults(failing_disk, fast_folder, "ENOSPC,EIO,SHORT,KILL", stride=16)


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "SHORT", "KILL"])
def test_every_single_write_call_may_fail_or_be_the_last(failing_disk, fast_folder, fault):
    check_faults(failing_disk, fast_folder, fault, stride=1)
