"""Who takes part in a run: which sites are ready, which are away, and when those are quoted again."""

from __future__ import annotations

from collections.abc import Callable, Collection

from models.exchange import RoundReply
from models.study import FederationSettings
from privacy.signing import VerifyKey
from server import sites, spends
from server.acceptance import ReplyRejectedError, digest_of_policy, read_quote
from server.errors import ServerError
from server.federation import SiteFailure
from server.runs import Run
from server.store import Store

MAX_ROUNDS_BETWEEN_QUOTES = 32  # for a site that is away: after 1, 2, 4, ... rounds, then every so many


class RollCall:
    """The sites of one run as they stand.

    Guarantees: a site is ready only if the last quote that it answered says so, it has neither refused nor stayed
        silent since, none of its replies in this run was rejected, and it is enrolled. Where the study takes nobody
        late, a site of which no measurement counts takes no part in later rounds.

    Why a rejected reply is for the whole run: an honest site sends none but by chance in ten million. So it is a
    fault, which the next round would meet again after the site's patients have paid for it, or a lie, whose teller
    is not to be asked for more. A run that was killed or resumed remembers it. The same round asked again costs the
    site nothing, so that there it has another chance.

    Args:
        store: the coordinator's state.
        run: its sites are those enrolled when it was queued; no other takes part.
        settings: of its study.
        say: tells the operator, with a level.

    Attributes:
        ready: sites to ask, in the order in which they answered.
        keys: of the sites that are enrolled now; what their receipts are verified with.
    """

    def __init__(
        self, store: Store, run: Run, settings: FederationSettings, say: Callable[[str, str], None]
    ) -> None:
        self._store, self._run, self._settings, self._say = store, run, settings, say
        self._aside = {
            site: rounds[0] for site, rounds in spends.rounds_by_site(store, run.id, "rejected").items()
        }
        self._rounds_missed: dict[str, int] = {}
        self.ready: list[str] = []
        self.keys: dict[str, VerifyKey] = {}

    def look(self) -> None:
        """See who is enrolled now; says once who no longer is."""
        self.keys = {
            site.name: site.key
            for site in sites.list_sites(self._store, state="enrolled")
            if site.name in self._run.sites
        }
        for site in set(self.ready) - set(self.keys):
            self.ready.remove(site)
            self._say(f"{site} is no longer enrolled and is not asked any more", "warning")

    def candidates(self, number: int) -> list[str]:
        """Enrolled sites that may take part in a round, ready or not."""
        return [site for site in self.keys if site not in self._excluded(number)]

    def absences(self, number: int) -> list[str]:
        """Why enrolled sites may not take part in a round, whatever they answer."""
        return [f"{site}: {why}" for site, why in self._excluded(number).items() if site in self.keys]

    def _excluded(self, number: int) -> dict[str, str]:
        """Sites that are not asked to spend in a round, and why."""
        why = {
            site: f"its reply in round {rejected} was rejected"
            for site, rejected in self._aside.items()
            if rejected < number
        }
        if number > 1 and not self._settings.late_join:
            measured = spends.rounds_by_site(self._store, self._run.id, "accepted", last_round=1)
            for site in set(self.keys) - set(measured) - set(why):
                why[site] = "it is not in the measurement, and the study takes nobody late"
        return why

    def due(self, number: int) -> list[str]:
        """Those of them that are away and to be quoted beside this round; call it once a round."""
        due = []
        for site in self.candidates(number + 1):
            if site in self.ready:
                continue
            missed = self._rounds_missed[site] = self._rounds_missed.get(site, 0) + 1
            if missed & (missed - 1) == 0 or missed % MAX_ROUNDS_BETWEEN_QUOTES == 0:
                due.append(site)
        return due

    def hear(self, site: str, reply: RoundReply | SiteFailure) -> str | None:
        """Take a site in if its answer to a quote says that it is ready; else why it is not."""
        if isinstance(reply, SiteFailure):
            return reply.reason
        if reply.refusal is not None:
            return reply.refusal.reason
        try:
            quote = read_quote(reply)
            self.note_policy(site, reply)
        except (ReplyRejectedError, ServerError) as error:
            return str(error)
        if quote.reasons:
            return "; ".join(quote.reasons)
        self.ready.append(site)
        self._rounds_missed.pop(site, None)
        spent, projected, cap = quote.spent, quote.projected, quote.cap
        self._say(f"{site} would go from epsilon {spent:.3f} to {projected:.3f} of its cap {cap:.3f}", "info")
        return None

    def send_away(self, names: Collection[str]) -> None:
        """These did not answer, or refused: they are quoted before they are asked again."""
        self.ready = [site for site in self.ready if site not in names]

    def set_aside(self, site: str, number: int) -> None:
        """Its reply in this round was rejected: it is not asked to spend again in this run."""
        self.send_away([site])
        self._aside.setdefault(site, number)
        self._say(
            f"{site} is not asked again in this run, so that its patients pay for nothing more that is dropped; "
            "mended, it takes part in the next run",
            "warning",
        )

    @property
    def witnesses(self) -> list[str]:
        """Sites to show the ledger to: all that answer, asked to spend or not; whoever is enrolled if none does."""
        aside = [site for site in self._aside if site in self.keys and site not in self.ready]
        return [*self.ready, *aside] or list(self.keys)

    def note_policy(self, site: str, reply: RoundReply) -> None:
        """Log a policy that the site has changed, so that its next receipt names one that is in the ledger.

        Raises:
            ReplyRejectedError, ServerError: it is no policy.
        """
        known = sites.get_site(self._store, site)
        if digest_of_policy(reply) == known.policy_digest:
            return
        sites.enrol_site(
            self._store,
            name=site,
            title=known.title,
            receipt_key=known.receipt_key,
            node_public_key=known.node_public_key,
            policy=dict(reply.policy or {}),
        )
        self._say(f"{site} has changed its policy; the new one is in the ledger", "info")
