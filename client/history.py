"""What the record says: past debits, a round's entries, decisions; and whether its spends are right. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from client.limits import PastDebit
from client.record import RecordEntry, RecordVerificationError
from privacy.accounting import spend_of
from privacy.events import MechanismEvent

_ROUNDING = 2e-6  # of two figures that were each rounded up to a millionth


def past_debits(entries: Sequence[RecordEntry]) -> list[PastDebit]:
    """Everything that was ever debited, oldest first."""
    return [
        PastDebit(
            run=entry.body["run"],
            study_digest=entry.body["study_digest"],
            at=entry.at,
            events=tuple(MechanismEvent.from_dict(event) for event in entry.body["events"]),
        )
        for entry in entries
        if entry.kind == "debit"
    ]


def round_of(entry: RecordEntry) -> tuple[str, int]:
    """Run and round of a debit, settlement or refusal."""
    return entry.body["run"], entry.body["round"]


def find_round(entries: Sequence[RecordEntry], kind: str, run: str, number: int) -> RecordEntry | None:
    """The one `debit` or `settled` entry of a round, if there is one."""
    return next((e for e in entries if e.kind == kind and round_of(e) == (run, number)), None)


def decision_on(entries: Sequence[RecordEntry], study_digest: str) -> RecordEntry | None:
    """The last decision on a study, if there is one."""
    found = (e for e in reversed(entries) if e.kind == "decision" and e.body["study_digest"] == study_digest)
    return next(found, None)


def most_asked(entries: Sequence[RecordEntry], study_digest: str) -> str:
    """What a study that asked would bring a patient to, as whoever decides on it should see it; a decimal string.

    A run that has begun asks for its last rounds only, and a decision holds for whole runs: so it is the most that
    was asked for within the cap, unless what was asked last is beyond the cap.
    """
    asked = [e.body for e in entries if e.kind == "asked" and e.body["study_digest"] == study_digest]
    cap = float(asked[-1]["cap_epsilon"])
    projected = [str(body["projected_epsilon"]) for body in asked]
    if float(projected[-1]) > cap:
        return projected[-1]
    return max((one for one in projected if float(one) <= cap), key=float)


def verify_spends(entries: Sequence[RecordEntry]) -> None:
    """Check that each round has one debit and one reply, and that no study's recorded spend is too low.

    Raises:
        RecordVerificationError: names the entry or the study.
    """
    _verify_rounds(entries)
    recorded: dict[str, float] = {}
    deltas: dict[str, float] = {}
    events: dict[str, list[MechanismEvent]] = {}
    for entry in entries:
        if entry.kind != "debit":
            continue
        study, spend = entry.body["study_digest"], float(entry.body["spend_epsilon"])
        if spend < recorded.get(study, 0.0):
            raise RecordVerificationError(f"entry {entry.seq}: the spend of study {study} fell to {spend}")
        recorded[study], deltas[study] = spend, float(entry.body["delta"])
        events.setdefault(study, []).extend(MechanismEvent.from_dict(event) for event in entry.body["events"])
    for study, spent in events.items():
        cost = spend_of(spent, delta=deltas[study]).epsilon
        if recorded[study] < cost - _ROUNDING:
            raise RecordVerificationError(
                f"study {study} is recorded with epsilon {recorded[study]}, but its events cost {cost}"
            )


def _verify_rounds(entries: Sequence[RecordEntry]) -> None:
    debited: dict[tuple[str, int], int] = {}
    settled: set[tuple[str, int]] = set()
    for entry in entries:
        if entry.kind == "debit":
            if round_of(entry) in debited:
                raise RecordVerificationError(f"entry {entry.seq} debits round {round_of(entry)} again")
            debited[round_of(entry)] = entry.seq
        elif entry.kind == "settled":
            if entry.body["debit"] != debited.get(round_of(entry)) or round_of(entry) in settled:
                raise RecordVerificationError(
                    f"entry {entry.seq} settles round {round_of(entry)}, which was not debited or has a reply already"
                )
            settled.add(round_of(entry))
