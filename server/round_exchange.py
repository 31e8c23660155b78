"""Asking the sites of a run: who takes part in a round, and whose answers count in it.

The coordinator trusts no reply: each is checked once (`server.acceptance`).

Who is asked: the sites that were ready when they were last quoted. One that refuses or stays silent is not asked
to spend again until it has answered another quote; such quotes travel with later rounds, so that nobody waits
for them. One whose reply was rejected is not asked to spend again in this run, and neither is one that left or was
suspended (`server.roll_call`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from torch import Tensor

from models.exchange import MessageKind, RoundReply, RoundRequest
from models.study import Study
from server import round_records
from server.federation import Federation, SiteFailure
from server.patience import Patience
from server.roll_call import RollCall
from server.round_in_progress import RoundInProgress
from server.round_requests import RoundRequests
from server.run_progress import RunProgress, RunStoppedError
from server.runs import Run
from server.store import Store

RETRY_PAUSE_SECONDS = 2.0
QUOTE_DEADLINE_SECONDS = 120.0
WITNESS_DEADLINE_SECONDS = 60.0


class RoundFailedError(Exception):
    """A round that cannot count; says which sites did what."""


class RoundExchange:
    """The sites of one run, as its round loop asks them.

    Args:
        federation: how the sites are reached.
        store: the coordinator's state.
        run, study: what the sites are asked for.
        progress: tells the operator, and hears whether the run is to stop.
    """

    def __init__(
        self, federation: Federation, store: Store, run: Run, study: Study, progress: RunProgress
    ) -> None:
        self._federation = federation
        self._store = store
        self._run = run
        self._study = study
        self._progress = progress
        self._roll = RollCall(store, run, study.federation, progress.say)
        self._asking = RoundRequests(store, run, study, progress.say)

    def call_roll(self, number: int) -> None:
        """Know who takes part in a round: those ready before; everybody is quoted where they are too few.

        A site that cannot be reached is asked again until the quorum is ready, one that says no is not.

        Raises:
            RoundFailedError: fewer than the quorum are ready.
            RunStoppedError: somebody asked to stop.
        """
        self._roll.look()
        quorum = self._study.federation.quorum
        if len(self._roll.ready) >= quorum:
            return
        self._progress.report("quote", number - 1)
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
            if patience.stop_seen:
                raise RunStoppedError
            self._progress.check()
            objections |= {site: self._hear_quote(site, reply) or "" for site, reply in replies.items()}
            # After a crash of the coordinator the sites' nodes are back within a minute, not at once.
            waiting = [
                site for site, reply in replies.items() if isinstance(reply, SiteFailure) and not reply.final
            ]
            late = time.monotonic() + RETRY_PAUSE_SECONDS > deadline
            ready = len(self._roll.ready)
            if late or ready >= quorum or ready + len(waiting) < quorum:
                break
            time.sleep(RETRY_PAUSE_SECONDS)
        reasons = [f"{site}: {objection}" for site, objection in objections.items() if objection]
        for reason in reasons:
            self._progress.say(f"does not take part: {reason}", "warning")
        self._need_quorum(len(self._roll.ready), "ready", [*reasons, *self._roll.absences(number)])

    def ask(
        self, number: int, kind: MessageKind, arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> RoundInProgress:
        """Ask until the quorum is met or the deadline has passed; a site that failed is asked again meanwhile.

        Args:
            number, kind, arrays: of the round's requests.
            expected: arrays of the names and shapes that an answer must have.

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
            stopped = patience.stop_seen or self._progress.stop_requested()
            late = time.monotonic() + RETRY_PAUSE_SECONDS > deadline
            if stopped or late or len(current.accepted) >= quorum:
                break
            returned = self._asking.write(kind, number, self._outside(current), arrays)
            for site in returned:
                self._progress.say(f"{site} takes part in round {number} after all")
            current.requests.update(returned)
            waiting.update(returned)
            time.sleep(RETRY_PAUSE_SECONDS)
        for site in self._outside(current):
            self._progress.say(f"{site} takes part from round {number + 1} on")
        self._roll.send_away(current.failed | current.refused)
        if len(current.accepted) < quorum:
            round_records.record_outcomes(
                self._store, run_id=self._run.id, round=number, outcomes=list(current.outcomes.values())
            )
            if stopped:
                raise RunStoppedError
        objections = [*current.objections, *self._roll.absences(number)]
        self._need_quorum(len(current.accepted), f"accepted in round {number}", objections)
        return current

    def gather_witnesses(self) -> None:
        """Show every site the last checkpoint, so that its countersignature stands under the whole run."""
        self._roll.look()
        names = self._roll.witnesses
        requests = self._asking.write("witness", self._study.num_rounds, names, {})
        replies = self._federation.exchange(
            requests, deadline_seconds=WITNESS_DEADLINE_SECONDS, enough=self._patience(names)
        )
        for site, reply in replies.items():
            if isinstance(reply, RoundReply):
                self._asking.note_witness(site, reply)

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
            stopped=self._progress.stop_requested,
        )

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
            self._progress.say(
                f"round {current.number}: {site} {outcome.outcome}: {outcome.reason}", "warning"
            )
        if outcome.outcome == "rejected":
            self._roll.set_aside(site, current.number)

    def _need_quorum(self, found: int, what: str, reasons: list[str]) -> None:
        quorum = self._study.federation.quorum
        if found < quorum:
            raise RoundFailedError(
                f"{found} of at least {quorum} sites were {what}"
                + "".join(f"; {reason}" for reason in reasons)
            )
