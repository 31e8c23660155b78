"""What stands against a planned spend: the policy's caps, each over one composition of everything it covers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from client.policy import SitePolicy
from privacy.accounting import AccountingError, Projection, project
from privacy.events import MechanismEvent


@dataclass(frozen=True, kw_only=True)
class PastDebit:
    """What the record says of one earlier debit.

    Attributes:
        run, study_digest: which run of which study.
        at: when.
        events: what it paid for.
    """

    run: str
    study_digest: str
    at: datetime
    events: tuple[MechanismEvent, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study asks for.

    Attributes:
        run: the run, or None if it is not known yet.
        study_name, study_digest: the study.
        columns: every column that it reads.
        events: what it wants to run now.
        delta: the study's.
        study_epsilon: the study's own cap at a site.
    """

    run: str | None
    study_name: str
    study_digest: str
    columns: Collection[str]
    events: tuple[MechanismEvent, ...]
    delta: float
    study_epsilon: float


@dataclass(frozen=True, kw_only=True)
class Objection:
    """One reason why a plan may not run, in words that say nothing about patients.

    Attributes:
        code: `policy` or `budget`.
        reason: names the field, the value and the bound.
    """

    code: str
    reason: str


def policy_objections(plan: Plan, policy: SitePolicy, now: datetime) -> list[Objection]:
    """What the policy has against a plan, whatever it costs."""
    found = []
    if not policy.allows_study(plan.study_name, plan.study_digest):
        found.append(
            f"study {plan.study_name!r} ({plan.study_digest}) is not among the studies this site allows"
        )
    foreign = sorted(set(plan.columns) - policy.columns) if policy.columns is not None else []
    if foreign:
        found.append(f"the study reads the columns {foreign}, which this site does not allow")
    if plan.delta > policy.max_delta:
        found.append(f"the study's delta is {plan.delta:g}; this site allows at most {policy.max_delta:g}")
    if policy.quiet_hours is not None and policy.is_quiet(now):
        quiet = policy.quiet_hours
        found.append(
            f"nothing runs here between {quiet.start:%H:%M} and {quiet.end:%H:%M} by this site's clock; try again "
            "after that"
        )
    return [Objection(code="policy", reason=reason) for reason in found]


def study_cap(plan: Plan, policy: SitePolicy) -> float:
    """The cap on a study at this site: the site's or the study's own, whichever is lower."""
    return min(policy.epsilon_per_study, plan.study_epsilon)


def project_study(plan: Plan, past: Sequence[PastDebit]) -> Projection:
    """What the plan would bring its study's spend to, over all of the study's runs, at its delta.

    Raises:
        AccountingError: the cost cannot be established.
    """
    study = [debit for debit in past if debit.study_digest == plan.study_digest]
    return project(_events(study), plan.events, delta=plan.delta)


def budget_objections(
    plan: Plan, policy: SitePolicy, past: Sequence[PastDebit], now: datetime
) -> list[Objection]:
    """Which caps the plan would go beyond, after everything in `past`.

    Privacy: per patient of this site. The caps on a run and on a study hold at the study's delta; the caps in total
        and per period cover all studies in one composition, at the policy's `max_delta`.
    """
    study = [debit for debit in past if debit.study_digest == plan.study_digest]
    run = [debit for debit in study if debit.run == plan.run]
    checks: list[tuple[str, Sequence[PastDebit], float, float]] = [
        ("this run", run, plan.delta, policy.epsilon_per_run),
        (f"study {plan.study_name!r}", study, plan.delta, study_cap(plan, policy)),
    ]
    if policy.window_days is not None and policy.epsilon_per_window is not None:
        recent = [debit for debit in past if debit.at > now - timedelta(days=policy.window_days)]
        period = f"all studies within {policy.window_days} days"
        checks.append((period, recent, policy.max_delta, policy.epsilon_per_window))
    checks.append(("all studies at this site", past, policy.max_delta, policy.epsilon_total))
    found = []
    for what, debits, delta, cap in checks:
        try:
            projection = project(_events(debits), plan.events, delta=delta)
        except AccountingError as error:
            found.append(
                Objection(code="budget", reason=f"the cost of {what} cannot be established: {error}")
            )
            continue
        if projection.after.epsilon > cap:
            found.append(
                Objection(
                    code="budget",
                    reason=f"{what} would go from epsilon {projection.before.epsilon:.4f} to "
                    f"{projection.after.epsilon:.4f} at delta {delta:g}; the cap is {cap:g}",
                )
            )
    return found


def _events(debits: Sequence[PastDebit]) -> list[MechanismEvent]:
    return [event for debit in debits for event in debit.events]
