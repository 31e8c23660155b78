"""Tuning on patients is paid for: a random, secret number of trials, or every trial in full."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.accounting import AccountingError, spend_of
from privacy.events import MechanismEvent
from privacy.tuning import TuningError, TuningPlan, draw_num_trials, every_trial_cost, selection_cost

TRIAL = [MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=4.0)]
DELTA = 1e-6


class Uniforms:
    """A source that hands out what the test chose."""

    def __init__(self, values):
        self.values = iter(values)

    def uniform(self, n):
        return [next(self.values) for _ in range(n)]


def theorem_2(sigma: float, plan: TuningPlan, delta: float) -> float:
    """Papernot and Steinke 2022, theorem 2, for one Gaussian: lambda / (2 sigma^2) is its Renyi curve."""
    orders = np.concatenate([np.linspace(1.05, 12, 300), np.linspace(12, 4096, 6000)])
    curve = orders / (2 * sigma**2)
    eta = {"logarithmic": 0.0, "geometric": 1.0}[plan.law]
    rate = plan.stopping_rate
    best_hat = np.min((1 + eta) * ((1 - 1 / orders) * curve + math.log(1 / rate) / orders))
    selected = curve + best_hat + math.log(plan.expected_trials) / (orders - 1)
    # Canonne, Kamath and Steinke 2020, proposition 12
    return float(np.min(selected + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)))


@pytest.mark.parametrize("law", ["logarithmic", "geometric"])
@pytest.mark.parametrize("trials", [2.0, 10.0, 100.0])
def test_the_cost_is_that_of_the_theorem(law, trials):
    plan = TuningPlan(expected_trials=trials, law=law)
    assert selection_cost(TRIAL, plan, delta=DELTA) == pytest.approx(theorem_2(4.0, plan, DELTA), rel=0.02)


def test_a_selection_costs_more_than_a_trial_and_more_with_more_trials():
    costs = [
        selection_cost(TRIAL, TuningPlan(expected_trials=trials), delta=DELTA) for trials in (1.5, 5, 20, 100)
    ]
    assert costs == sorted(costs)
    assert costs[0] > spend_of(TRIAL, delta=DELTA).epsilon


def test_ten_random_trials_cost_less_than_ten_seen_trials():
    random = selection_cost(TRIAL, TuningPlan(expected_trials=10), delta=DELTA)
    seen = every_trial_cost(TRIAL, num_trials=10, delta=DELTA).epsilon
    assert random < seen
    assert seen == spend_of(TRIAL * 10, delta=DELTA).epsilon


@pytest.mark.parametrize(
    "plan", [{"expected_trials": 10, "law": "fixed"}, {"expected_trials": 1.0}, {"expected_trials": math.inf}]
)
def test_a_plan_without_a_price_is_refused(plan):
    with pytest.raises(TuningError):
        TuningPlan(**plan)


def test_a_selection_beyond_meaning_is_refused():
    loud = [MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=0.1)]
    with pytest.raises(AccountingError, match="tune on public data"):
        selection_cost(loud, TuningPlan(expected_trials=1000), delta=DELTA)


@pytest.mark.parametrize("law", ["logarithmic", "geometric"])
@pytest.mark.parametrize("trials", [1.5, 10.0, 200.0])
def test_the_number_of_trials_follows_its_law(law, trials):
    plan = TuningPlan(expected_trials=trials, law=law)
    grid = (np.arange(4000) + 0.5) / 4000
    drawn = np.array([draw_num_trials(plan, Uniforms([value])) for value in grid])
    assert drawn.min() == 1
    assert drawn.mean() == pytest.approx(trials, rel=0.02)
    rate = plan.stopping_rate
    first = rate if law == "geometric" else -(1 - rate) / math.log(rate)
    assert np.mean(drawn == 1) == pytest.approx(first, abs=0.002)


@pytest.mark.parametrize("num_trials", [0, -1, True, 2.0])
def test_a_number_of_trials_is_a_whole_number(num_trials):
    with pytest.raises(ValueError, match="num_trials"):
        every_trial_cost(TRIAL, num_trials=num_trials, delta=DELTA)
