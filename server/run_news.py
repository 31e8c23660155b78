"""What happened in a run since somebody last looked, in one look at the database; for following a run live."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from server.errors import InvalidError
from server.round_records import RecordedRound, rounds_after
from server.runs import ACTIVE_STATES, Run, RunMessage, get_run
from server.spends import SiteSpend, run_spends
from server.store import Store
from server.tables import RunMessageRow

MAX_NEWS = 100
_FORM = re.compile(r"([0-9]{1,15})\.([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How far somebody has followed a run; survives restarts of both sides.

    Attributes:
        message: number of the last message.
        round: the last recorded round.
    """

    message: int = 0
    round: int = 0

    @property
    def text(self) -> str:
        """As an event's identifier."""
        return f"{self.message}.{self.round}"

    @classmethod
    def read(cls, text: str) -> Seen:
        """What `text` wrote.

        Raises:
            InvalidError: it is none.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidError(
                "Last-Event-ID",
                f"Last-Event-ID is {text[:40]!r}; send that of the last event that came, or none to start anew",
            )
        return cls(message=int(found[1]), round=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new, oldest first, and how the run stands.

    Attributes:
        messages: with how far each brings who follows.
        rounds: recorded ones; the same.
        complete: whether nothing newer was left out.
    """

    run: Run
    messages: Sequence[tuple[Seen, RunMessage]]
    rounds: Sequence[tuple[Seen, RecordedRound]]
    spends: Sequence[SiteSpend]
    seen: Seen
    complete: bool

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, unless somebody resumes the run."""
        return self.complete and self.run.state not in ACTIVE_STATES


def look(store: Store, run_id: str, seen: Seen) -> News:
    """What is new in a run.

    Raises:
        NotFoundError: no such run.
    """
    run = get_run(store, run_id)  # first: what it says is never newer than what follows
    query = (
        select(RunMessageRow)
        .where(RunMessageRow.run == run_id, RunMessageRow.id > seen.message)
        .order_by(RunMessageRow.id)
        .limit(MAX_NEWS)
    )
    with store.database.read() as session:
        rows = list(session.scalars(query))
    recorded = rounds_after(store, run_id, seen.round, limit=MAX_NEWS)
    messages, rounds = [], []
    for row in rows:
        seen = Seen(message=row.id, round=seen.round)
        messages.append((seen, RunMessage(at=row.at, level=row.level, text=row.text)))
    for one in recorded:
        seen = Seen(message=seen.message, round=one.round)
        rounds.append((seen, one))
    return News(
        run=run,
        messages=messages,
        rounds=rounds,
        spends=run_spends(store, run_id),
        seen=seen,
        complete=max(len(rows), len(recorded)) < MAX_NEWS,
    )
