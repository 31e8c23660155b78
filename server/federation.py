"""The sites as the round loop sees them: requests out, replies or failures back, within a deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from models.exchange import RoundReply, RoundRequest


@dataclass(frozen=True, kw_only=True)
class SiteFailure:
    """No usable reply came from a site.

    Attributes:
        code: `unavailable`, `timeout`, `error`, `garbled`, or `foreign-app`.
        reason: for people.
        final: the site will not answer otherwise when it is asked again; nothing was spent.
    """

    code: str
    reason: str
    final: bool = False


Enough = Callable[[Mapping[str, RoundReply | SiteFailure]], bool]


class Federation(Protocol):
    """How messages reach the sites: Flower in production, direct calls in benchmarks and tests."""

    def exchange(
        self,
        requests: Mapping[str, RoundRequest],
        *,
        deadline_seconds: float,
        enough: Enough | None = None,
    ) -> Mapping[str, RoundReply | SiteFailure]:
        """Send each site its request and wait for all replies, at most until the deadline.

        Args:
            requests: by site name; sites may be asked different things.
            deadline_seconds: from now; what has not come by then is a `timeout`.
            enough: asked again and again with what has come so far; once true, what has not come is a
                `timeout` too.

        Returns:
            An entry for every site asked.
        """
