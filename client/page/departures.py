"""What left the building, by the site's record: per round what ran, what it cost, the reply's digest. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from client.history import round_of
from client.record import RecordEntry
from privacy.events import MechanismEvent


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One round that was paid for.

    Attributes:
        run, round, study_name, study_digest: which.
        columns: what the study said that it reads; None where the record has no question of it.
        events: the mechanisms that ran.
        at: when it was debited, before any noise was drawn.
        epsilon_before, epsilon_after, delta: spend of the study at this site, all its runs together.
        entry: the debit's number in the record.
        sent_at, digest: when its one reply was ready to leave, and the digest of that reply; None where the round
            ended without one, so that nothing left for it.
    """

    run: str
    round: int
    study_name: str
    study_digest: str
    columns: tuple[str, ...] | None
    events: tuple[MechanismEvent, ...]
    at: datetime
    epsilon_before: float
    epsilon_after: float
    delta: float
    entry: int
    sent_at: datetime | None
    digest: str | None


def departures(entries: Sequence[RecordEntry]) -> list[Departure]:
    """Every round that was ever debited, the latest first."""
    settled = {round_of(entry): entry for entry in entries if entry.kind == "settled"}
    columns: dict[str, tuple[str, ...]] = {}
    spent: dict[str, float] = {}
    found = []
    for entry in entries:
        body = entry.body
        if entry.kind == "asked":
            columns[body["study_digest"]] = tuple(body["columns"])
        if entry.kind != "debit":
            continue
        study, reply = body["study_digest"], settled.get(round_of(entry))
        found.append(
            Departure(
                run=body["run"],
                round=body["round"],
                study_name=body["study_name"],
                study_digest=study,
                columns=columns.get(study),
                events=tuple(MechanismEvent.from_dict(event) for event in body["events"]),
                at=entry.at,
                epsilon_before=spent.get(study, 0.0),
                epsilon_after=float(body["spend_epsilon"]),
                delta=float(body["delta"]),
                entry=entry.seq,
                sent_at=None if reply is None else reply.at,
                digest=None if reply is None else reply.body["reply_digest"],
            )
        )
        spent[study] = float(body["spend_epsilon"])
    return found[::-1]
