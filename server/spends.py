"""What each site has spent in a run, as its receipts said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.store import Store
from server.tables import Outcome, RunRow, SpendRow


@dataclass(frozen=True, kw_only=True)
class SiteSpend:
    """The newest known spend of a site in a run. `spent_epsilon` and `cap_epsilon` are decimal strings."""

    site: str
    round: int
    outcome: str
    reason: str
    spent_epsilon: str | None
    spent_delta: str | None
    cap_epsilon: str | None
    receipt: Mapping[str, Any] | None


def run_spends(store: Store, run_id: str) -> list[SiteSpend]:
    """Each site's newest outcome in a run with its newest known spend, by site name."""
    with store.database.read() as session:
        outcomes = _newest_spends(session, run_id, known=False)
        known = {spend.site: spend for spend in _newest_spends(session, run_id, known=True)}
    return [
        replace(
            spend,
            spent_epsilon=known[spend.site].spent_epsilon,
            spent_delta=known[spend.site].spent_delta,
            cap_epsilon=known[spend.site].cap_epsilon,
        )
        if spend.site in known
        else spend
        for spend in outcomes
    ]


def rounds_by_site(
    store: Store, run_id: str, outcome: Outcome, *, last_round: int | None = None
) -> dict[str, tuple[int, ...]]:
    """In which rounds of a run each site's part ended so, up to a round; the first is the measurement."""
    query = select(SpendRow.site, SpendRow.round).where(SpendRow.run == run_id, SpendRow.outcome == outcome)
    if last_round is not None:
        query = query.where(SpendRow.round <= last_round)
    found: dict[str, tuple[int, ...]] = {}
    with store.database.read() as session:
        for site, number in session.execute(query.order_by(SpendRow.site, SpendRow.round)):
            found[site] = (*found.get(site, ()), number)
    return found


@dataclass(frozen=True, kw_only=True)
class StudySpend:
    """What a study has cost the patients of a site so far, over all its runs; decimal strings."""

    study: str
    site: str
    run: str
    spent_epsilon: str
    spent_delta: str | None
    cap_epsilon: str | None


def study_spends(store: Store) -> list[StudySpend]:
    """The newest known spend of every site in every study, by study and site.

    A receipt's spend is that of all the study's events at the site as one composition, so the newest is the total.
    """
    columns = (
        *(RunRow.study, SpendRow.site, SpendRow.run),
        *(SpendRow.spent_epsilon, SpendRow.spent_delta, SpendRow.cap_epsilon),
    )
    query = (
        select(*columns)
        .join(RunRow, RunRow.id == SpendRow.run)
        .where(SpendRow.spent_epsilon.is_not(None))
        .order_by(SpendRow.recorded_at, SpendRow.round)
    )
    newest: dict[tuple[str, str], StudySpend] = {}
    with store.database.read() as session:
        for study, site, run, epsilon, delta, cap in session.execute(query):
            newest[study, site] = StudySpend(
                study=study, site=site, run=run, spent_epsilon=epsilon, spent_delta=delta, cap_epsilon=cap
            )
    return [newest[pair] for pair in sorted(newest)]


def _newest_spends(session: Session, run_id: str, *, known: bool) -> list[SiteSpend]:
    rounds = select(SpendRow.site, func.max(SpendRow.round).label("round")).where(SpendRow.run == run_id)
    if known:
        rounds = rounds.where(SpendRow.spent_epsilon.is_not(None))
    newest = rounds.group_by(SpendRow.site).subquery()
    query = (
        select(SpendRow)
        .join(newest, (SpendRow.site == newest.c.site) & (SpendRow.round == newest.c.round))
        .where(SpendRow.run == run_id)
        .order_by(SpendRow.site)
    )
    return [spend_of_row(row) for row in session.scalars(query)]


def spend_of_row(row: SpendRow) -> SiteSpend:
    """The row as a value."""
    return SiteSpend(
        site=row.site,
        round=row.round,
        outcome=row.outcome,
        reason=row.reason,
        spent_epsilon=row.spent_epsilon,
        spent_delta=row.spent_delta,
        cap_epsilon=row.cap_epsilon,
        receipt=row.receipt,
    )
