"""Ending a round early: its run is gone, nobody will ever take its reply, and the site is wanted for something else.

What was debited stays spent. Nothing of the interrupted attempt is kept or sent, so that the same round asked again
(`client.rounds` says why that is sound) starts where this one did.
"""

from __future__ import annotations

import threading


class RoundInterruptedError(Exception):
    """The run of the round in hand is gone; says nothing of patients."""


class Interruption:
    """What the thread that hears of a run's end says to the one that computes. One round is in hand at a time."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def begin(self) -> None:
        """A new round is in hand; what was asked of the last one does not hold for it."""
        self._asked.clear()

    def ask(self) -> None:
        """Let the round in hand end at its next `check`."""
        self._asked.set()

    def check(self) -> None:
        """Go on.

        Raises:
            RoundInterruptedError: no: the round is to end here.
        """
        if self._asked.is_set():
            raise RoundInterruptedError("the run of the round in hand has ended")
