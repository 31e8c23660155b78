"""How much noise keeps a plan within a budget: noise multipliers found for one composition of all its phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from privacy.accounting import AccountingError, group_events, pld_epsilon, prv_margin, spend_of
from privacy.budget import PrivacyBudget, PrivacySpend
from privacy.events import MechanismEvent

TIGHTNESS = 0.005
"""A calibrated plan costs at most the budget and at least this share less: nothing worth having is left over."""

MIN_NOISE_MULTIPLIER = 0.05
MAX_NOISE_MULTIPLIER = 1e6

_DIGITS = 5  # significant digits of a noise multiplier, rounded up: short to read, exact in JSON


class CalibrationError(Exception):
    """No noise multiplier fits the budget."""


@dataclass(frozen=True, kw_only=True)
class CalibratedPlan:
    """Noise for both phases of a study, within one budget.

    Attributes:
        measure_noise_multiplier: for every exchange of the measure phase; None if the study has none.
        refine_noise_multiplier: for every refine round; None if the study has none.
        events: the whole plan with its noise filled in, measure first.
        spend: what all of it costs together, at most the budget.
    """

    measure_noise_multiplier: float | None
    refine_noise_multiplier: float | None
    events: tuple[MechanismEvent, ...]
    spend: PrivacySpend


def calibrate(events_for: Callable[[float], Sequence[MechanismEvent]], *, budget: PrivacyBudget) -> float:
    """Smallest noise multiplier, to five digits, at which `events_for(it)` costs at most the budget.

    Privacy: touches no data; it plans.

    Guarantees: `spend_of(events_for(result))` is at most `budget.epsilon`, and within `TIGHTNESS` below it.

    Args:
        events_for: the whole list of events at a given noise multiplier; must cost less, the larger that is. Events
            that do not depend on it (already spent, or of another phase) belong into the list too.
        budget: the cap for all of them together.

    Raises:
        CalibrationError: even endless noise exceeds the budget (what does not depend on it is already too much),
            or next to none is enough.
        AccountingError: as `privacy.accounting.spend_of`.
    """
    delta, cap = budget.delta, budget.epsilon

    def cost(noise_multiplier: float) -> float:
        try:
            return spend_of(events_for(noise_multiplier), delta=delta).epsilon
        except AccountingError as problem:
            if "beyond" in str(problem):
                return math.inf
            raise

    if cost(MAX_NOISE_MULTIPLIER) > cap:
        raise CalibrationError(
            f"epsilon {cap:g} at delta {delta:g} cannot be kept at any noise: what does not depend on this noise "
            "multiplier (or the accountant's own margin) already exceeds it; raise the budget or plan less"
        )
    # First on dp-accounting's coarse grid, which is fast, below what the recorded figure adds to it.
    target = cap - prv_margin(cap)
    _, high = _bracket(lambda sigma: pld_epsilon(group_events(events_for(sigma)), delta) <= target)
    best = _rounded_up(high)
    low, high = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    aim = cap * (1 - TIGHTNESS / 4)
    for _ in range(64):
        spent = cost(best)
        if spent <= cap:
            high = best
            if spent >= cap * (1 - TIGHTNESS / 2):
                return best
        else:
            low = best
        # Epsilon falls as a power of the noise multiplier between -1 and -2, so this power converges for both.
        guess = best * min(max(spent / aim, 0.5), 2.0) ** 0.7
        if not low < guess < high:
            guess = math.sqrt(low * high)
        best = _rounded_up(guess)
        if best >= high:
            return high
    return high


def calibrate_phases(
    *,
    budget: PrivacyBudget,
    measure: Sequence[MechanismEvent],
    refine: Sequence[MechanismEvent],
    measure_share: float,
    compare: Sequence[MechanismEvent] = (),
) -> CalibratedPlan:
    """Noise for the measure phase and for the refine rounds, accounted as one composition.

    All exchanges of the measure phase and the comparison together cost `measure_share * budget.epsilon` (all of the
    budget if nothing is refined); the refine rounds get what one composition of everything leaves, which is more than
    `1 - measure_share`.

    Guarantees: `plan.spend.epsilon <= budget.epsilon`, and at most `TIGHTNESS` of it is left.

    Args:
        budget: cap per patient of one site, for the whole plan.
        measure: the exchanges' events; their noise multipliers are placeholders, and all get the same one.
        refine: the refine rounds' events; their noise multipliers are placeholders, and all get the same one.
        measure_share: in (0, 1); ignored unless both phases are there.
        compare: events of a comparison; their noise multipliers say how many times a measurement's noise they get.

    Raises:
        ValueError: there is no event at all, or measure_share is out of its range.
        CalibrationError, AccountingError: as `calibrate`.
    """
    if not measure and not refine:
        raise ValueError("there is neither a measure event nor a refine event: nothing to calibrate")
    if measure and refine and not 0 < measure_share < 1:
        raise ValueError(
            f"measure_share is {measure_share!r}; with both phases it must lie strictly between 0 and 1"
        )
    first: tuple[MechanismEvent, ...] = ()
    measure_noise = refine_noise = None
    if measure:
        share = measure_share if refine else 1.0

        def measured(sigma: float) -> tuple[MechanismEvent, ...]:
            return (*_at(sigma, measure), *(_times(sigma, event) for event in compare))

        measure_noise = calibrate(
            measured, budget=PrivacyBudget(epsilon=budget.epsilon * share, delta=budget.delta)
        )
        first = measured(measure_noise)
    events = first
    if refine:

        def plan(sigma: float) -> tuple[MechanismEvent, ...]:
            return (*first, *_at(sigma, refine))

        refine_noise = calibrate(plan, budget=budget)
        events = plan(refine_noise)
    return CalibratedPlan(
        measure_noise_multiplier=measure_noise,
        refine_noise_multiplier=refine_noise,
        events=events,
        spend=spend_of(events, delta=budget.delta),
    )


def _at(noise_multiplier: float, events: Sequence[MechanismEvent]) -> tuple[MechanismEvent, ...]:
    return tuple(replace(event, noise_multiplier=noise_multiplier) for event in events)


def _times(noise_multiplier: float, event: MechanismEvent) -> MechanismEvent:
    return replace(event, noise_multiplier=noise_multiplier * event.noise_multiplier)


def _bracket(fits: Callable[[float], bool]) -> tuple[float, float]:
    """Noise multipliers at most 0.1 % apart: the lower does not fit, the upper does."""
    high = 1.0
    while not fits(high) and high < MAX_NOISE_MULTIPLIER:
        high *= 2
    low = high / 2
    while fits(low) and low > MIN_NOISE_MULTIPLIER:
        high, low = low, low / 2
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high


def _rounded_up(value: float) -> float:
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(round(value * scale, 6)) / scale
