"""The rules that hold between entries, applied in order: who may speak, what may be spent, what may follow what.

Feed `apply(index, fact)` every entry's fact from `privacy.bundles`, in order. Problems are collected, not raised:
an auditor wants to know everything that is wrong. Memory grows with studies, sites, runs and aggregated rounds,
not with receipts or cohorts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from privacy.accounting import Group
from privacy.bundles import Broken, CohortFact, ReceiptFact, RotationFact, StudyFact
from privacy.findings import NO_ARRAYS, REAL_NOISE, TOLERANCE, CapCheck, Claim, Problems, SiteRecord
from privacy.ledger import (
    CAPS,
    Aggregated,
    GateJudged,
    Refused,
    Released,
    SiteEnrolled,
    SiteLeft,
    SitePolicy,
    Withdrawn,
)
from privacy.receipt import read_events
from privacy.signing import VerifyKey


@dataclass
class _Run:
    study: str
    round: int = 0
    next_base: str | None = None
    open: dict[int, dict[str, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    "By round, of rounds that have no aggregate yet: receipt digest to (site, base)."


class LedgerReplay:
    """State of the ledger after the entries applied so far.

    Attributes:
        problems: by check name.
        sites: by site name.
        studies: by digest.
        rotations: (index, old key, new key) of the coordinator.
        membership: (index, number of active sites) at each change.
        aggregated_at: index of every aggregate.
        claims: by (merged events, delta): what is to be recomputed.
        caps: the caps on a site's runs and on all its studies together, each after the last receipt.
        counts: number of entries by kind.
    """

    def __init__(self) -> None:
        self.problems: dict[str, Problems] = defaultdict(Problems)
        self.sites: dict[str, SiteRecord] = {}
        self.studies: dict[str, StudyFact] = {}
        self.rotations: list[tuple[int, VerifyKey, VerifyKey]] = []
        self.membership: list[tuple[int, int]] = []
        self.aggregated_at: list[int] = []
        self.claims: dict[tuple[tuple[Group, ...], float], Claim] = {}
        self.caps: dict[tuple[str, str, str], CapCheck] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self._run_events: dict[tuple[str, str], tuple[Group, ...]] = {}
        self._runs: dict[str, _Run] = {}
        self._results: dict[tuple[str, int], str] = {}
        self._bases: dict[str, set[bytes]] = defaultdict(set)
        self._releases: dict[str, str] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._spent: dict[tuple[str, str], tuple[tuple[Group, ...], float, str]] = {}
        self._sums: dict[tuple[tuple[Group, ...], str], tuple[Group, ...]] = {}

    def apply(self, index: int, fact: Any) -> None:
        """Take the next entry."""
        kind = _KINDS.get(type(fact))
        if kind is None:
            self.problems["entries"].add(f"entry {index} has no rule: {type(fact).__name__}")
            return
        self.counts[kind] += 1
        if kind == "receipt":
            self._receipt(index, fact)
        elif kind == "cohort":
            self._cohort(index, fact)
        else:
            getattr(self, "_" + kind.replace("-", "_"))(index, fact)

    def final_claims(self) -> dict[tuple[tuple[Group, ...], float], Claim]:
        """Of `claims`, only those after the last receipt of each site and study."""
        groups = {spent[0] for spent in self._spent.values()}
        return {key: claim for key, claim in self.claims.items() if key[0] in groups}

    def spends(self) -> list[tuple[str, str, float, float | None]]:
        """(site, study digest, epsilon claimed last, study's budget), in order of site and study."""
        rows = []
        for (site, study), (_, epsilon, _) in sorted(self._spent.items()):
            known = self.studies.get(study)
            rows.append((site, study, epsilon, None if known is None else known.epsilon))
        return rows

    # Who may speak

    def _broken(self, index: int, fact: Broken) -> None:
        self.problems[fact.check].add(f"entry {index}: {fact.problem}")

    def _study(self, index: int, fact: StudyFact) -> None:
        if self.studies.setdefault(fact.study, fact) != fact:
            self.problems["entries"].add(
                f"entry {index}: study {_short(fact.study)} was logged with another budget"
            )

    def _site_enrolled(self, index: int, fact: SiteEnrolled) -> None:
        key = VerifyKey.from_text(fact.verify_key)
        record = self.sites.get(fact.site)
        if record is None:
            self.sites[fact.site] = SiteRecord(keys=[key])
        elif not record.active:
            record.active = True
            if key not in record.keys:
                record.keys.append(key)
        elif record.keys[-1] != key:
            self.problems["keys"].add(
                f"entry {index}: site {fact.site!r} got another key without a key rotation"
            )
        self._note_membership(index)

    def _site_left(self, index: int, fact: SiteLeft) -> None:
        record = self.sites.get(fact.site)
        if record is None or not record.active:
            self.problems["keys"].add(f"entry {index}: site {fact.site!r} left and was not enrolled")
            return
        record.active = False
        self._note_membership(index)

    def _site_policy(self, index: int, fact: SitePolicy) -> None:
        record = self.sites.get(fact.site)
        if record is None or not record.active:
            self.problems["receipts"].add(
                f"entry {index}: a policy of site {fact.site!r}, which is not enrolled"
            )
            return
        record.policies[fact.policy_digest] = fact

    def _key_rotation(self, index: int, fact: RotationFact) -> None:
        if fact.role == "coordinator":
            if self.rotations and self.rotations[-1][2] != fact.old:
                self.problems["keys"].add(
                    f"entry {index}: a coordinator's key is replaced that was not in force"
                )
            self.rotations.append((index, fact.old, fact.new))
            return
        record = self.sites.get(fact.old.name)
        if record is None or not record.active or record.keys[-1] != fact.old:
            self.problems["keys"].add(
                f"entry {index}: a key of {fact.old.name!r} is replaced that was not in force"
            )
        else:
            record.keys.append(fact.new)

    def _note_membership(self, index: int) -> None:
        self.membership.append((index, sum(record.active for record in self.sites.values())))

    # What may be spent

    def _receipt(self, index: int, fact: ReceiptFact) -> None:
        record = self.sites.get(fact.site)
        if record is None or fact.key != record.keys[-1].text:
            self.problems["receipts"].add(
                f"entry {index}: a receipt of site {fact.site!r} is signed by {fact.key}, not by its enrolled key"
            )
            return
        where = f"entry {index}: site {fact.site!r}, study {_short(fact.study)}, run {fact.run!r}, round {fact.round}"
        study = self.studies.get(fact.study)
        policy = record.policies.get(fact.policy)
        if study is None:
            self.problems["receipts"].add(f"{where}: the study is not in the ledger before it")
        if policy is None:
            self.problems["receipts"].add(
                f"{where}: the policy {_short(fact.policy)} is not in the ledger before it"
            )
        if fact.noise_source != REAL_NOISE:
            self.problems["noise"].add(
                f"{where}: the noise came from {fact.noise_source!r}, not from {REAL_NOISE!r}"
            )
        if not self._is_new(fact):
            self.problems["receipts"].add(f"{where}: a second receipt for one round")
            return
        run = self._run(fact.run, fact.study)
        if run.study != fact.study:
            self.problems["receipts"].add(f"{where}: the run belongs to study {_short(run.study)}")
        elif fact.round > run.round:
            run.open[fact.round][fact.digest] = (fact.site, fact.base)
        self._add_spend(index, where, fact)
        if study is not None and fact.delta != study.delta:
            self.problems["caps"].add(f"{where}: delta {fact.delta!r} is not the study's {study.delta!r}")
        self._check_caps(where, fact, study, policy)

    def _is_new(self, fact: ReceiptFact) -> bool:
        bit = 1 << fact.round if fact.round < 100_000 else 0
        seen = self._seen.get((fact.run, fact.site), 0)
        self._seen[fact.run, fact.site] = seen | bit
        return bit != 0 and not seen & bit

    def _add_spend(self, index: int, where: str, fact: ReceiptFact) -> None:
        before, claimed, issued_at = self._spent.get((fact.site, fact.study), ((), 0.0, ""))
        after = self._sum(before, fact.events)
        if fact.epsilon < claimed - TOLERANCE:
            self.problems["spend"].add(
                f"{where}: claims epsilon {fact.epsilon}, less than the {claimed} before it"
            )
        if fact.issued_at < issued_at:
            self.problems["receipts"].add(
                f"{where}: issued at {fact.issued_at}, logged after one of {issued_at}"
            )
        self._spent[fact.site, fact.study] = (
            after,
            max(claimed, fact.epsilon),
            max(issued_at, fact.issued_at),
        )
        claim = self.claims.get((after, fact.delta))
        if claim is None:
            self.claims[after, fact.delta] = Claim(fact.epsilon, fact.epsilon, index)
        elif fact.epsilon < claim.least:
            claim.least, claim.index = fact.epsilon, index
        elif fact.epsilon > claim.greatest:
            claim.greatest = fact.epsilon

    def _sum(self, before: tuple[Group, ...], events: str) -> tuple[Group, ...]:
        after = self._sums.get((before, events))
        if after is None:
            after = self._sums[before, events] = _merged(before, events)
        return after

    def _check_caps(
        self, where: str, fact: ReceiptFact, study: StudyFact | None, policy: SitePolicy | None
    ) -> None:
        record = self.sites[fact.site]
        record.events = self._sum(record.events, fact.events)
        in_run = self._sum(self._run_events.get((fact.site, fact.run), ()), fact.events)
        self._run_events[fact.site, fact.run] = in_run
        caps = [("the study's budget", fact.epsilon, study.epsilon)] if study is not None else []
        if policy is not None:
            per_run, per_study, total, max_delta = (policy.cap(name) for name in CAPS)
            if per_study is not None:
                caps.append(("the site's cap per study", fact.epsilon, per_study))
            if max_delta is not None:
                caps.append(("the site's cap on delta", fact.delta, max_delta))
            if per_run is not None:
                what = f"{where}: the run, at the site's cap per run"
                self.caps[fact.site, fact.run, fact.policy] = CapCheck(in_run, fact.delta, per_run, what)
            if total is not None:
                what = f"{where}: everything so far, at the site's cap over all studies"
                delta = fact.delta if max_delta is None else max_delta
                self.caps[fact.site, "", fact.policy] = CapCheck(record.events, delta, total, what)
        for name, spent, cap in caps:
            if spent > cap + TOLERANCE * cap:
                self.problems["caps"].add(f"{where}: {spent} is beyond {name}, {cap}")

    # What may follow what

    def _run(self, name: str, study: str) -> _Run:
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = _Run(study=study)
        return run

    def _refusal(self, index: int, fact: Refused) -> None:
        if fact.site not in self.sites:
            self.problems["rounds"].add(
                f"entry {index}: a refusal of site {fact.site!r}, which was never enrolled"
            )

    def _aggregate(self, index: int, fact: Aggregated) -> None:
        where = f"entry {index}: run {fact.run!r}, round {fact.round}"
        self.aggregated_at.append(index)
        run = self._run(fact.run, fact.study_digest)
        if run.study != fact.study_digest or fact.study_digest not in self.studies:
            self.problems["rounds"].add(
                f"{where}: the study {_short(fact.study_digest)} is not that of the run"
            )
        if fact.round <= run.round:
            self.problems["rounds"].add(f"{where}: the run has an aggregate of round {run.round} already")
        started = run.next_base is not None
        if started and fact.base_digest != run.next_base:
            self.problems["rounds"].add(f"{where}: does not start from what the round before it gave")
        known = (
            fact.base_digest == NO_ARRAYS
            or bytes.fromhex(fact.base_digest[7:]) in self._bases[fact.study_digest]
        )
        if not started and not known:
            self.problems["rounds"].add(f"{where}: starts from a generator that no logged round gave")
        receipts = run.open.get(fact.round, {})
        for name in fact.receipts:
            site, base = receipts.get(name, ("", ""))
            if not site:
                self.problems["rounds"].add(
                    f"{where}: uses receipt {_short(name)}, which is not in the ledger before it"
                )
            elif base != fact.base_digest:
                self.problems["rounds"].add(f"{where}: site {site!r} started from another generator")
            elif not self.sites[site].active:
                self.problems["rounds"].add(f"{where}: uses the update of site {site!r}, which had left")
        run.round, run.next_base = max(run.round, fact.round), fact.next_base_digest
        for round_number in [number for number in run.open if number <= run.round]:
            del run.open[round_number]
        self._results[fact.run, fact.round] = fact.result_digest
        self._bases[fact.study_digest].add(bytes.fromhex(fact.next_base_digest[7:]))

    def _release(self, index: int, fact: Released) -> None:
        where = f"entry {index}: release {_short(fact.release_digest)}"
        run = self._runs.get(fact.run)
        if run is None or run.study != fact.study_digest:
            self.problems["releases"].add(
                f"{where}: study {_short(fact.study_digest)} has no run {fact.run!r}"
            )
        elif self._results.get((fact.run, fact.round)) != fact.weights_digest:
            self.problems["releases"].add(
                f"{where}: its weights are not the result of round {fact.round} of run {fact.run!r}"
            )
        if self._releases.get(fact.release_digest) == "withdrawn" and fact.state != "withdrawn":
            self.problems["releases"].add(f"{where}: was withdrawn and is {fact.state} again")
        self._releases[fact.release_digest] = fact.state

    def _withdrawal(self, index: int, fact: Withdrawn) -> None:
        if fact.release_digest not in self._releases:
            self.problems["releases"].add(
                f"entry {index}: release {_short(fact.release_digest)} was never made"
            )
        self._releases[fact.release_digest] = "withdrawn"

    def _gate(self, index: int, fact: GateJudged) -> None:
        if fact.release_digest not in self._releases:
            self.problems["releases"].add(
                f"entry {index}: a gate judged {_short(fact.release_digest)}, no release"
            )

    def _cohort(self, index: int, fact: CohortFact) -> None:
        state = self._releases.get(fact.release)
        if state != "published":
            self.problems["cohorts"].add(
                f"entry {index}: a cohort from release {_short(fact.release)}, which was {state or 'never made'}"
            )


_KINDS: Final[dict[type[Any], str]] = {
    Broken: "broken",
    StudyFact: "study",
    SiteEnrolled: "site-enrolled",
    SiteLeft: "site-left",
    SitePolicy: "site-policy",
    ReceiptFact: "receipt",
    Refused: "refusal",
    Aggregated: "aggregate",
    Released: "release",
    CohortFact: "cohort",
    Withdrawn: "withdrawal",
    GateJudged: "gate",
    RotationFact: "key-rotation",
}


def _merged(before: tuple[Group, ...], events: str) -> tuple[Group, ...]:
    """Steps of equal mechanisms added up; plain Gaussians stay apart, so that the order cannot matter."""
    steps: dict[tuple[float, float], int] = {(sigma, rate): count for sigma, rate, count in before}
    for event in read_events(events):
        key = (event.noise_multiplier, event.sample_rate)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted((sigma, rate, count) for (sigma, rate), count in steps.items()))


def _short(digest: str) -> str:
    return digest[:19] + "..."
