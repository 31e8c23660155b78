"""How far a run is, told while it goes on: phase, percent, time to go, and what happened in words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from models.study import Phase
from server import runs
from server.patience import STOP_CHECK_SECONDS
from server.store import Store

FIT_PROGRESS_SECONDS = 1.0
FIT_MESSAGE_SECONDS = 30.0
# Of the whole fit: where each part of it begins and ends. Where there are pictures they take most of the time.
_FIT_PARTS = {"table": (0.0, 0.1), "images": (0.1, 0.9), "lens": (0.9, 1.0)}

log = logging.getLogger("fedtwin.rounds")


class RunStoppedError(Exception):
    """Somebody asked the run to stop."""


class RunProgress:
    """Tells of one run through its record, which the API, the pages and the command line follow.

    A run has one step for each measurement, one for the fit after it, and one for each round after those.

    Args:
        store: the coordinator's state.
        run_id: the run.
        num_rounds: of its study, the measurements among them.
        num_measurements: the rounds that it begins with, each followed by a fit.
        with_pictures: whether the fit has a second part, the pictures.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        num_rounds: int,
        num_measurements: int = 1,
        with_pictures: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._run_id, self._clock = store, run_id, clock
        self._num_measurements = num_measurements
        self._steps = num_rounds + num_measurements
        self._with_pictures = with_pictures
        self._begun: tuple[float, float] | None = None  # when, and at which part of the run

    def say(self, text: str, level: str = "info") -> None:
        """Something that happened."""
        log.info("run %s: %s", self._run_id, text)
        runs.add_message(self._store, self._run_id, text, level=level)

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return runs.stop_requested(self._store, self._run_id)

    def check(self) -> None:
        """Go on.

        Raises:
            RunStoppedError: no: somebody asked to stop.
        """
        if self.stop_requested():
            raise RunStoppedError

    def report(self, phase: str, rounds_done: int, *, step_done: float = 0.0) -> None:
        """Where the run stands.

        Args:
            phase: what is being done.
            rounds_done: recorded ones; a fit belongs to the measurement before it.
            step_done: part of the step in hand, from 0 to 1; the fit's begins at 1, after the measurement's own.
        """
        steps = step_done + rounds_done + min(rounds_done, self._num_measurements)
        part = min(1.0, steps / self._steps)
        now = self._clock()
        if self._begun is None:
            self._begun = now, part
        at, before = self._begun
        eta = (now - at) / (part - before) * (1 - part) if part > before else None
        runs.report_progress(
            self._store,
            self._run_id,
            phase=phase,
            round=rounds_done,
            percent=min(99.0, 100.0 * part),
            eta_seconds=eta,
        )

    def while_fitting(self, rounds_done: int, phase: Phase = "measure") -> Callable[[str, float], None]:
        """For `models.study_generator.fit_study`: says how far the fit is, and ends it if the run is to stop.

        Args:
            rounds_done: recorded ones.
            phase: of the round that the fit belongs to: a measurement's is a step of its own, another's the second
                half of one.
        """
        begins, takes, called = (1.0, 1.0, "warm-start") if phase == "measure" else (0.5, 0.5, phase)
        asked = reported = said = self._clock()

        def look(what: str, done: float) -> None:
            nonlocal asked, reported, said
            now = self._clock()
            if now - asked >= STOP_CHECK_SECONDS:
                asked = now
                self.check()
            if now - reported >= FIT_PROGRESS_SECONDS:
                reported = now
                first, last = _FIT_PARTS[what] if self._with_pictures else (0.0, 1.0)
                part = first + (last - first) * done
                self.report(called, rounds_done, step_done=begins + takes * part)
            if now - said >= FIT_MESSAGE_SECONDS:
                said = now
                self.say(f"fits the {what}: {done:.0%}")

        return look
