"""What each site is known to hold, so that it is not sent again (`models.parts`)."""

from __future__ import annotations

from collections.abc import Collection

from models.exchange import RoundReply, RoundRequest
from server.federation import SiteFailure


class HeldParts:
    """Digests of parts that sites have acknowledged, in this run of this process.

    A site that answers a request has read all its parts. One that says it lacks some is believed to have lost
    everything: it is sent the whole request, in the same round.
    """

    def __init__(self) -> None:
        self._held: dict[str, set[str]] = {}

    def of(self, site: str) -> Collection[str]:
        """What the site holds."""
        return self._held.get(site, frozenset())

    def hear(
        self, site: str, request: RoundRequest, reply: RoundReply | SiteFailure
    ) -> RoundReply | SiteFailure | None:
        """The outcome of asking a site; None where it is to be sent the same request again, now whole."""
        if isinstance(reply, SiteFailure):
            return reply
        if not reply.lacks:
            self._held.setdefault(site, set()).update(request.parts.values())
            return reply
        if self._held.pop(site, None) is not None:
            return None
        return SiteFailure(code="error", reason="the site says that it lacks what it was just sent")
