"""The round loop: quote, measure, warm-start, refine, release. One transaction a round; resumes from the last one.

The loop trusts no reply: each is checked once (`server.acceptance`), what passes is aggregated with public,
equal weights if the quorum is met, and everything that happened becomes ledger entries with the round.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.digests import digest_of
from models.exchange import MessageKind, RoundReply, RoundRequest
from models.moments import MomentLayout
from models.refinement import aggregate, score
from models.study import Study
from models.warm_start import warm_start
from models.weights import decode_arrays, encode_arrays
from privacy.merkle import LedgerVerificationError
from privacy.receipt import decimal_text
from server import ledger_store, round_records, runs, sites, studies
from server.acceptance import ReplyRejectedError, check_update, digest_of_policy, open_reply, read_quote
from server.errors import ServerError
from server.federation import Federation, SiteFailure
from server.releases import Release
from server.round_records import SiteOutcome
from server.store import Store

log = logging.getLogger("fedtwin.rounds")

RETRY_PAUSE_SECONDS = 2.0
QUOTE_DEADLINE_SECONDS = 60.0


class RoundFailedError(Exception):
    """A round that cannot count; says which sites did what."""


class RunStoppedError(Exception):
    """Somebody asked the run to stop."""


@dataclass
class _Round:
    """One round while it runs."""

    number: int
    requests: dict[str, RoundRequest]
    expected: Mapping[str, Tensor]
    accepted: dict[str, RoundReply] = field(default_factory=dict)
    outcomes: dict[str, SiteOutcome] = field(default_factory=dict)


def run_rounds(federation: Federation, store: Store, run_id: str) -> Release | None:
    """Take a run from where it stands to its end.

    Args:
        federation: how the sites are reached.
        store: the coordinator's state.
        run_id: a run that is queued or running; a resumed one goes on after its last recorded round.

    Returns:
        The release candidate; None if the run was stopped.
    """
    loop = RoundLoop(federation, store, run_id)
    try:
        return loop.run()
    except RunStoppedError:
        runs.finish_run(store, run_id, "stopped", reason="stopped on request; resume goes on from here")
        return None
    except RoundFailedError as error:
        runs.finish_run(store, run_id, "failed", reason=str(error))
        raise
    except Exception as error:
        log.exception("run %s failed", run_id)
        runs.finish_run(store, run_id, "failed", reason=f"{type(error).__name__}: {error}")
        raise


class RoundLoop:
    """The rounds of one run."""

    def __init__(self, federation: Federation, store: Store, run_id: str) -> None:
        self._federation = federation
        self._store = store
        self._run = runs.start_running(store, run_id)
        self._study: Study = studies.get_study(store, self._run.study).study
        self._keys = {site.name: site.key for site in sites.list_sites(store) if site.name in self._run.sites}
        self._witnessed: dict[str, int | None] = {}
        self._started = time.monotonic()

    def run(self) -> Release:
        """All rounds that are not recorded yet, then the release candidate."""
        last = round_records.last_round(self._store, self._run.id)
        done = 0 if last is None else last.round
        participants = self._quote(done + 1) if done < self._study.num_rounds else []
        for number in range(done + 1, self._study.num_rounds + 1):
            if runs.stop_requested(self._store, self._run.id):
                raise RunStoppedError
            if number == 1:
                self._measure(participants)
            else:
                self._refine(number, participants)
            self._report("refine" if number > 1 else "warm-start", number)
        witnesses = participants or list(self._run.sites)
        self._gather_witnesses(witnesses)  # of the last round, before the run counts as completed
        release = self._release()
        self._gather_witnesses(witnesses)  # and of the release itself
        return release

    def _quote(self, first_round: int) -> list[str]:
        """Ask every site what the rest would cost it and whether it is ready; costs nothing."""
        self._report("quote", first_round - 1)
        requests = self._requests("quote", first_round, list(self._run.sites), {})
        replies = self._federation.exchange(requests, deadline_seconds=QUOTE_DEADLINE_SECONDS)
        ready, reasons = [], []
        for site, reply in replies.items():
            if isinstance(reply, SiteFailure):
                reasons.append(f"{site}: {reply.reason}")
                continue
            self._note_witness(site, reply)
            if reply.refusal is not None:
                reasons.append(f"{site}: {reply.refusal.reason}")
                continue
            try:
                quote = read_quote(reply)
                self._note_policy(site, reply)
            except (ReplyRejectedError, ServerError) as error:
                reasons.append(f"{site}: {error}")
                continue
            if quote.reasons:
                reasons.append(f"{site}: {'; '.join(quote.reasons)}")
                continue
            ready.append(site)
            self._say(
                f"{site} would go from epsilon {quote.spent:.3f} to {quote.projected:.3f} of its cap {quote.cap:.3f}"
            )
        for reason in reasons:
            self._say(f"does not take part: {reason}", level="warning")
        self._need_quorum(len(ready), "ready", reasons)
        return ready

    def _measure(self, participants: list[str]) -> None:
        layout = MomentLayout.of(self._study.table)
        expected = {"moments": torch.zeros(layout.size, dtype=torch.float64)}
        started = time.monotonic()
        finished = self._exchange(1, "measure", participants, {}, expected)
        self._report("warm-start", 0)
        multiplier = self._study.measure.noise_multiplier
        assert multiplier is not None  # a registered study is calibrated
        total = torch.stack([reply.arrays["moments"] for reply in finished.accepted.values()]).sum(0)
        fitted = warm_start(
            self._study,
            total,
            noise_std=multiplier * layout.sensitivity,
            num_releases=len(finished.accepted),
        )
        self._record(
            finished,
            "measure",
            fitted.generator.to_arrays(),
            {"anchor": fitted.anchor},
            fitted.scores(),
            started,
        )

    def _refine(self, number: int, participants: list[str]) -> None:
        last = round_records.last_round(self._store, self._run.id)
        assert last is not None  # round 1 came before
        base = decode_arrays(self._store.load(last.arrays["generator"]))
        anchor = decode_arrays(self._store.load(last.arrays["anchor"]))
        started = time.monotonic()
        finished = self._exchange(number, "refine", participants, {**base, **anchor}, base)
        generator = aggregate(base, [reply.arrays for reply in finished.accepted.values()])
        self._record(finished, "refine", generator, anchor, score(self._study, generator, anchor), started)

    def _release(self) -> Release:
        """Propose the generator that fits the noisy moments best, of all rounds."""
        recorded = round_records.list_rounds(self._store, self._run.id)
        best = min(recorded, key=lambda one: (one.scores["misfit"], -one.round))
        release = round_records.complete_run(self._store, self._run.id, release_round=best.round)
        self._say(f"proposes the generator of round {best.round} as release {release.digest}")
        return release

    def _exchange(
        self,
        number: int,
        kind: MessageKind,
        participants: list[str],
        arrays: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
    ) -> _Round:
        """Ask until the quorum is met or the deadline has passed; a site that failed is asked again meanwhile."""
        current = _Round(
            number=number, requests=self._requests(kind, number, participants, arrays), expected=expected
        )
        deadline = time.monotonic() + self._study.federation.round_deadline_seconds
        waiting = dict(current.requests)
        while waiting:
            left = max(0.1, deadline - time.monotonic())
            for site, reply in self._federation.exchange(waiting, deadline_seconds=left).items():
                self._judge(current, site, reply)
            waiting = {
                site: current.requests[site] for site in waiting if current.outcomes[site].outcome == "failed"
            }
            enough = len(current.accepted) >= self._study.federation.quorum
            if enough or time.monotonic() + RETRY_PAUSE_SECONDS > deadline:
                break
            if runs.stop_requested(self._store, self._run.id):
                raise RunStoppedError
            time.sleep(RETRY_PAUSE_SECONDS)
        if len(current.accepted) < self._study.federation.quorum:
            round_records.record_outcomes(
                self._store, run_id=self._run.id, round=number, outcomes=list(current.outcomes.values())
            )
        self._need_quorum(
            len(current.accepted),
            f"accepted in round {number}",
            [f"{one.site}: {one.reason}" for one in current.outcomes.values() if one.outcome != "accepted"],
        )
        return current

    def _judge(self, current: _Round, site: str, reply: RoundReply | SiteFailure) -> None:
        """One site's outcome; said aloud unless it counts."""
        if isinstance(reply, SiteFailure):
            outcome = SiteOutcome(site=site, outcome="failed", code=reply.code, reason=reply.reason)
        elif reply.refusal is not None:
            self._note_witness(site, reply)
            refusal = reply.refusal
            outcome = SiteOutcome(site=site, outcome="refused", code=refusal.code, reason=refusal.reason)
        else:
            self._note_witness(site, reply)
            outcome = self._accept(current, site, reply)
        current.outcomes[site] = outcome
        if outcome.outcome != "accepted":
            self._say(f"round {current.number}: {site} {outcome.outcome}: {outcome.reason}", level="warning")

    def _accept(self, current: _Round, site: str, reply: RoundReply) -> SiteOutcome:
        """Check a reply; a receipt that holds is kept also where the update is dropped, since it was spent."""
        request = current.requests[site]
        known: dict[str, Any] = {}
        try:
            receipt = open_reply(request, reply, site=site, key=self._keys[site])
            self._note_policy(site, reply)
            known = {
                "receipt": reply.receipt,
                "spent_epsilon": decimal_text(receipt.spend_epsilon),
                "spent_delta": decimal_text(receipt.spend_delta),
                "cap_epsilon": decimal_text(self._study.privacy.epsilon),
            }
            check_update(request, reply, receipt, expected=current.expected)
        except (ReplyRejectedError, ServerError) as error:
            return SiteOutcome(site=site, outcome="rejected", code="rejected", reason=str(error), **known)
        current.accepted[site] = reply
        return SiteOutcome(site=site, outcome="accepted", **known)

    def _record(
        self,
        finished: _Round,
        phase: str,
        generator: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        scores: Mapping[str, float],
        started: float,
    ) -> None:
        """One transaction: round, spends, ledger entries, checkpoint; the files are on the disk before it."""
        request = next(iter(finished.requests.values()))
        following = {**generator, **anchor}
        last = finished.number == self._study.num_rounds
        round_records.record_round(
            self._store,
            run_id=self._run.id,
            round=finished.number,
            phase=phase,
            base_digest=request.base_digest,
            next_base_digest=digest_of(encode_arrays(generator if last else following)),
            arrays={"generator": encode_arrays(generator), "anchor": encode_arrays(anchor)},
            outcomes=list(finished.outcomes.values()),
            scores=scores,
            seconds=time.monotonic() - started,
        )

    def _requests(
        self, kind: MessageKind, number: int, names: list[str], arrays: Mapping[str, Tensor]
    ) -> dict[str, RoundRequest]:
        return {
            name: RoundRequest(
                kind=kind,
                run=self._run.id,
                round=number,
                nonce=hashlib.sha256(f"{self._run.id}/{number}/{kind}/{name}".encode()).hexdigest(),
                study=self._study,
                arrays=arrays,
                checkpoint=self._checkpoint_for(name),
            )
            for name in names
        }

    def _checkpoint_for(self, site: str) -> dict[str, object] | None:
        """The newest checkpoint with its consistency proof since the one that the site has seen."""
        newest = ledger_store.latest_checkpoint(self._store)
        if newest is None:
            return None
        since = self._witnessed.get(site)
        size = newest.checkpoint.size
        proof = ledger_store.prove_consistency(self._store, since, size) if since and since <= size else []
        return {"note": newest.encode().decode(), "since": since, "proof": [part.hex() for part in proof]}

    def _note_witness(self, site: str, reply: RoundReply) -> None:
        """Remember what the site has seen, and keep its countersignature; what makes no sense is dropped."""
        try:
            if reply.witness is None:
                return
            size, line = int(reply.witness["size"]), reply.witness.get("signature")
            self._witnessed[site] = size
            if line:
                ledger_store.add_cosignature(self._store, site=site, size=size, line=str(line))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            ServerError,
            LedgerVerificationError,
        ) as error:
            self._say(f"{site}: its countersignature does not hold: {error}", level="warning")

    def _note_policy(self, site: str, reply: RoundReply) -> None:
        """Log a policy that the site has changed, so that its next receipt names one that is in the ledger.

        Raises:
            ReplyRejectedError, ServerError: it is no policy.
        """
        known = sites.get_site(self._store, site)
        if digest_of_policy(reply) == known.policy_digest:
            return
        sites.enrol_site(
            self._store,
            name=site,
            title=known.title,
            receipt_key=known.receipt_key,
            node_public_key=known.node_public_key,
            policy=dict(reply.policy or {}),
        )
        self._say(f"{site} has changed its policy; the new one is in the ledger")

    def _gather_witnesses(self, names: list[str]) -> None:
        """Show every site the last checkpoint, so that its countersignature stands under the whole run."""
        requests = self._requests("witness", self._study.num_rounds, names, {})
        replies = self._federation.exchange(requests, deadline_seconds=QUOTE_DEADLINE_SECONDS)
        for site, reply in replies.items():
            if isinstance(reply, RoundReply):
                self._note_witness(site, reply)

    def _need_quorum(self, found: int, what: str, reasons: list[str]) -> None:
        quorum = self._study.federation.quorum
        if found < quorum:
            raise RoundFailedError(
                f"{found} of at least {quorum} sites were {what}"
                + "".join(f"; {reason}" for reason in reasons)
            )

    def _report(self, phase: str, rounds_done: int) -> None:
        total = self._study.num_rounds + 1  # the warm start counts as one
        steps = rounds_done + (1 if rounds_done >= 1 else 0)
        elapsed = time.monotonic() - self._started
        eta = elapsed / steps * (total - steps) if steps else None
        runs.report_progress(
            self._store,
            self._run.id,
            phase=phase,
            round=rounds_done,
            percent=min(99.0, 100.0 * steps / total),
            eta_seconds=eta,
        )

    def _say(self, text: str, *, level: str = "info") -> None:
        log.info("run %s: %s", self._run.id, text)
        runs.add_message(self._store, self._run.id, text, level=level)
