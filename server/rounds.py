"""The round loop: measure, warm-start, refine, release. One transaction a round; resumes from the last one.

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
from typing import Literal

import torch
from torch import Tensor

from models.aggregation import aggregate, combine_moments
from models.anchor import AnchorError
from models.digests import digest_of
from models.measurement import Measurement, base_of
from models.refinement import score
from models.site_fit import SiteMoments, site_moments
from models.study import Study
from models.study_generator import base_of_next_exchange, fit_study
from models.weights import decode_arrays, encode_arrays
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
            if self._study.phase_of(number) == "measure":
                self._measure(number)
            else:
                self._refine(number)
        refined = self._study.refine.rounds > 0
        self._progress.report("refine" if refined else "warm-start", self._study.num_rounds)
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
        finished = self._sites.ask(number, "refine", {**base, **anchor}, base)
        answered = time.monotonic()
        updates = [reply.arrays for reply in finished.accepted.values()]
        generator = aggregate(base, updates, self._study.federation)
        scores = score(self._study, generator, anchor)
        self._log_work(number, answered)
        self._record(finished, "refine", generator, anchor, scores, started)

    def _kept(self, name: str) -> dict[str, Tensor]:
        """Arrays of the round before."""
        last = round_records.last_round(self._store, self._run.id)
        assert last is not None
        return decode_arrays(self._store.load(last.arrays[name]))

    def _log_work(self, number: int, since: float) -> None:
        """For whoever asks where a round's time goes (benchmarks/round_share.py)."""
        log.info("run %s: round %s: computed %.3f s", self._run.id, number, time.monotonic() - since)

    def _record(
        self,
        finished: RoundInProgress,
        phase: Literal["measure", "refine"],
        generator: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        scores: Mapping[str, float],
        started: float,
    ) -> None:
        """One transaction: round, spends, ledger entries, checkpoint; the files are on the disk before it."""
        request = next(iter(finished.requests.values()))
        # What the next round starts from: an exchange from its own base, a refinement from everything.
        following = base_of(anchor) or {**generator, **anchor}
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

    def _release(self) -> Release:
        """Propose the generator that fits the noisy moments best, of all rounds since the last exchange.

        What an earlier exchange gave was held against fewer moments, which are easier to fit.
        """
        last_exchange = self._study.measure.exchanges
        recorded = [
            one for one in round_records.list_rounds(self._store, self._run.id) if one.round >= last_exchange
        ]
        best = min(recorded, key=lambda one: (one.scores["misfit"], -one.round))
        release = round_records.complete_run(self._store, self._run.id, release_round=best.round)
        self._progress.say(f"proposes the generator of round {best.round} as release {release.digest}")
        return release


__all__ = ["RoundFailedError", "RoundLoop", "run_rounds"]
