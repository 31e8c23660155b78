"""Child processes of the guard's tests: debits in a loop, with marks of what happened outside the record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from client.guard import Guard
from client.policy import SitePolicy, parse_policy, policy_text
from privacy.accounting import spend_of
from privacy.events import MechanismEvent

STUDY = "sha256:" + "1" * 64
REPLY = "sha256:" + "b" * 64
DELTA = 1e-5
EVENT = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=200.0)


def open_policy(**changes: object) -> SitePolicy:
    """Nothing but the caps that the test sets."""
    values = dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), 50.0)
    return parse_policy(
        policy_text(
            **(
                values
                | {"max_delta": DELTA, "min_patients": 1, "app_digests": [], "approval": "automatic"}
                | changes
            )
        )
    )


def request_of(run: str, number: int) -> dict[str, object]:
    """The arguments of a debit."""
    return {
        "run": run,
        "round": number,
        "study_name": "adult",
        "study_digest": STUDY,
        "columns": ["age"],
        "events": [EVENT],
        "delta": DELTA,
        "study_epsilon": 50.0,
        "num_patients": 1000,
        "request_digest": "sha256:" + "a" * 64,
    }


def warm(first: int, last: int) -> None:
    """Compose beforehand, so that a child spends its life writing and not computing."""
    for count in range(first, last + 1):
        spend_of([EVENT] * count, delta=DELTA)


class Marks:
    """What the world saw, one line per fact, written with one system call each."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, what: str, run: str, number: int) -> None:
        os.write(self._handle, json.dumps([what, run, number]).encode() + b"\n")


def read_marks(path: Path) -> dict[str, set[tuple[str, int]]]:
    """The marks by kind: `drawn`, `sent`."""
    found: dict[str, set[tuple[str, int]]] = {"drawn": set(), "sent": set()}
    for line in path.read_text().splitlines() if path.exists() else ():
        what, run, number = json.loads(line)
        found[what].add((run, number))
    return found


def serve_rounds(record: Path, marks: Marks, run: str, rounds: range) -> None:
    """What a site does: debit, draw noise, settle, send; for each round in turn."""
    guard = Guard(record, open_policy())
    for number in rounds:
        debit = guard.debit(**request_of(run, number))
        if debit.reply_digest is None:
            marks.note("drawn", run, number)
            guard.settle(debit, reply_digest=REPLY)
        marks.note("sent", run, number)


def in_child(work: Callable[[], None]) -> int:
    """Fork, do the work there, and return the child's process id; it ends with 0, or 1 if the work raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except Exception:
            status = 1
        finally:
            os._exit(status)
    return child


def check_record(record: Path, marks: Path) -> set[tuple[str, int]]:
    """Every promise that a crash could break; returns the rounds that are debited."""
    guard = Guard(record, open_policy())
    guard.verify()
    entries = guard.history()
    rounds = {
        kind: [(e.body["run"], e.body["round"]) for e in entries if e.kind == kind]
        for kind in ("debit", "settled")
    }
    debited, settled = (set(rounds[kind]) for kind in ("debit", "settled"))
    assert len(debited) == len(rounds["debit"]), "a round was debited twice"
    assert len(settled) == len(rounds["settled"]), "a round was settled twice"
    seen = read_marks(marks)
    assert seen["drawn"] <= debited, "noise was drawn without a debit"
    assert seen["sent"] <= settled, "a reply was sent that is not in the record"
    return debited
