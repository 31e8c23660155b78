"""The round loop: quote, measure, warm-start, refine, release. One transaction a round; resumes from the last one.

The loop trusts no reply: each is checked once (`server.acceptance`). What passes becomes one by the study's rule
with public weights (`models.aggregation`) if the quorum is met, and everything that happened becomes ledger entries
with the round.

Who is asked: the sites that were ready when they were last quoted. One that refuses or stays silent is not asked
to spend again until it has answered another quote; such quotes travel with later rounds, so that nobody waits
for them. One that left, or was suspended, is not asked at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from models.aggregation import aggregate, combine_moments
from models.digests import digest_of
from models.exchange import MessageKind, RoundReply, RoundRequest
from models.measurement import Measurement
from models.refinement import score
from models.study import Study
from models.study_generator import fit_study
from models.weights import decode_arrays, encode_arrays
from server import round_records, runs, studies
from server.federation import Federation, SiteFailure
from server.patience import STOP_CHECK_SECONDS, Patience
from server.releases import Release
from server.roll_call import RollCall
from server.round_in_progress import RoundInProgress
from server.round_requests import RoundRequests
from server.store import Store

log = logging.getLogger("fedtwin.rounds")

FIT_REPORT_SECONDS = 30.0
RETRY_PAUSE_SECONDS = 2.0
QUOTE_DEADLINE_SECONDS = 120.0
WITNESS_DEADLINE_SECONDS = 60.0


class RoundFailedError(Exception):
    """A round that cannot count; says which sites did what."""


class RunStoppedError(Exception):
    """Somebody asked the run to stop."""


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
        self._federation = federation
        self._store = store
        self._run = runs.get_run(store, run_id)
        self._study: Study = studies.get_study(store, self._run.study).study
        self._roll = RollCall(store, self._run, self._study.federation, self._say)
        self._asking = RoundRequests(store, self._run, self._study, self._say)
        self._started = time.monotonic()

    def run(self) -> Release:
        """All rounds that are not recorded yet, then the release candidate."""
        last = round_records.last_round(self._store, self._run.id)
        done = 0 if last is None else last.round
        for number in range(done + 1, self._study.num_rounds + 1):
            if self._stop_requested():
                raise RunStoppedError
            self._call_roll(number)
            if number == 1:
                self._measure()
            else:
                self._refine(number)
            self._report("refine" if number > 1 else "warm-start", number)
        self._roll.look()
        witnesses = self._roll.ready or list(self._roll.keys)
        self._gather_witnesses(witnesses)  # of the last round, before the run counts as completed
        release = self._release()
        self._gather_witnesses(witnesses)  # and of the release itself
        return release

    def _stop_requested(self) -> bool:
        return runs.stop_requested(self._store, self._run.id)

    def _call_roll(self, number: int) -> None:
        """Know who takes part in a round: those ready before; everybody is quoted where they are too few.

        A site that cannot be reached is asked again until the quorum is ready, one that says no is not.

        Raises:
            RoundFailedError: fewer than the quorum are ready.
            RunStoppedError: somebody asked to stop.
        """
        self._roll.look()
        if len(self._roll.ready) >= self._study.federation.quorum:
            return
        self._report("quote", number - 1)
        quorum = self._study.federation.quorum
        waiting = self._roll.candidates(number)
        self._roll.send_away(waiting)
        objections: dict[str, str] = {}
        deadline = time.monotonic() + QUOTE_DEADLINE_SECONDS
        while waiting:
            patience = self._patience(waiting, quorum=quorum - len(self._roll.ready))
            replies = self._federation.exchange(
                self._asking.write("quote", number, waiting, {}),
                deadline_seconds=max(0.1, deadline - time.monotonic()),
                enough=patience,
            )
            if patience.stop_seen or self._stop_requested():
                raise RunStoppedError
            objections |= {site: self._hear_quote(site, reply) or "" for site, reply in replies.items()}
            # After a crash of the coordinator the sites' nodes are back within a minute, not at once.
            waiting = [site for site, reply in replies.items() if isinstance(reply, SiteFailure)]
            late = time.monotonic() + RETRY_PAUSE_SECONDS > deadline
            ready = len(self._roll.ready)
            if late or ready >= quorum or ready + len(waiting) < quorum:
                break
            time.sleep(RETRY_PAUSE_SECONDS)
        reasons = [f"{site}: {objection}" for site, objection in objections.items() if objection]
        for reason in reasons:
            self._say(f"does not take part: {reason}", "warning")
        self._need_quorum(len(self._roll.ready), "ready", reasons)

    def _hear_quote(self, site: str, reply: RoundReply | SiteFailure) -> str | None:
        """Take a site in if it is ready; else why it is not."""
        if isinstance(reply, RoundReply):
            self._asking.note_witness(site, reply)
        return self._roll.hear(site, reply)

    def _quotes_on_the_way(self, number: int) -> dict[str, RoundRequest]:
        """Quotes of the rounds after this one for sites that are away; nobody waits for the answers."""
        if number == self._study.num_rounds:
            return {}
        return self._asking.write("quote", number + 1, self._roll.due(number), {})

    def _patience(self, awaited: Collection[str], *, quorum: int | None = None) -> Patience:
        federation = self._study.federation
        return Patience(
            awaited=awaited,
            quorum=federation.quorum if quorum is None else quorum,
            grace_seconds=federation.grace_seconds,
            stopped=self._stop_requested,
        )

    def _measure(self) -> None:
        measurement = Measurement.of(self._study)
        expected = {"moments": torch.zeros(measurement.size, dtype=torch.float64)}
        started = time.monotonic()
        finished = self._exchange(1, "measure", {}, expected)
        self._report("warm-start", 0)
        multiplier = self._study.measure.noise_multiplier
        assert multiplier is not None  # a registered study is calibrated
        answered = time.monotonic()
        combined = combine_moments(
            measurement.table,
            [reply.arrays["moments"] for reply in finished.accepted.values()],
            self._study.federation,
            noise_std=multiplier * measurement.sensitivity,
        )
        for site, share, claimed in zip(finished.accepted, combined.shares, combined.claimed, strict=True):
            if share < 0.99 * claimed:
                self._say(f"{site} counts for {share:.0%} of the patients, {claimed:.0%} by its own number")
        fitted = fit_study(
            self._study, combined.vector, noise_std=combined.noise_std, progress=self._while_fitting()
        )
        self._log_work(1, answered)
        self._record(
            finished,
            "measure",
            fitted.generator.to_arrays(),
            {"anchor": fitted.anchor},
            fitted.scores,
            started,
        )

    def _while_fitting(self) -> Callable[[str, float], None]:
        """Called with the done part of a fit: says how far it is, and ends it if the run is to stop."""
        asked = said = time.monotonic()

        def look(what: str, done: float) -> None:
            nonlocal asked, said
            now = time.monotonic()
            if now - asked >= STOP_CHECK_SECONDS:
                asked = now
                if self._stop_requested():
                    raise RunStoppedError
            if now - said >= FIT_REPORT_SECONDS:
                said = now
                self._say(f"fits the {what}: {done:.0%}")

        return look

    def _refine(self, number: int) -> None:
        last = round_records.last_round(self._store, self._run.id)
        assert last is not None  # round 1 came before
        base = decode_arrays(self._store.load(last.arrays["generator"]))
        anchor = decode_arrays(self._store.load(last.arrays["anchor"]))
        started = time.monotonic()
        finished = self._exchange(number, "refine", {**base, **anchor}, base)
        answered = time.monotonic()
        updates = [reply.arrays for reply in finished.accepted.values()]
        generator = aggregate(base, updates, self._study.federation)
        scores = score(self._study, generator, anchor)
        self._log_work(number, answered)
        self._record(finished, "refine", generator, anchor, scores, started)

    def _log_work(self, number: int, since: float) -> None:
        """For whoever asks where a round's time goes (benchmarks/round_share.py)."""
        log.info("run %s: round %s: computed %.3f s", self._run.id, number, time.monotonic() - since)

    def _release(self) -> Release:
        """Propose the generator that fits the noisy moments best, of all rounds."""
        recorded = round_records.list_rounds(self._store, self._run.id)
        best = min(recorded, key=lambda one: (one.scores["misfit"], -one.round))
        release = round_records.complete_run(self._store, self._run.id, release_round=best.round)
        self._say(f"proposes the generator of round {best.round} as release {release.digest}")
        return release

    def _exchange(
        self, number: int, kind: MessageKind, arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> RoundInProgress:
        """Ask until the quorum is met or the deadline has passed; a site that failed is asked again meanwhile.

        Raises:
            RoundFailedError: the quorum was not met.
            RunStoppedError: somebody asked to stop before it was.
        """
        requests = self._asking.write(kind, number, self._roll.ready, arrays)
        current = RoundInProgress(
            number=number, study=self._study, roll=self._roll, requests=requests, expected=expected
        )
        quorum = self._study.federation.quorum
        deadline = time.monotonic() + self._study.federation.round_deadline_seconds
        waiting, aside = dict(current.requests), self._quotes_on_the_way(number)
        stopped = False
        while waiting:
            patience = self._patience(waiting, quorum=quorum - len(current.accepted))
            replies = self._federation.exchange(
                {**waiting, **aside},
                deadline_seconds=max(0.1, deadline - time.monotonic()),
                enough=patience,
            )
            for site, reply in replies.items():
                if site in waiting:
                    self._judge(current, site, reply, stopped=patience.stop_seen)
                else:
                    self._hear_quote(site, reply)
            aside = {}
            waiting = {site: current.requests[site] for site in waiting if site in current.failed}
            stopped = patience.stop_seen or self._stop_requested()
            late = time.monotonic() + RETRY_PAUSE_SECONDS > deadline
            if stopped or late or len(current.accepted) >= quorum:
                break
            returned = self._asking.write(kind, number, self._outside(current), arrays)
            for site in returned:
                self._say(f"{site} takes part in round {number} after all")
            current.requests.update(returned)
            waiting.update(returned)
            time.sleep(RETRY_PAUSE_SECONDS)
        for site in self._outside(current):
            self._say(f"{site} takes part from round {number + 1} on")
        self._roll.send_away(current.failed | current.refused)
        if len(current.accepted) < quorum:
            round_records.record_outcomes(
                self._store, run_id=self._run.id, round=number, outcomes=list(current.outcomes.values())
            )
            if stopped:
                raise RunStoppedError
        self._need_quorum(
            len(current.accepted),
            f"accepted in round {number}",
            current.objections,
        )
        return current

    def _outside(self, current: RoundInProgress) -> list[str]:
        """Sites that have become ready while a round ran without them."""
        return [site for site in self._roll.ready if site not in current.requests]

    def _judge(
        self, current: RoundInProgress, site: str, reply: RoundReply | SiteFailure, *, stopped: bool
    ) -> None:
        """One site's outcome; said aloud unless it counts, or nobody waited for it."""
        if isinstance(reply, RoundReply):
            self._asking.note_witness(site, reply)
        elif stopped and reply.code == "timeout":
            reason = "the run was stopped before it answered; what it debited for this round is spent"
            current.judge(site, SiteFailure(code="stopped", reason=reason))
            return
        outcome = current.judge(site, reply)
        if outcome.outcome != "accepted":
            self._say(f"round {current.number}: {site} {outcome.outcome}: {outcome.reason}", "warning")

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

    def _gather_witnesses(self, names: list[str]) -> None:
        """Show every site the last checkpoint, so that its countersignature stands under the whole run."""
        requests = self._asking.write("witness", self._study.num_rounds, names, {})
        patience = self._patience(names)
        replies = self._federation.exchange(
            requests, deadline_seconds=WITNESS_DEADLINE_SECONDS, enough=patience
        )
        for site, reply in replies.items():
            if isinstance(reply, RoundReply):
                self._asking.note_witness(site, reply)

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

    def _say(self, text: str, level: str = "info") -> None:
        log.info("run %s: %s", self._run.id, text)
        runs.add_message(self._store, self._run.id, text, level=level)
