"""When a round stops waiting: all have answered, somebody asked to stop, or the quorum has and its grace is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from models.exchange import RoundReply
from server.federation import SiteFailure

STOP_CHECK_SECONDS = 0.5


class Patience:
    """The `enough` of one exchange.

    Once the quorum has answered, the others have as long again as that took, and at least the grace: a site that
    is merely slower than most still counts (its budget would be spent for nothing otherwise), and one that is dead
    does not cost the whole deadline in every round.

    Args:
        awaited: the sites that this exchange waits for; others may answer meanwhile.
        quorum: so many of them are enough.
        grace_seconds: the least time for the others.
        stopped: whether somebody asked the run to stop; asked now and then.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        awaited: Collection[str],
        quorum: int,
        grace_seconds: float,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._awaited = frozenset(awaited)
        self._quorum = quorum
        self._grace_seconds = grace_seconds
        self._stopped = stopped
        self._clock = clock
        self._begun = clock()
        self._met_at: float | None = None
        self._ask_at = 0.0
        self.stop_seen = False

    def __call__(self, replies: Mapping[str, RoundReply | SiteFailure]) -> bool:
        """Whether to stop waiting, given what has come so far."""
        if self._awaited <= replies.keys():
            return True
        now = self._clock()
        if now >= self._ask_at:
            self._ask_at = now + STOP_CHECK_SECONDS
            self.stop_seen = self.stop_seen or self._stopped()
        if self.stop_seen:
            return True
        answered = sum(
            1
            for site, reply in replies.items()
            if site in self._awaited and isinstance(reply, RoundReply) and reply.refusal is None
        )
        if answered < self._quorum:
            return False
        if self._met_at is None:
            self._met_at = now
        return now - self._met_at >= max(self._grace_seconds, self._met_at - self._begun)
