"""What the next round will cost, worked out while nobody waits for it.

The accountants take a part of a second for every list of events that they have not seen, and a debit waits for
them. Between two rounds a site is idle: what is worked out then, the debit finds at hand (`privacy.accounting` keeps
it). Nothing is decided or written here.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime

from client.guard import Guard
from client.history import past_debits
from client.home import SiteHome
from client.limits import budget_objections
from client.notes import read_plan
from client.policy import load_policy
from models.exchange import RoundRequest
from privacy.events import MechanismEvent

START_SECONDS = 0.2  # later than the reply, which is on its way

log = logging.getLogger("fedtwin.site")


def foresee_next(site: SiteHome, request: RoundRequest) -> threading.Timer | None:
    """Begin to work out the cost of the round after this request's, in the background.

    Returns:
        What does so, for whoever wants to wait for it; None where no round follows.
    """
    study = request.study
    following = request.round + (0 if request.kind == "quote" else 1)
    if request.kind == "witness" or following > study.num_rounds or not study.is_calibrated:
        return None

    def work_out() -> None:
        try:
            policy = load_policy(site.policy_file)
            plan = read_plan(
                request.run,
                study.name,
                study.digest,
                study.inputs,
                [MechanismEvent.from_dict(study.mechanism(study.phase_of(following)))],
                study.privacy.delta,
                study.privacy.epsilon,
            )
            past = past_debits(Guard(site.record_file, policy).history())
            budget_objections(plan, policy, past, datetime.now(UTC))
        except Exception as error:  # whatever it is, the debit will meet it and say so
            log.info("the next round's cost could not be foreseen (%s)", type(error).__name__)

    timer = threading.Timer(START_SECONDS, work_out)
    timer.daemon = True
    timer.start()
    return timer
