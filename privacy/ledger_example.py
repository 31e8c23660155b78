"""An invented federation's ledger, for practice: auditors, writers of a second verifier, tests and benchmarks.

Keys are fresh, patients do not exist, and every epsilon is what `cost` says its events cost. `write` hands out
the entries one by one and keeps none, so that a ledger of any length can be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from privacy.canonical import digest
from privacy.checkpoint import Checkpoint, cosign, parse_checkpoint, sign_checkpoint
from privacy.events import MechanismEvent
from privacy.findings import NO_ARRAYS
from privacy.ledger import (
    Aggregated,
    Body,
    CohortDrawn,
    Entry,
    Receipted,
    Released,
    SiteEnrolled,
    SitePolicy,
    StudyDefined,
    encode_entry,
)
from privacy.merkle import CompactRange, leaf_hash
from privacy.receipt import Receipt, decimal_text, sign_receipt, time_text
from privacy.signing import SigningKey

Cost = Callable[[list[MechanismEvent], float], float]
START = datetime(2026, 1, 1, tzinfo=UTC)
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class ExampleScale:
    """How large the invented federation is.

    Attributes:
        num_sites: sites; all take part in every round.
        num_studies: studies; study i has setting `i % num_settings`, so that equal settings share their epsilons.
        num_rounds: rounds of a study's one run, the measurement among them.
        num_cohorts: cohorts drawn from each study's release.
        num_settings: different noise multipliers.
        cosigned_every: how many rounds lie between two countersigned checkpoints in the history.
    """

    num_sites: int = 3
    num_studies: int = 1
    num_rounds: int = 3
    num_cohorts: int = 2
    num_settings: int = 1
    cosigned_every: int = 1


@dataclass
class ExampleLedger:
    """A ledger under construction.

    Attributes:
        scale: how large.
        cost: (events so far, delta) to epsilon: what every site will claim.
        key, sites: the coordinator's key and each site's.
        tree: head so far.
        history: signed and countersigned checkpoints so far.
    """

    scale: ExampleScale
    cost: Cost
    key: SigningKey = field(default_factory=lambda: SigningKey.generate(name="fedtwin.example/ledger"))
    sites: list[SigningKey] = field(default_factory=list)
    tree: CompactRange = field(default_factory=CompactRange)
    history: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(len(self.sites), self.scale.num_sites):
            self.sites.append(SigningKey.generate(name=f"site-{number + 1}"))
        self._minutes = 0
        self._costs: dict[tuple[int, int], float] = {}

    def write(self) -> Iterator[bytes]:
        """Every entry's canonical bytes, in order."""
        policy = {
            "epsilon_per_study": "50.0",
            "epsilon_total": decimal_text(50.0) if self.scale.num_studies == 1 else None,
            "max_delta": decimal_text(DELTA),
        }
        for site in self.sites:
            enrolled = SiteEnrolled(site=site.name, verify_key=site.public.text, node_key="ssh example")
            yield self.append(enrolled)
            yield self.append(SitePolicy(site=site.name, policy=policy))
        for study in range(self.scale.num_studies):
            yield from self._study(study, digest(policy))

    def append(self, body: Body) -> bytes:
        """One more entry."""
        data = encode_entry(Entry(body=body, logged_at=time_text(self._now())))
        self.tree.append(leaf_hash(data))
        return data

    def note(self, *, cosigners: int | None = None) -> bytes:
        """A signed checkpoint of the tree so far, countersigned by the first `cosigners` sites (default: all)."""
        checkpoint = Checkpoint(origin=self.key.name, size=self.tree.size, root=self.tree.root())
        timestamp = int(self._now().timestamp())
        lines = [cosign(checkpoint, site, timestamp=timestamp) for site in self.sites[:cosigners]]
        return parse_checkpoint(sign_checkpoint(checkpoint, self.key)).with_signatures(lines).encode()

    def _study(self, number: int, policy: str) -> Iterator[bytes]:
        defined = StudyDefined(
            definition={"name": f"study-{number}", "privacy": {"epsilon": 50.0, "delta": DELTA}},
            epsilon=50.0,
            delta=DELTA,
        )
        yield self.append(defined)
        study, run = defined.study_digest, f"run-{number}"
        base, weights = NO_ARRAYS, ""
        events: list[MechanismEvent] = []
        for round_number in range(1, self.scale.num_rounds + 1):
            events.append(self.event(number, round_number))
            names = []
            for site in self.sites:
                receipt = self._receipt(site, study, run, round_number, base, policy, events)
                yield self.append(receipt)
                names.append(receipt.receipt_digest)
            weights = digest([run, round_number])
            yield self.append(
                Aggregated(
                    study_digest=study,
                    run=run,
                    round=round_number,
                    base_digest=base,
                    receipts=tuple(names),
                    result_digest=weights,
                    next_base_digest=weights,
                )
            )
            base = weights
            if round_number % self.scale.cosigned_every == 0:
                self.history.append(self.note())
        released = Released(
            study_digest=study,
            run=run,
            round=self.scale.num_rounds,
            weights_digest=weights,
            state="published",
        )
        yield self.append(released)
        for cohort in range(self.scale.num_cohorts):
            yield self.append(
                CohortDrawn(
                    cohort=f"cohort-{number}-{cohort}",
                    release_digest=released.release_digest,
                    rows=1000,
                    conditions_digest=digest({}),
                    files={"patients.csv": digest([number, cohort]), "certificate.json": digest([cohort])},
                )
            )

    def event(self, study: int, round_number: int) -> MechanismEvent:
        """What every site runs in a round of a study."""
        stretch = 1 + 0.1 * (study % self.scale.num_settings)
        if round_number == 1:
            return MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=8.0 * stretch)
        return MechanismEvent(
            phase="refine",
            kind="subsampled_gaussian",
            noise_multiplier=2.0 * stretch,
            sample_rate=0.05,
            steps=80,
        )

    def _receipt(
        self,
        site: SigningKey,
        study: str,
        run: str,
        round_number: int,
        base: str,
        policy: str,
        events: list[MechanismEvent],
    ) -> Receipted:
        setting = (int(run.removeprefix("run-")) % self.scale.num_settings, round_number)
        if setting not in self._costs:
            self._costs[setting] = self.cost(events, DELTA)
        receipt = Receipt(
            study_digest=study,
            run=run,
            round=round_number,
            site=site.name,
            base_digest=base,
            update_digest=digest([site.name, run, round_number]),
            events=(events[-1],),
            spend_epsilon=self._costs[setting],
            spend_delta=DELTA,
            policy_digest=policy,
            code_digest=digest("code"),
            dataset_fingerprint="hmac-sha256:" + "0" * 64,
            noise_source="aes-ctr",
            nonce=digest([site.name, run, round_number, "nonce"]),
            issued_at=self._now(),
        )
        return Receipted(envelope=sign_receipt(receipt, site))

    def _now(self) -> datetime:
        self._minutes += 1
        return START + timedelta(minutes=self._minutes)
