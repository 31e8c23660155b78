"""The guard: the site's own authority that refuses or records a spend before it happens.

Order of things, which is the promise: authorise -> debit -> the debit is on the disk -> only then is noise drawn ->
the reply is kept -> settle -> only then does anything leave. Nothing is ever refunded: what was debited is spent,
whether its round ended, failed or was never heard of again.

Guarantees, per patient of the site with all records: everything that one study ever released is
(cap per study, the study's delta)-differentially private; everything that all studies together ever released is
(cap in total, the policy's max_delta)-differentially private.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from client.claims import RoundClaim
from client.debits import Debit, Decision, Quote, RefusedError, StudyRequest
from client.history import decision_on, find_round, most_asked, past_debits, round_of, verify_spends
from client.limits import (
    Plan,
    budget_objections,
    policy_objections,
    project_study,
    study_cap,
)
from client.notes import note_question, note_refusal, read_plan, require_digest
from client.policy import SitePolicy
from client.record import Record, RecordBusyError, RecordEntry, RecordHead, Transaction
from privacy.accounting import AccountingError, Projection, spend_of
from privacy.budget import PrivacySpend
from privacy.canonical import check_digest
from privacy.events import MechanismEvent


class Guard:
    """Refuses or records every spend of one site.

    Privacy: unit is one patient with all records. Several processes and threads may guard with one record.

    Args:
        record_path: the record's file; made on first use.
        policy: what the site allows, read afresh for every request.
        clock: the time now, aware; the system's by default.
        timeout_seconds: how long to wait for another process's debit before answering `busy`.
    """

    def __init__(
        self,
        record_path: Path,
        policy: SitePolicy,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timeout_seconds: float = 60.0,
    ) -> None:
        self.policy = policy
        self._record = Record(record_path, timeout_seconds=timeout_seconds)
        self._claims = record_path.with_name(record_path.name + ".claims")
        self._clock = clock

    def quote(
        self,
        *,
        study_name: str,
        study_digest: str,
        columns: Collection[str],
        planned_events: Sequence[MechanismEvent],
        delta: float,
        study_epsilon: float,
        num_patients: int,
        run: str | None = None,
        first_round: int = 1,
    ) -> Quote:
        """What these rounds would bring the study to; spends nothing and notes the question.

        Args:
            study_name, study_digest, columns, delta, study_epsilon: the study.
            planned_events: one event for each round from `first_round` on.
            num_patients: of the site's table. Sensitive: compared with the policy's minimum, never stored.
            run, first_round: where they are known, rounds of that run that are debited already are not
                counted again: resuming costs nothing.

        Raises:
            RefusedError: `data`: fewer patients than the policy's minimum; `request`: the plan makes no sense;
                `busy`.
            RecordError: the record cannot be used.
        """
        plan = read_plan(run, study_name, study_digest, columns, planned_events, delta, study_epsilon)
        with self._transaction() as record:
            paid = {round_of(entry) for entry in record.entries if entry.kind == "debit"}
            left = tuple(
                event for number, event in enumerate(plan.events, first_round) if (run, number) not in paid
            )
            plan = read_plan(run, study_name, study_digest, columns, left, delta, study_epsilon)
            quote = self._quote(record, plan)
            note_question(record, plan, quote)
        if quote.allowed:  # last, so that nothing that is told depends on it
            self._check_patients(num_patients)
        return quote

    def debit(
        self,
        *,
        run: str,
        round: int,
        study_name: str,
        study_digest: str,
        columns: Collection[str],
        events: Sequence[MechanismEvent],
        delta: float,
        study_epsilon: float,
        num_patients: int,
        request_digest: str,
    ) -> Debit:
        """Authorise a round and record its spend; when this returns, the spend is on the disk.

        Guarantees: no noise may be drawn before it returns, and what it returned pays for exactly one reply.
            The same run, round and request give the same debit, with the reply that was kept if there is one. While
            the debit object lives, no other process or thread is given the same round.

        Args:
            run, round: which round asks, from 1.
            study_name, study_digest, columns, delta, study_epsilon: of which study.
            events: every mechanism that the round will run.
            num_patients: of the site's table. Sensitive: compared with the policy's minimum, never stored.
            request_digest: of what is to be computed.

        Raises:
            RefusedError: says why; it is in the record, and nothing was spent.
            RecordError: the record cannot be used. The debit may be in it: then it is spent, and asking again
                gives it back.
        """
        plan = read_plan(run, study_name, study_digest, columns, events, delta, study_epsilon)
        if isinstance(round, bool) or not isinstance(round, int) or round < 1 or not plan.events:
            raise RefusedError("request", f"round {round!r} with {len(plan.events)} events is no round")
        require_digest(request_digest, name="request_digest")
        claim = RoundClaim(self._claims, run, round)
        try:
            if not claim.taken:
                raise RefusedError("busy", f"round {round} of run {run} is being computed already")
            return self._debit(plan, round, num_patients, request_digest, claim)
        except BaseException:
            claim.release()
            raise

    def _debit(
        self, plan: Plan, number: int, num_patients: int, request_digest: str, claim: RoundClaim
    ) -> Debit:
        assert plan.run is not None  # debit() has it
        refusal: RefusedError | None = None
        with self._transaction() as record:
            known = find_round(record.entries, "debit", plan.run, number)
            refusal = self._refusal(record, plan, number, num_patients, request_digest, known)
            if refusal is not None:
                note_refusal(record, plan, number, request_digest, refusal)
            elif known is None:
                known = self._append_debit(record, plan, number, request_digest)
            settled = find_round(record.entries, "settled", plan.run, number)
        if refusal is not None:
            raise refusal
        assert known is not None
        return Debit(
            run=plan.run,
            round=number,
            study_digest=plan.study_digest,
            request_digest=request_digest,
            spend_epsilon=float(known.body["spend_epsilon"]),
            spend_delta=float(known.body["delta"]),
            seq=known.seq,
            reply_digest=None if settled is None else settled.body["reply_digest"],
            reply_path=None if settled is None else settled.body["reply_path"],
            claim=claim,
        )

    def settle(self, debit: Debit, *, reply_digest: str, reply_path: str | None = None) -> None:
        """Note the one reply that the debit paid for. Send it only after this returned.

        The same digest again changes nothing.

        Raises:
            RefusedError: `request`: another reply was settled before; this one must not be sent.
            RecordError: the record cannot be used; do not send.
        """
        require_digest(reply_digest, name="reply_digest")
        with self._transaction() as record:
            if find_round(record.entries, "debit", debit.run, debit.round) is None:
                raise RefusedError("request", f"round {debit.round} of run {debit.run} was never debited")
            settled = find_round(record.entries, "settled", debit.run, debit.round)
            if settled is None:
                body = {"run": debit.run, "round": debit.round, "debit": debit.seq}
                record.append("settled", {**body, "reply_digest": reply_digest, "reply_path": reply_path})
            elif settled.body["reply_digest"] != reply_digest:
                raise RefusedError(
                    "request",
                    f"round {debit.round} of run {debit.run} was settled with another reply; a debit pays for one "
                    "reply only, so this one must not be sent",
                )
        if debit.claim is not None:
            debit.claim.release()

    def give_up(self, debit: Debit) -> None:
        """Let go of a round without a reply: its debit stays spent, and the same request may be computed again."""
        if debit.claim is not None:
            debit.claim.release()

    def decide(
        self, study_digest: str, decision: Decision, *, study_name: str, by: str, reason: str = ""
    ) -> None:
        """Write down a person's decision on a study; the last one counts, in automatic mode too.

        Raises:
            ValueError: no such decision, or nobody is named.
            RecordError, RefusedError: the record cannot be used, or is busy.
        """
        check_digest(study_digest, name="study_digest")
        if decision not in get_args(Decision):
            raise ValueError(f"decision is {decision!r}; it must be one of {get_args(Decision)}")
        if not by.strip():
            raise ValueError("by is empty; a decision has a person's name")
        body = {"study_digest": study_digest, "study_name": study_name, "decision": decision}
        with self._transaction() as record:
            record.append("decision", {**body, "by": by, "reason": reason})

    def requests(self) -> list[StudyRequest]:
        """Every study that ever asked, the latest last."""
        entries = self._record.entries()
        asked = {entry.body["study_digest"]: entry for entry in entries if entry.kind == "asked"}
        found = []
        for study_digest, entry in sorted(asked.items(), key=lambda item: item[1].seq):
            decided = decision_on(entries, study_digest)
            body = {name: entry.body[name] for name in ("study_name", "cap_epsilon", "delta")}
            found.append(
                StudyRequest(
                    **body,
                    projected_epsilon=most_asked(entries, study_digest),
                    study_digest=study_digest,
                    columns=tuple(entry.body["columns"]),
                    asked_at=entry.at,
                    decision=None if decided is None else decided.body["decision"],
                    decided_by="" if decided is None else decided.body["by"],
                    reason="" if decided is None else decided.body["reason"],
                )
            )
        return found

    def events(self, study_digest: str | None = None) -> tuple[MechanismEvent, ...]:
        """Every event ever debited for a study, or for all of them."""
        past = past_debits(self._record.entries())
        return tuple(e for debit in past if study_digest in (None, debit.study_digest) for e in debit.events)

    def spent(self, study_digest: str | None = None, *, delta: float) -> PrivacySpend:
        """What a study has spent here, or all studies together, at `delta`."""
        return spend_of(self.events(study_digest), delta=delta)

    def history(self) -> list[RecordEntry]:
        """The whole record, oldest first."""
        return self._record.entries()

    def head(self) -> RecordHead:
        """The record's head; kept elsewhere, it proves later that nothing was removed."""
        return self._record.head()

    def verify(self, *, since: RecordHead | None = None) -> None:
        """Check the record: chain, form, one debit and one reply per round, and every study's spend recomputed.

        Raises:
            RecordVerificationError: says what does not hold.
        """
        self._record.verify(since=since)
        verify_spends(self._record.entries())

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        try:
            with self._record.transaction(self._clock()) as record:
                yield record
        except RecordBusyError as error:
            raise RefusedError("busy", str(error)) from error

    def _check_patients(self, num_patients: int) -> None:
        if num_patients < self.policy.min_patients:
            raise RefusedError(
                "data",
                f"fewer patients for this study than the policy's patients.minimum, {self.policy.min_patients}; "
                "nobody outside is told",
            )

    def _refusal(
        self,
        record: Transaction,
        plan: Plan,
        number: int,
        num_patients: int,
        request_digest: str,
        known: RecordEntry | None,
    ) -> RefusedError | None:
        if known is not None and (known.body["request_digest"], known.body["study_digest"]) != (
            request_digest,
            plan.study_digest,
        ):
            return RefusedError(
                "request",
                f"round {number} of run {plan.run} was debited for another request; start a new run",
            )
        objections = policy_objections(plan, self.policy, record.now)
        if objections:
            return RefusedError("policy", "; ".join(objection.reason for objection in objections))
        reason = self._approval_objection(record, plan)
        if reason:
            return RefusedError("approval", reason)
        if known is None:
            objections = budget_objections(plan, self.policy, past_debits(record.entries), record.now)
            if objections:
                return RefusedError("budget", "; ".join(objection.reason for objection in objections))
        try:
            self._check_patients(num_patients)  # last, so that no other refusal depends on it
        except RefusedError as refusal:
            return refusal
        return None

    def _append_debit(self, record: Transaction, plan: Plan, number: int, request_digest: str) -> RecordEntry:
        self._note_policy(record)
        before = [
            float(entry.body["spend_epsilon"])
            for entry in record.entries
            if entry.kind == "debit" and entry.body["study_digest"] == plan.study_digest
        ]
        spend = project_study(plan, past_debits(record.entries)).after
        return record.append(
            "debit",
            {
                "run": plan.run,
                "round": number,
                "study_name": plan.study_name,
                "study_digest": plan.study_digest,
                "request_digest": request_digest,
                "policy_digest": self.policy.digest,
                "events": [event.to_dict() for event in plan.events],
                "delta": repr(plan.delta),
                # The running maximum: numerical noise of a millionth never lowers a recorded spend.
                "spend_epsilon": repr(max([spend.epsilon, *before])),
            },
            once=f"debit {number} {plan.run}",
        )

    def _quote(self, record: Transaction, plan: Plan) -> Quote:
        past = past_debits(record.entries)
        reasons = [o.reason for o in policy_objections(plan, self.policy, record.now)]
        reasons += filter(None, [self._approval_objection(record, plan)])
        if plan.events:
            reasons += [o.reason for o in budget_objections(plan, self.policy, past, record.now)]
        try:
            projection: Projection | None = project_study(plan, past)
        except AccountingError:
            projection = None  # then budget_objections has said so
        return Quote(
            spent_epsilon=projection.before.epsilon if projection else float("inf"),
            projected_epsilon=projection.after.epsilon if projection else float("inf"),
            cap_epsilon=study_cap(plan, self.policy),
            delta=plan.delta,
            reasons=tuple(reasons),
        )

    def _approval_objection(self, record: Transaction, plan: Plan) -> str:
        decided = decision_on(record.entries, plan.study_digest)
        decision = None if decided is None else decided.body["decision"]
        if decision in ("denied", "withdrawn"):
            return f"this site has {decision} study {plan.study_name!r}"
        if decision is None and self.policy.approval == "manual":
            return f"nobody at this site has approved study {plan.study_name!r} yet; its staff can see the request"
        return ""

    def _note_policy(self, record: Transaction) -> None:
        last = next((entry for entry in reversed(record.entries) if entry.kind == "policy"), None)
        if last is None or last.body["policy"] != self.policy.to_dict():
            record.append("policy", {"digest": self.policy.digest, "policy": self.policy.to_dict()})


__all__ = ["Debit", "Decision", "Guard", "Quote", "RefusedError", "StudyRequest"]
