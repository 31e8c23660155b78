"""The round loop: measure, warm-start, refine, compare, release. One transaction a round; resumes from the last one.

A study may measure in several exchanges; each is followed by a fit to all that was measured so far, and the next looks
more closely at what that found (`models.emphasis`, `models.image_lens`).

Who is asked, and what of the answers counts, is `server.round_exchange`'s. What counts becomes one by the study's rule
with public weights (`models.aggregation`) if the quorum is met, and everything that happened becomes ledger entries
with the round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.aggregation import combine_equally, combine_moments
from models.anchor import AnchorError
from models.comparison import GAIN, base_of_comparison, is_better
from models.digests import digest_of
from models.generator import MixtureGenerator
from models.measurement import Measurement, base_of
from models.reweighting import refined_generator
from models.scores import score
from models.site_fit import SiteMoments, site_moments
from models.study import Phase, Study
from models.study_generator import base_of_next_exchange, fit_study
from models.weights import decode_arrays, encode_arrays
from privacy.events import MechanismEvent
from server import round_records, runs, studies
from server.federation import Federation
from server.releases import Release
from server.round_exchange import RoundExchange, RoundFailedError
from server.round_in_progress import RoundInProgress
from server.run_progress import RunProgress, RunStoppedError
from server.store import Store

log = logging.getLogger("fedtwin.rounds")


def run_rounds(
    federation: Federation,
    store: Store,
    run_id: str,
    *,
    attempt: int | None = None,
    flower_run_id: str | None = None,
) -> Release | None:
    """Take a run from where it stands to its end.

    Args:
        federation: how the sites are reached.
        store: the coordinator's state.
        run_id: a run that is queued or running; a resumed one goes on after its last recorded round.
        attempt, flower_run_id: for which attempt at the run, and in which Flower run, where there is Flower.

    Returns:
        The release candidate; None if the run was stopped.

    Raises:
        ConflictError: the run has ended, or another process works on it; nothing was done.
        RoundFailedError: a round missed its quorum.
    """
    runs.start_running(store, run_id, attempt=attempt, flower_run_id=flower_run_id)
    loop = RoundLoop(federation, store, run_id)
    try:
        return loop.run()
    except RunStoppedError:
        reason = "stopped on request; resume goes on from here"
        runs.finish_run(store, run_id, "stopped", reason=reason, attempt=attempt)
        return None
    except RoundFailedError as error:
        runs.finish_run(store, run_id, "failed", reason=str(error), attempt=attempt)
        raise
    except Exception as error:
        log.exception("run %s failed", run_id)
        reason = f"{type(error).__name__}: {error}"
        runs.finish_run(store, run_id, "failed", reason=reason, attempt=attempt)
        raise


class RoundLoop:
    """The rounds of one run."""

    def __init__(self, federation: Federation, store: Store, run_id: str) -> None:
        self._store = store
        self._run = runs.get_run(store, run_id)
        self._study: Study = studies.get_study(store, self._run.study).study
        self._progress = RunProgress(
            store,
            run_id,
            num_rounds=self._study.num_rounds,
            num_measurements=self._study.measure.exchanges,
            with_pictures=self._study.image is not None,
        )
        self._sites = RoundExchange(federation, store, self._run, self._study, self._progress)

    def run(self) -> Release:
        """All rounds that are not recorded yet, then the release candidate."""
        last = round_records.last_round(self._store, self._run.id)
        done = 0 if last is None else last.round
        for number in range(done + 1, self._study.num_rounds + 1):
            self._progress.check()
            self._sites.call_roll(number)
            {"measure": self._measure, "refine": self._refine, "compare": self._compare}[
                self._study.phase_of(number)
            ](number)
        self._progress.report(
            "compare" if self._study.refine.rounds else "warm-start", self._study.num_rounds
        )
        self._sites.gather_witnesses()  # of the last round, before the run counts as completed
        release = self._release()
        self._sites.gather_witnesses()  # and of the release itself
        return release

    def _measure(self, number: int) -> None:
        base: dict[str, Tensor] = {}
        earlier = None
        if number > 1:
            kept = self._kept("anchor")
            base, earlier = base_of(kept), self._kept("generator") | kept
        measurement = Measurement.of(self._study, base)
        expected = {"moments": torch.zeros(measurement.size, dtype=torch.float64)}
        self._progress.report("measure", number - 1)
        started = time.monotonic()
        finished = self._sites.ask(number, "measure", base, expected)
        self._progress.report("warm-start", number - 1, step_done=1)
        multiplier = self._study.measure.noise_multiplier
        assert multiplier is not None  # a registered study is calibrated
        answered = time.monotonic()
        vectors = [reply.arrays["moments"] for reply in finished.accepted.values()]
        noise_std = multiplier * measurement.sensitivity
        combined = combine_moments(measurement.table, vectors, self._study.federation, noise_std=noise_std)
        for site, share, claimed in zip(finished.accepted, combined.shares, combined.claimed, strict=True):
            if share < 0.99 * claimed:
                self._progress.say(
                    f"{site} counts for {share:.0%} of the patients, {claimed:.0%} by its own number"
                )
        fitted = fit_study(
            self._study,
            combined.vector,
            noise_std=combined.noise_std,
            measurement=measurement,
            earlier=earlier,
            sites=self._each_site(measurement, finished, combined.shares, noise_std),
            progress=self._progress.while_fitting(number - 1),
        )
        if fitted.by_site:
            self._progress.say("the sites' patients differ: each site has a part of the generator of its own")
        self._log_work(number, answered)
        anchor = fitted.anchor
        if number < self._study.measure.exchanges:
            anchor |= base_of_next_exchange(
                fitted.generator, progress=self._progress.while_fitting(number - 1)
            )
        self._record(finished, "measure", fitted.generator.to_arrays(), anchor, fitted.scores, started)

    def _each_site(
        self, measurement: Measurement, finished: RoundInProgress, shares: Sequence[float], noise_std: float
    ) -> list[SiteMoments]:
        """The sites' tables one by one; none under a robust rule, which believes no site on its own."""
        if self._study.federation.aggregation != "mean":
            return []
        tables = {
            site: measurement.split(reply.arrays["moments"])[0] for site, reply in finished.accepted.items()
        }
        try:
            return site_moments(measurement.table, tables, shares, noise_std=noise_std)
        except AnchorError:  # one of them says too little alone; together they may say enough
            return []

    def _refine(self, number: int) -> None:
        base, anchor = self._kept("generator"), self._kept("anchor")
        self._progress.report("refine", number - 1)
        started = time.monotonic()
        expected = {"logits": torch.zeros(self._study.refine.num_judged)}
        finished = self._sites.ask(number, "refine", base, expected)
        answered = time.monotonic()
        judged = [reply.arrays["logits"] for reply in finished.accepted.values()]
        look = self._progress.while_fitting(number - 1, "refine")
        generator = refined_generator(
            self._study,
            MixtureGenerator.from_arrays(base, self._study.table.cardinalities),
            combine_equally(judged, self._study.federation),
            round_number=number,
            progress=lambda done: look("table", done),
        )
        scores = score(self._study, generator.to_arrays(), anchor)
        self._log_work(number, answered)
        self._record(finished, "refine", generator.to_arrays(), anchor, scores, started)

    def _compare(self, number: int) -> None:
        """Ask the sites whether what the refinement made is better than what it started from; keep the better."""
        before, after = self._kept("generator", self._study.measure.exchanges), self._kept("generator")
        anchor = self._kept("anchor")
        self._progress.report("compare", number - 1)
        started = time.monotonic()
        expected = {GAIN: torch.zeros(1, dtype=torch.float64)}
        finished = self._sites.ask(number, "compare", base_of_comparison(before, after), expected)
        answered = time.monotonic()
        gains = [reply.arrays[GAIN] for reply in finished.accepted.values()]
        mechanism = MechanismEvent.from_dict(self._study.mechanism("compare"))
        # Of a mean; no robust rule's outcome has more noise than one site's.
        noise_std = mechanism.noise_multiplier * mechanism.max_grad_norm
        if self._study.federation.aggregation == "mean":
            noise_std /= len(gains) ** 0.5
        gain = float(combine_equally(gains, self._study.federation))
        agreeing = sum(float(one) > 0 for one in gains) / len(gains)
        better = is_better(gain, noise_std=noise_std, agreeing=agreeing)
        self._progress.say(
            f"the patients speak for the {'refined generator' if better else 'warm start'}: its gain is {gain:.1f} "
            f"nats a site, with a noise of standard deviation {noise_std:.1f}; {agreeing:.0%} of the sites find one"
        )
        kept = after if better else before
        scores = {
            **score(self._study, kept, anchor),
            "gain": gain,
            "gain_noise": noise_std,
            "preferred": float(better),
        }
        self._log_work(number, answered)
        self._record(finished, "compare", kept, anchor, scores, started)

    def _kept(self, name: str, round: int | None = None) -> dict[str, Tensor]:
        """Arrays of a round; of the last one if None."""
        recorded = (
            round_records.last_round(self._store, self._run.id)
            if round is None
            else round_records.get_round(self._store, self._run.id, round)
        )
        assert recorded is not None
        return decode_arrays(self._store.load(recorded.arrays[name]))

    def _log_work(self, number: int, since: float) -> None:
        """For whoever asks where a round's time goes (benchmarks/round_share.py)."""
        log.info("run %s: round %s: computed %.3f s", self._run.id, number, time.monotonic() - since)

    def _record(
        self,
        finished: RoundInProgress,
        phase: Phase,
        generator: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        scores: Mapping[str, float],
        started: float,
    ) -> None:
        """One transaction: round, spends, ledger entries, checkpoint; the files are on the disk before it."""
        request = next(iter(finished.requests.values()))
        last = finished.number == self._study.num_rounds
        following = generator if last else self._base_after(finished.number, generator, anchor)
        round_records.record_round(
            self._store,
            run_id=self._run.id,
            round=finished.number,
            phase=phase,
            base_digest=request.base_digest,
            next_base_digest=digest_of(encode_arrays(following)),
            arrays={"generator": encode_arrays(generator), "anchor": encode_arrays(anchor)},
            outcomes=list(finished.outcomes.values()),
            scores=scores,
            seconds=time.monotonic() - started,
        )

    def _base_after(
        self, number: int, generator: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """What the round after this one starts from."""
        phase = self._study.phase_of(number + 1)
        if phase == "measure":
            return base_of(anchor)
        if phase == "refine":
            return generator
        return base_of_comparison(self._kept("generator", self._study.measure.exchanges), generator)

    def _release(self) -> Release:
        """Propose the warm start, or the last refinement where the patients spoke for it."""
        number, scores = self._study.measure.exchanges, None
        if self._study.refine.rounds:
            scores = round_records.get_round(self._store, self._run.id, self._study.num_rounds).scores
            if scores["preferred"]:
                number += self._study.refine.rounds
        release = round_records.complete_run(self._store, self._run.id, release_round=number, scores=scores)
        self._progress.say(f"proposes the generator of round {number} as release {release.digest}")
        return release


__all__ = ["RoundFailedError", "RoundLoop", "run_rounds"]
