"""What it costs to choose settings by trying them on patients: a random number of trials, or every trial in full.

Two cases, and nothing between them:

- Every trial leaves something behind: a site's updates go to the coordinator, a curve is looked at. Then each trial is
  a run of its own, and the guard debits each in full (`every_trial_cost`).
- Only the best trial's output is ever seen, and how many trials there were is itself random and secret. Then the
  selection costs what Papernot and Steinke proved (`selection_cost`). A fixed number of trials has no such bound below
  full composition, and is refused.

Presets that were tuned on public data cost nothing here.

References: Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", ICLR 2022, theorem 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from scipy.optimize import brentq

from privacy.accounting import MAX_EPSILON, AccountingError, group_events, spend_of
from privacy.budget import PrivacySpend, check_delta
from privacy.events import MechanismEvent

TrialLaw = Literal["logarithmic", "geometric"]
MAX_EXPECTED_TRIALS = 10_000.0

_SHAPES = {"logarithmic": 0.0, "geometric": 1.0}
_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [2**power for power in range(6, 13)]


class TuningError(ValueError):
    """Tuning on patients in a way that has no price: it must not run."""


class UniformSource(Protocol):
    """The part of `privacy.noise.NoiseSource` that is needed here."""

    def uniform(self, n: int) -> Any:
        """`n` numbers, uniform in (0, 1)."""


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """How settings are to be chosen on patients.

    Privacy: unit is one patient with all records. Valid only if the number of trials and all outputs but the best
        stay secret, and the best is judged by what the trials' own budget paid for.

    Attributes:
        expected_trials: mean of the random number of trials, above 1.
        law: the distribution that the number is drawn from, truncated at one trial: `logarithmic` has the larger
            spread and costs least; `geometric` is steadier.
    """

    expected_trials: float
    law: TrialLaw = "logarithmic"

    def __post_init__(self) -> None:
        if self.law not in get_args(TrialLaw):
            raise TuningError(
                f"law is {self.law!r}; the number of trials must be drawn from one of {get_args(TrialLaw)}: "
                "a fixed number has no price below full composition, so pay for every trial or tune on public data"
            )
        if not 1 < self.expected_trials <= MAX_EXPECTED_TRIALS:
            raise TuningError(
                f"expected_trials is {self.expected_trials!r}; it must lie in (1, {MAX_EXPECTED_TRIALS:g}]: "
                "with one trial nothing is tuned"
            )

    @property
    def stopping_rate(self) -> float:
        """The law's parameter gamma, in (0, 1), that gives `expected_trials`."""
        if self.law == "geometric":
            return 1 / self.expected_trials

        def excess(log_rate: float) -> float:
            return math.expm1(-log_rate) / -log_rate - self.expected_trials

        return math.exp(brentq(excess, math.log(1e-9), -1e-12, xtol=1e-14))


def selection_cost(events: Sequence[MechanismEvent], plan: TuningPlan, *, delta: float) -> float:
    """Epsilon of the best of a random number of trials, each of which runs `events`.

    Guarantees: an upper bound, at least the cost of one trial; grows with the expected number of trials. It is a Renyi
        bound: record it as the cost of the selection, and never mix its events into another composition.

    Raises:
        ValueError: no events, or delta out of its range.
        AccountingError: the cost is beyond `MAX_EPSILON`.
    """
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    check_delta(delta)
    if not events:
        raise ValueError("there are no events: a trial that releases nothing needs no tuning plan")
    trial = dp_event.ComposedDpEvent(
        [
            dp_event.SelfComposedDpEvent(
                dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)), count
            )
            for sigma, rate, count in group_events(events)
        ]
    )
    accountant = RdpAccountant(_ORDERS)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(trial, plan.expected_trials, _SHAPES[plan.law]))
    epsilon = float(accountant.get_epsilon(delta))
    if not epsilon <= MAX_EPSILON:
        raise AccountingError(
            f"choosing among {plan.expected_trials:g} expected trials costs an epsilon of {epsilon:.4g}, beyond "
            f"{MAX_EPSILON:g}; give each trial more noise, or tune on public data"
        )
    return max(epsilon, spend_of(events, delta=delta).epsilon)


def every_trial_cost(events: Sequence[MechanismEvent], *, num_trials: int, delta: float) -> PrivacySpend:
    """What `num_trials` trials cost when each of them is seen: one composition of them all.

    Raises:
        ValueError, AccountingError: as `privacy.accounting.spend_of`.
    """
    if isinstance(num_trials, bool) or not isinstance(num_trials, int) or num_trials < 1:
        raise ValueError(f"num_trials is {num_trials!r}; it must be a whole number, 1 or more")
    return spend_of([event for _ in range(num_trials) for event in events], delta=delta)


def draw_num_trials(plan: TuningPlan, source: UniformSource) -> int:
    """Draw how many trials to run. Sensitive: who knows it may learn more than was paid for; do not log.

    Args:
        plan: the law and its mean.
        source: the site's noise source; never a seeded one.

    Returns:
        A whole number, 1 or more.
    """
    rate, uniform = plan.stopping_rate, float(source.uniform(1)[0])
    if plan.law == "geometric":
        return max(1, math.ceil(math.log1p(-uniform) / math.log1p(-rate)))
    term, cumulated, count = -(1 - rate) / math.log(rate), 0.0, 1
    while True:
        cumulated += term / count
        if uniform <= cumulated or term / count < 1e-18:
            return count
        term, count = term * (1 - rate), count + 1
