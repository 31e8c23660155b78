"""What a round leaves behind, written in one transaction: the round, the spends, the ledger entries, the checkpoint.

Array files (generator, summed noisy moments) are written and synced before that transaction names them by digest,
so a crash leaves at worst a file that nothing names. All is idempotent per (run, round).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from models.study import Phase
from privacy.ledger import Aggregated, Body, Receipted, Refused
from privacy.receipt import receipt_digest
from server import ledger_store
from server.errors import ConflictError, NotFoundError
from server.releases import Release, propose_in
from server.run_rows import ACTIVE_STATES, Run, end_in, run_row
from server.runs import get_run
from server.spends import SiteSpend, spend_of_row
from server.store import Store
from server.tables import Outcome, RoundRow, RunRow, SpendRow


@dataclass(frozen=True, kw_only=True)
class SiteOutcome:
    """How one site's part in a round ended.

    Attributes:
        outcome: `accepted` (counts), `rejected` (a reply that did not verify or fit), `refused` (the guard said no;
            nothing was spent), `failed` (no reply; the site may have spent, and that stays spent).
        code: of the refusal or failure, for the ledger: `budget`, `policy`, `timeout`, ...; nothing about patients.
        reason: for the operator; not in the ledger.
        receipt: the signed envelope, where one came and its signature held, accepted or not.
        spent_epsilon, spent_delta: its cumulative spend as its receipt or its last quote says, decimal strings.
        cap_epsilon: the cap that holds there, a decimal string.
    """

    site: str
    outcome: Outcome
    code: str = ""
    reason: str = ""
    receipt: Mapping[str, Any] | None = None
    spent_epsilon: str | None = None
    spent_delta: str | None = None
    cap_epsilon: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordedRound:
    """A round that counts.

    Attributes:
        base_digest: of the arrays that the sites started from (`RoundRequest.base_digest`).
        next_base_digest: of the arrays that the next round sends.
        arrays: digests of the files it gave, by name (`generator`, `moments`); read them with `store.load(digest)`.
        scores: from noisy statistics only.
        tree_size: of the checkpoint signed with it.
    """

    run: str
    round: int
    phase: str
    base_digest: str
    next_base_digest: str
    arrays: Mapping[str, str]
    scores: Mapping[str, Any]
    tree_size: int
    seconds: float
    recorded_at: dt.datetime
    spends: tuple[SiteSpend, ...] = field(default=())


def record_round(
    store: Store,
    *,
    run_id: str,
    round: int,
    phase: Phase,
    base_digest: str,
    next_base_digest: str,
    arrays: Mapping[str, bytes],
    outcomes: Sequence[SiteOutcome],
    scores: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> RecordedRound:
    """Record a round that reached its quorum; the same round again gives back what was recorded.

    Args:
        run_id: an active run.
        round: the last recorded one plus 1.
        base_digest: digest of the request's arrays.
        next_base_digest: digest of the arrays that the next round will send; of the generator after the last.
        arrays: safetensors bytes by name; `generator` (after a measurement: the warm start's) must be there.
        outcomes: one per site that was asked; at least one is accepted, with its receipt.
        scores: JSON data from noisy statistics only.
        seconds: how long the exchange took.

    Raises:
        ConflictError: the round is recorded with other arrays, is not the next one, or the run has ended.
        NotFoundError: no such run.
        ValueError: no generator, or no accepted outcome with a receipt.
    """
    if "generator" not in arrays:
        raise ValueError(f"arrays has {sorted(arrays)}; a round must give a generator")
    digests = {name: store.keep(data) for name, data in sorted(arrays.items())}
    with store.database.write() as session:
        run = run_row(session, run_id)
        row = session.get(RoundRow, (run_id, round))
        if row is not None:
            if dict(row.arrays) != digests:
                raise ConflictError(
                    f"round {round} of run {run_id!r} is recorded with other arrays; go on from what is recorded"
                )
            return _recorded(session, row)
        _check_next(session, run, round)
        entries, rows = _write_outcomes(store, session, run, round, outcomes)
        _forget_earlier_attempts(session, run_id, round, outcomes)
        aggregated = Aggregated(
            study_digest=run.study_digest,
            run=run_id,
            round=round,
            base_digest=base_digest,
            receipts=tuple(_accepted_receipts(outcomes)),
            result_digest=digests["generator"],
            next_base_digest=next_base_digest,
        )
        entries.append(aggregated)
        first, checkpoint = ledger_store.append(store, session, entries)
        for number, spend in enumerate(rows):
            spend.entry = first + number
        row = RoundRow(
            run=run_id,
            round=round,
            phase=phase,
            base_digest=base_digest,
            next_base_digest=next_base_digest,
            arrays=digests,
            scores=dict(scores or {}),
            tree_size=checkpoint.size,
            seconds=seconds,
            recorded_at=store.clock(),
        )
        session.add(row)
        run.phase, run.round = phase, round
        session.flush()
        return _recorded(session, row)


def record_outcomes(store: Store, *, run_id: str, round: int, outcomes: Sequence[SiteOutcome]) -> None:
    """Record what sites answered in a round that missed its quorum: receipts and refusals stay, the round does not.

    Raises:
        NotFoundError: no such run.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        entries, rows = _write_outcomes(store, session, run, round, outcomes)
        if entries:
            first, _ = ledger_store.append(store, session, entries)
            for number, spend in enumerate(rows):
                spend.entry = first + number


def last_round(store: Store, run_id: str) -> RecordedRound | None:
    """The last recorded round of a run, to go on from; None before the first."""
    query = select(RoundRow).where(RoundRow.run == run_id).order_by(RoundRow.round.desc()).limit(1)
    with store.database.read() as session:
        row = session.scalars(query).first()
        return None if row is None else _recorded(session, row)


def get_round(store: Store, run_id: str, round: int) -> RecordedRound:
    """A recorded round.

    Raises:
        NotFoundError: it is not recorded.
    """
    with store.database.read() as session:
        row = session.get(RoundRow, (run_id, round))
        if row is None:
            raise NotFoundError("recorded round", f"{run_id}/{round}")
        return _recorded(session, row)


def list_rounds(store: Store, run_id: str, *, limit: int | None = None) -> list[RecordedRound]:
    """Recorded rounds of a run from the first; with a limit, the newest so many."""
    newest = select(RoundRow).where(RoundRow.run == run_id).order_by(RoundRow.round.desc()).limit(limit)
    return _with_spends(store, newest)


def rounds_after(store: Store, run_id: str, round: int, *, limit: int) -> list[RecordedRound]:
    """The rounds of a run that were recorded after this one, oldest first, at most so many."""
    query = select(RoundRow).where(RoundRow.run == run_id, RoundRow.round > round)
    return _with_spends(store, query.order_by(RoundRow.round).limit(limit))


def _with_spends(store: Store, query: Select[tuple[RoundRow]]) -> list[RecordedRound]:
    """One run's rounds, oldest first."""
    with store.database.read() as session:
        rows = sorted(session.scalars(query), key=lambda row: row.round)
        if not rows:
            return []
        of_rounds = select(SpendRow).where(
            SpendRow.run == rows[0].run, SpendRow.round.between(rows[0].round, rows[-1].round)
        )
        spends: dict[int, list[SpendRow]] = {}
        for spend in session.scalars(of_rounds.order_by(SpendRow.site)):
            spends.setdefault(spend.round, []).append(spend)
        return [_value(row, spends.get(row.round, [])) for row in rows]


def complete_run(
    store: Store, run_id: str, *, release_round: int, scores: Mapping[str, Any] | None = None
) -> Release:
    """End a run as completed and propose a round's generator as a release candidate, in one transaction.

    Args:
        release_round: whose `generator` is proposed.
        scores: JSON data from noisy statistics only; shown with the release.

    Raises:
        NotFoundError: no such run, or that round is not recorded.
        ConflictError: the run ended otherwise.
    """
    with store.database.write() as session:
        run = run_row(session, run_id)
        row = session.get(RoundRow, (run_id, release_round))
        if row is None:
            raise NotFoundError("recorded round", f"{run_id}/{release_round}")
        release = propose_in(store, session, run=run, round_row=row, scores=scores or row.scores)
        end_in(store, session, run, "completed", "")
        return release


def run_with_rounds(store: Store, run_id: str, *, limit: int) -> tuple[Run, list[RecordedRound]]:
    """A run and its newest recorded rounds."""
    return get_run(store, run_id), list_rounds(store, run_id, limit=limit)


def _check_next(session: Session, run: RunRow, round: int) -> None:
    if run.state not in ACTIVE_STATES:
        raise ConflictError(f"run {run.id!r} is {run.state}; nothing more can be recorded for it")
    query = select(RoundRow.round).where(RoundRow.run == run.id).order_by(RoundRow.round.desc()).limit(1)
    last = session.scalars(query).first() or 0
    if round != last + 1 or round > run.rounds:
        raise ConflictError(
            f"round is {round}; run {run.id!r} has {last} of {run.rounds} rounds recorded, the next is {last + 1}"
        )


def _write_outcomes(
    store: Store, session: Session, run: RunRow, round: int, outcomes: Sequence[SiteOutcome]
) -> tuple[list[Body], list[SpendRow]]:
    """Spends as rows; the ledger entries they need, with the rows that are to learn their indices."""
    entries: list[Body] = []
    rows: list[SpendRow] = []
    for outcome in outcomes:
        row = session.get(SpendRow, (run.id, round, outcome.site))
        if row is None:
            row = SpendRow(run=run.id, round=round, site=outcome.site)
            session.add(row)
        elif row.receipt is not None and outcome.receipt is None:
            # A receipt that came is not forgotten because a retry failed: it was spent, though it does not count.
            row.outcome, row.reason = outcome.outcome, outcome.reason
            continue
        receipt = None if outcome.receipt is None else dict(outcome.receipt)
        known = row.entry is not None and row.receipt == receipt
        known = known and (receipt is not None or row.outcome == outcome.outcome)
        row.outcome, row.reason, row.receipt = outcome.outcome, outcome.reason, receipt
        row.spent_epsilon, row.spent_delta = outcome.spent_epsilon, outcome.spent_delta
        row.cap_epsilon, row.recorded_at = outcome.cap_epsilon, store.clock()
        if known:
            continue
        rows.append(row)
        if receipt is not None:
            entries.append(Receipted(envelope=receipt))
        else:
            entries.append(
                Refused(
                    site=outcome.site,
                    study_digest=run.study_digest,
                    run=run.id,
                    round=round,
                    code=outcome.code or outcome.outcome,
                )
            )
    return entries, rows


def _forget_earlier_attempts(
    session: Session, run_id: str, round: int, outcomes: Sequence[SiteOutcome]
) -> None:
    """What was accepted in an attempt that missed its quorum is in no result, unless it was accepted again."""
    query = select(SpendRow).where(
        SpendRow.run == run_id, SpendRow.round == round, SpendRow.outcome == "accepted"
    )
    asked = {outcome.site for outcome in outcomes}
    for row in session.scalars(query):
        if row.site not in asked:
            row.outcome = "failed"
            row.reason = (
                "answered an attempt that missed its quorum, and was not there for the one that counts"
            )


def _accepted_receipts(outcomes: Sequence[SiteOutcome]) -> list[str]:
    accepted = [outcome for outcome in outcomes if outcome.outcome == "accepted"]
    for outcome in accepted:
        if outcome.receipt is None:
            raise ValueError(f"the accepted outcome of site {outcome.site!r} has no receipt")
    return [receipt_digest(outcome.receipt) for outcome in accepted if outcome.receipt is not None]


def _recorded(session: Session, row: RoundRow) -> RecordedRound:
    query = select(SpendRow).where(SpendRow.run == row.run, SpendRow.round == row.round)
    return _value(row, list(session.scalars(query.order_by(SpendRow.site))))


def _value(row: RoundRow, spends: Sequence[SpendRow]) -> RecordedRound:
    return RecordedRound(
        run=row.run,
        round=row.round,
        phase=row.phase,
        base_digest=row.base_digest,
        next_base_digest=row.next_base_digest,
        arrays=dict(row.arrays),
        scores=dict(row.scores),
        tree_size=row.tree_size,
        seconds=row.seconds,
        recorded_at=row.recorded_at,
        spends=tuple(spend_of_row(spend) for spend in spends),
    )
