"""Run under LD_PRELOAD of failing_writes: let each write call of a site's rounds fail in turn, and check the record.

    python guard_faults.py FOLDER ENOSPC,EIO,SHORT,KILL [STRIDE]

With a stride of n only every n-th call fails, in turn.

Prints one line of JSON: how many write calls there were, how many faults struck, and what broke.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path

from client.record import RecordError

_spec = importlib.util.spec_from_file_location(
    "guard_scenario", Path(__file__).with_name("guard_scenario.py")
)
assert _spec is not None
assert _spec.loader is not None
scenario = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenario)

# once and lasting, as on a disk that stays full; a kill comes before the call or after it
KINDS = {
    "ENOSPC": ((1, 0), (1, 1)),
    "EIO": ((2, 0), (2, 1)),
    "SHORT": ((3, 0), (3, 1)),
    "KILL": ((4, 0), (5, 0)),
}
ROUNDS = range(1, 3)


def run_with_fault(folder: Path, at: int, kind: int, lasting: int) -> tuple[int, int]:
    """One site's life with a fault in it; (write calls, faults that struck) as far as the child could tell."""
    shim = ctypes.CDLL(None)
    told = folder / "told.txt"
    site = folder / "site"
    site.mkdir()
    marks = scenario.Marks(folder / "marks")

    def work() -> None:
        shim.fault_arm(str(site).encode(), at, kind, lasting)
        try:
            scenario.serve_rounds(site / "record.db", marks, "run", ROUNDS)
        finally:
            calls, hits = shim.fault_count(), shim.fault_hits()
            shim.fault_arm(b"", 0, 0, 0)
            told.write_text(f"{calls} {hits}")

    if kind in (4, 5):
        _, status = os.waitpid(scenario.in_child(work), 0)
        if os.WIFSIGNALED(status):
            return at, 1
    else:
        with contextlib.suppress(RecordError, OSError):
            work()
    calls, hits = told.read_text().split()
    return int(calls), int(hits)


def check(folder: Path) -> str:
    """What does not hold after the fault, or after asking again once the disk works; empty if all holds."""
    site, marks = folder / "site", folder / "marks"
    try:
        drawn = scenario.read_marks(marks)["drawn"]
        debited = scenario.check_record(site / "record.db", marks)
        assert drawn <= debited
        scenario.serve_rounds(site / "record.db", scenario.Marks(marks), "run", ROUNDS)
        assert scenario.check_record(site / "record.db", marks) == {("run", number) for number in ROUNDS}
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""


def main() -> None:
    base, faults = Path(sys.argv[1]), sys.argv[2].split(",")
    stride = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    scenario.warm(1, len(ROUNDS))
    (base / "dry").mkdir()
    total, _ = run_with_fault(base / "dry", 0, 0, 0)
    assert not check(base / "dry")
    tried, hits, broken = 0, 0, []
    for kind, lasting in (pair for fault in faults for pair in KINDS[fault]):
        for at in range(1 + lasting % stride, total + 1, stride):
            tried += 1
            folder = base / f"{kind}-{lasting}-{at}"
            folder.mkdir()
            hits += run_with_fault(folder, at, kind, lasting)[1] > 0
            problem = check(folder)
            if problem:
                broken.append([kind, lasting, at, problem])
    print(json.dumps({"write_calls": total, "tried": tried, "faults_hit": hits, "broken": broken}))


if __name__ == "__main__":
    main()
