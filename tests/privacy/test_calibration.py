"""Calibration: both phases in one composition, never above the budget and hardly below it."""

from __future__ import annotations

import pytest

from privacy.accounting import spend_of
from privacy.budget import PrivacyBudget
from privacy.calibration import TIGHTNESS, CalibrationError, calibrate, calibrate_phases
from privacy.events import MechanismEvent

MEASURE = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=1.0)


def refine(rate: float, steps: int, rounds: int) -> list[MechanismEvent]:
    event = MechanismEvent(
        phase="refine", kind="subsampled_gaussian", noise_multiplier=1.0, sample_rate=rate, steps=steps
    )
    return [event] * rounds


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.505, 1.0, 4.0, 10.0])
def test_a_plan_keeps_its_budget_and_uses_it(epsilon, delta):
    budget = PrivacyBudget(epsilon=epsilon, delta=delta)
    plan = calibrate_phases(budget=budget, measure=[MEASURE], refine=refine(0.02, 20, 10), measure_share=0.5)
    assert epsilon * (1 - TIGHTNESS) <= plan.spend.epsilon <= epsilon
    assert spend_of(plan.events, delta=delta) == plan.spend
    assert len(plan.events) == 11
    assert plan.events[0].noise_multiplier == plan.measure_noise_multiplier
    assert {event.noise_multiplier for event in plan.events[1:]} == {plan.refine_noise_multiplier}
    alone = spend_of(plan.events[:1], delta=delta).epsilon
    assert 0.5 * epsilon * (1 - TIGHTNESS) <= alone <= 0.5 * epsilon


@pytest.mark.parametrize(("measure", "rounds"), [([MEASURE], 0), ([MEASURE] * 3, 0), ([], 4)])
def test_a_plan_of_one_phase_gets_the_whole_budget(measure, rounds):
    plan = calibrate_phases(
        budget=PrivacyBudget(epsilon=2.0, delta=1e-5),
        measure=measure,
        refine=refine(0.1, 10, rounds),
        measure_share=1.0,
    )
    assert 2.0 * (1 - TIGHTNESS) <= plan.spend.epsilon <= 2.0
    assert (plan.measure_noise_multiplier is None) == (not measure)
    assert len(plan.events) == len(measure) + rounds
    assert (plan.refine_noise_multiplier is None) == (rounds == 0)


def test_a_larger_share_buys_a_better_measurement():
    plans = [
        calibrate_phases(
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
            measure=[MEASURE],
            refine=refine(0.05, 10, 4),
            measure_share=share,
        )
        for share in (0.2, 0.8)
    ]
    assert plans[0].measure_noise_multiplier > plans[1].measure_noise_multiplier
    assert plans[0].refine_noise_multiplier < plans[1].refine_noise_multiplier


def test_what_is_already_spent_can_be_planned_around():
    spent = MEASURE
    budget = PrivacyBudget(epsilon=8.0, delta=1e-5)
    noise = calibrate(
        lambda sigma: [spent, MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=sigma)],
        budget=budget,
    )
    again = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=noise)
    assert spend_of([spent, again], delta=1e-5).epsilon <= 8.0


def test_a_budget_that_is_spent_already_cannot_be_kept():
    with pytest.raises(CalibrationError, match="raise the budget or plan less"):
        calibrate(lambda sigma: [MEASURE], budget=PrivacyBudget(epsilon=1.0, delta=1e-5))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_leaves_a_phase_nothing_is_refused(share):
    with pytest.raises(ValueError, match="measure_share"):
        calibrate_phases(
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5),
            measure=[MEASURE],
            refine=refine(0.1, 1, 1),
            measure_share=share,
        )


def test_an_empty_plan_is_refused():
    with pytest.raises(ValueError, match="nothing to calibrate"):
        calibrate_phases(
            budget=PrivacyBudget(epsilon=1.0, delta=1e-5), measure=[], refine=[], measure_share=0.5
        )
