"""One round while it runs: what was asked of whom, and what became of each answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.exchange import RoundReply, RoundRequest
from models.study import Study
from privacy.receipt import decimal_text
from server.acceptance import ReplyRejectedError, check_update, open_reply
from server.errors import ServerError
from server.federation import SiteFailure
from server.roll_call import RollCall
from server.round_records import SiteOutcome


@dataclass(kw_only=True)
class RoundInProgress:
    """A round's requests, and the outcomes so far.

    Attributes:
        number: of the round.
        study: whose budget the receipts are held against.
        roll: knows the sites' keys and policies.
        requests: what each site was asked.
        expected: arrays of the names and shapes that an answer must have.
        accepted: the replies that count.
        outcomes: of every site that was judged; the last one stands.
    """

    number: int
    study: Study
    roll: RollCall
    requests: dict[str, RoundRequest]
    expected: Mapping[str, Tensor]
    accepted: dict[str, RoundReply] = field(default_factory=dict)
    outcomes: dict[str, SiteOutcome] = field(default_factory=dict)

    @property
    def failed(self) -> set[str]:
        """Sites that were asked and have not answered."""
        return {site for site, one in self.outcomes.items() if one.outcome == "failed"}

    @property
    def refused(self) -> set[str]:
        """Sites that said no."""
        return {site for site, one in self.outcomes.items() if one.outcome == "refused"}

    @property
    def objections(self) -> list[str]:
        """Why sites do not count."""
        return [f"{one.site}: {one.reason}" for one in self.outcomes.values() if one.outcome != "accepted"]

    def judge(self, site: str, reply: RoundReply | SiteFailure) -> SiteOutcome:
        """What becomes of a site's answer."""
        if isinstance(reply, SiteFailure):
            outcome = SiteOutcome(
                site=site,
                outcome="refused" if reply.final else "failed",
                code=reply.code,
                reason=reply.reason,
            )
        elif reply.refusal is not None:
            refusal = reply.refusal
            outcome = SiteOutcome(site=site, outcome="refused", code=refusal.code, reason=refusal.reason)
        else:
            outcome = self._accept(site, reply)
        self.outcomes[site] = outcome
        return outcome

    def _accept(self, site: str, reply: RoundReply) -> SiteOutcome:
        """Check a reply; a receipt that holds is kept also where the update is dropped, since it was spent."""
        request = self.requests[site]
        known: dict[str, Any] = {}
        try:
            receipt = open_reply(request, reply, site=site, key=self.roll.keys[site])
            self.roll.note_policy(site, reply)
            known = {
                "receipt": reply.receipt,
                "spent_epsilon": decimal_text(receipt.spend_epsilon),
                "spent_delta": decimal_text(receipt.spend_delta),
                "cap_epsilon": decimal_text(self.study.privacy.epsilon),
            }
            check_update(request, reply, receipt, expected=self.expected)
        except (ReplyRejectedError, ServerError) as error:
            return SiteOutcome(site=site, outcome="rejected", code="rejected", reason=str(error), **known)
        self.accepted[site] = reply
        return SiteOutcome(site=site, outcome="accepted", **known)
