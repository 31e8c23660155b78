"""Accounting: an upper bound, by two accountants that agree, on a multiset of events."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from privacy import accounting
from privacy.accounting import (
    MAX_DISAGREEMENT,
    AccountingError,
    group_events,
    pld_epsilon,
    project,
    prv_epsilon,
    spend_of,
)
from privacy.events import MechanismEvent

ROUNDING = 1e-6

relaxed = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
plain = st.builds(lambda sigma, steps: gaussian(sigma, steps), st.floats(2.0, 50.0), st.integers(1, 9))
sampled = st.builds(
    lambda sigma, rate, steps: subsampled(sigma, rate, steps),
    st.floats(1.0, 10.0),
    st.floats(0.001, 0.1),
    st.integers(1, 300),
)
mechanisms = st.lists(st.one_of(plain, sampled), min_size=1, max_size=3)


def gaussian(sigma: float, steps: int = 1) -> MechanismEvent:
    return MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=sigma, steps=steps)


def subsampled(sigma: float, rate: float, steps: int) -> MechanismEvent:
    return MechanismEvent(
        phase="refine", kind="subsampled_gaussian", noise_multiplier=sigma, sample_rate=rate, steps=steps
    )


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact privacy curve of the Gaussian mechanism."""

    def excess(epsilon: float) -> float:
        return float(
            norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta
        )

    return brentq(excess, 0, 200, xtol=1e-10) if excess(0) > 0 else 0.0


def test_no_events_cost_nothing():
    assert spend_of([], delta=1e-5).epsilon == 0


@relaxed
@given(events=st.lists(plain, min_size=1, max_size=5), delta=st.sampled_from([1e-4, 1e-6, 1e-8]))
def test_gaussian_compositions_lie_just_above_the_exact_curve(events, delta):
    mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in events))
    exact = exact_gaussian_epsilon(mu, delta)
    spend = spend_of(events, delta=delta)
    assert exact <= spend.epsilon <= exact + 0.0125
    assert exact - ROUNDING <= spend.epsilon_pld


@relaxed
@given(events=mechanisms, order=st.randoms(use_true_random=False))
def test_neither_order_nor_split_changes_the_spend(events, order):
    pieces = []
    for event in events:
        first = order.randint(0, event.steps - 1)
        pieces += [replace(event, steps=steps) for steps in (first, event.steps - first) if steps]
    order.shuffle(pieces)
    assert group_events(pieces) == group_events(events)
    assert spend_of(pieces, delta=1e-5) == spend_of(events, delta=1e-5)


@relaxed
@given(events=mechanisms, added=st.one_of(plain, sampled))
def test_epsilon_never_decreases_when_an_event_is_added(events, added):
    before, after = (spend_of(list_of, delta=1e-5) for list_of in (events, [*events, added]))
    assert after.epsilon >= before.epsilon - ROUNDING
    assert after.epsilon_pld >= before.epsilon_pld - ROUNDING


@pytest.mark.parametrize("rate", [0.001, 0.2])
def test_epsilon_grows_with_every_single_step(rate):
    spends = [spend_of([subsampled(2.0, rate, steps)], delta=1e-6).epsilon for steps in (1, 2, 3, 7, 8)]
    assert spends == sorted(spends)
    assert spends[-1] > spends[0]


def random_events(source: random.Random) -> list[MechanismEvent]:
    events = []
    for _ in range(source.randint(1, 3)):
        sigma, rate = 10 ** source.uniform(-0.1, 2), min(1.0, 10 ** source.uniform(-4, 0.1))
        steps = round(2000 ** source.random())
        events.append(gaussian(sigma, steps) if rate == 1 else subsampled(sigma, rate, steps))
    return events


def accounted(seed: int, count: int) -> int:
    """Check `count` random settings; how many of them were not refused as beyond epsilon 100."""
    source, done = random.Random(seed), 0
    for _ in range(count):
        events, delta = random_events(source), 10 ** source.uniform(-9, -4)
        try:
            spend = spend_of(events, delta=delta)
        except AccountingError as error:
            if "beyond 100" not in str(error):
                raise
            continue
        assert abs(spend.epsilon - spend.epsilon_pld) <= MAX_DISAGREEMENT
        assert spend.epsilon >= spend.epsilon_pld
        done += 1
    return done


def test_both_accountants_agree_on_random_settings():
    assert accounted(seed=1, count=20) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_both_accountants_agree_on_ten_thousand_random_settings(seed):
    assert accounted(seed=seed, count=500) >= 350


@pytest.mark.parametrize(
    "groups",
    [
        [(5.0, 1.0, 1), (2.0, 0.05, 300)],
        [(1.0, 0.01, 1000)],
        [(3.0, 0.05, 50), (2.0, 0.1, 100), (4.0, 0.02, 1000)],
    ],
)
def test_one_transform_gives_what_stock_opacus_gives(groups):
    from opacus.accountants import PRVAccountant

    stock = PRVAccountant()
    stock.history = groups
    assert prv_epsilon(groups, 1e-5) == pytest.approx(stock.get_epsilon(1e-5), abs=5e-4)


def test_a_rate_of_one_costs_what_a_plain_gaussian_costs():
    assert spend_of([subsampled(4.0, 1.0, 9)], delta=1e-5) == spend_of([gaussian(4.0, 9)], delta=1e-5)


def test_neither_phase_nor_clip_changes_the_cost():
    event = subsampled(2.0, 0.1, 50)
    other = replace(event, phase="measure", max_grad_norm=7.0)
    assert spend_of([event, other], delta=1e-5) == spend_of([replace(event, steps=100)], delta=1e-5)


def test_one_composition_costs_less_than_the_sum_of_two():
    first, second = [gaussian(4.0)], [subsampled(1.0, 0.02, 500)]
    together = spend_of([*first, *second], delta=1e-5).epsilon
    assert together < spend_of(first, delta=1e-5).epsilon + spend_of(second, delta=1e-5).epsilon


@pytest.mark.parametrize("distance", [0.03, -0.03, math.nan])
def test_a_disagreement_of_the_accountants_raises(monkeypatch, distance):
    monkeypatch.setattr(
        accounting, "pld_epsilon", lambda groups, delta, **grid: prv_epsilon(groups, delta) - distance
    )
    accounting._spend_of_groups.cache_clear()
    with pytest.raises(AccountingError):
        spend_of([gaussian(5.5)], delta=1e-5)
    accounting._spend_of_groups.cache_clear()


def test_a_cost_without_meaning_is_refused():
    with pytest.raises(AccountingError, match="raise noise_multiplier"):
        spend_of([gaussian(0.01)], delta=1e-5)
    with pytest.raises(AccountingError):
        spend_of([subsampled(0.3, 0.5, 100_000)], delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan, 1e-10])
def test_a_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        spend_of([gaussian(5.0)], delta=delta)


def test_tiny_spends_are_not_eaten_up_by_the_margin():
    spend = spend_of([gaussian(200.0)], delta=1e-5)
    assert spend.epsilon <= exact_gaussian_epsilon(1 / 200, 1e-5) + 0.0015


def test_a_projection_says_where_the_rounds_lead():
    projection = project([gaussian(5.0)], [subsampled(2.0, 0.05, 100)], delta=1e-5)
    assert projection.before.epsilon < projection.after.epsilon
    assert projection.sentence(2.5) == (
        f"these rounds would bring you from epsilon {projection.before.epsilon:.3f} to "
        f"{projection.after.epsilon:.3f} of your cap 2.5 (delta 1e-05)"
    )


def test_the_pld_is_pessimistic_on_a_coarser_grid():
    groups = group_events([subsampled(1.5, 0.02, 400)])
    assert pld_epsilon(groups, 1e-6, interval=1e-3) >= pld_epsilon(groups, 1e-6, interval=1e-4) - 1e-9
