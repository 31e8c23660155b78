"""What the guard writes down besides debits, and how it reads what it is asked: plans, questions, refusals."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from client.debits import Quote, RefusedError
from client.limits import Plan
from client.record import Transaction
from privacy.accounting import MIN_DELTA
from privacy.budget import check_delta, check_epsilon
from privacy.canonical import check_digest
from privacy.events import MechanismEvent


def read_plan(
    run: str | None,
    study_name: str,
    study_digest: str,
    columns: Collection[str],
    events: Sequence[MechanismEvent],
    delta: float,
    study_epsilon: float,
) -> Plan:
    """A plan from what a request says.

    Raises:
        RefusedError: `request`: a value makes no sense.
    """
    try:
        check_digest(study_digest, name="study_digest")
        check_delta(delta)
        check_epsilon(study_epsilon, name="study_epsilon")
        if delta < MIN_DELTA:
            raise ValueError(f"delta is {delta!r}; it must be at least {MIN_DELTA:g}")
    except ValueError as error:
        raise RefusedError("request", str(error)) from error
    return Plan(
        run=run,
        study_name=study_name,
        study_digest=study_digest,
        columns=tuple(columns),
        events=tuple(events),
        delta=float(delta),
        study_epsilon=float(study_epsilon),
    )


def require_digest(digest: str, *, name: str) -> None:
    """Raise RefusedError unless `digest` is one."""
    try:
        check_digest(digest, name=name)
    except ValueError as error:
        raise RefusedError("request", str(error)) from error


def note_question(record: Transaction, plan: Plan, quote: Quote) -> None:
    """Write down that a study asked, for the person who decides; the same question once only."""
    body = {
        "study_name": plan.study_name,
        "study_digest": plan.study_digest,
        "columns": sorted(plan.columns),
        "projected_epsilon": repr(quote.projected_epsilon),
        "cap_epsilon": repr(quote.cap_epsilon),
        "delta": repr(plan.delta),
    }
    if not any(entry.kind == "asked" and entry.body == body for entry in record.entries):
        record.append("asked", body)


def note_refusal(
    record: Transaction, plan: Plan, number: int, request_digest: str, refusal: RefusedError
) -> None:
    """Write down a refusal; the same refusal once only, so that a nagging coordinator cannot fill the disk."""
    body = {
        "run": plan.run,
        "round": number,
        "study_name": plan.study_name,
        "study_digest": plan.study_digest,
        "request_digest": request_digest,
        "code": refusal.code,
        "reason": str(refusal),
    }
    if not any(entry.kind == "refused" and entry.body == body for entry in record.entries):
        record.append("refused", body)
