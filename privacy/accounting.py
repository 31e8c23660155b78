"""What a list of mechanism events costs: one composition, by two independent accountants.

Recorded is Opacus' PRV accountant (Gopi, Lee and Wutschitz 2021); dp-accounting's privacy loss distributions
(Doroshenko et al. 2022) must agree within `MAX_DISAGREEMENT`, otherwise nothing is recorded and nothing may run.

Events are composed as a multiset: equal mechanisms are merged first, so that neither the order of the rounds nor
how they were split over runs changes the figure. Gaussian events without sampling are merged exactly, by
Gaussian differential privacy (Dong, Roth and Su 2019): `mu^2 = sum(steps / noise_multiplier^2)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from privacy.budget import PrivacySpend, check_delta
from privacy.events import MechanismEvent

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

MAX_DISAGREEMENT = 0.02
"""Largest difference in epsilon between the two accountants that is believed."""

MIN_DELTA = 1e-9
"""Below it the rounding of double-precision Fourier transforms is no longer small beside delta."""

MAX_EPSILON = 100.0
"""Beyond it a promise means nothing, and nothing is accounted: such a plan is a mistake."""

_PRV_ERROR = 0.01  # proved bound on the PRV's error in epsilon; it is added to the estimate
_PRV_ERROR_SMALLEST = 0.001
_PRV_ERROR_SHARE = 0.02  # of the spend, between the two: a small budget is not eaten up by the margin
_PRV_MESH = 2.0**-13  # coarsest grid: keeps rounding far below what any real event costs
_PLD_INTERVAL = 1e-3
_PLD_INTERVAL_FINE = 1e-4
_DELTA_ERROR = 1e-3  # share of delta that the PRV may be off by, as Opacus has it
_HOPELESS = 4 * MAX_EPSILON  # by Renyi's loose bound: not worth a transform
_ROUNDING = 10**6  # figures are rounded up to a millionth, the same on every machine

Group = tuple[float, float, int]
"""(noise_multiplier, sample_rate, steps): all that an accountant needs of equal events."""


class AccountingError(Exception):
    """The cost of these events could not be established. Treat it as unknown: refuse."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What planned events would add to what was already spent, on the same patients and at the same delta.

    Attributes:
        before: spend of the events that were ever debited.
        after: spend of those and the planned ones, composed together (never the sum of two epsilons).
    """

    before: PrivacySpend
    after: PrivacySpend

    def sentence(self, cap: float) -> str:
        """The projection in plain words, for the person who approves."""
        return (
            f"these rounds would bring you from epsilon {self.before.epsilon:.3f} to {self.after.epsilon:.3f} "
            f"of your cap {cap:g} (delta {self.after.delta:g})"
        )


def group_events(events: Sequence[MechanismEvent]) -> tuple[Group, ...]:
    """Merge equal mechanisms: the canonical multiset of what ran, sorted.

    Privacy: `max_grad_norm` does not appear, because the noise is `noise_multiplier` times it. The phase does not
    appear, because a patient does not care which phase spent.

    Returns:
        At most one group with sample rate 1 (all plain Gaussians, merged exactly into one step), and one for each
        pair of noise multiplier and sample rate below 1.
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (float(event.noise_multiplier), float(event.sample_rate))
        steps[key] = steps.get(key, 0) + event.steps
    groups = sorted((sigma, rate, count) for (sigma, rate), count in steps.items())
    plain = [(sigma, count) for sigma, rate, count in groups if rate == 1.0]
    sampled = [group for group in groups if group[1] < 1.0]
    if len(plain) == 1 and plain[0][1] == 1:
        return ((plain[0][0], 1.0, 1), *sampled)
    if plain:
        mu = math.sqrt(math.fsum(count / (sigma * sigma) for sigma, count in plain))
        return ((1.0 / mu, 1.0, 1), *sampled)
    return tuple(sampled)


def spend_of(events: Sequence[MechanismEvent], *, delta: float) -> PrivacySpend:
    """Cost of all these events together for one patient, at `delta`.

    Privacy: unit is one patient with all records, added or removed; the sampling is Poisson. Every event must be
    given, whatever run, phase or failed round it belongs to: what is left out is not counted.

    Guarantees: an upper bound; the same for every order and every split of the same events; deterministic.
    Adding an event never lowers it by more than the rounding of the transforms: 1e-6 at a delta of 1e-5, 5e-4
    at 1e-9, the smallest, and always well inside the margin that is added. The guard keeps the running maximum.

    Args:
        events: what ran or may have run; may be empty.
        delta: the one delta of the whole list, in [1e-9, 1).

    Raises:
        ValueError: delta is out of its range.
        AccountingError: the accountants disagree by more than `MAX_DISAGREEMENT`, one of them failed, or the cost
            is beyond `MAX_EPSILON`.

    References:
        Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", 2021.
        Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions", 2022.

    >>> once = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=5.0)
    >>> spend_of([once], delta=1e-5).epsilon
    0.735592
    """
    check_delta(delta)
    if delta < MIN_DELTA:
        raise ValueError(
            f"delta is {delta!r}; the accountants are good down to {MIN_DELTA:g}: choose at least that"
        )
    return _spend_of_groups(group_events(events), float(delta))


def project(
    spent_events: Sequence[MechanismEvent], planned_events: Sequence[MechanismEvent], *, delta: float
) -> Projection:
    """What `planned_events` would bring the spend to, after all of `spent_events`.

    Raises:
        ValueError, AccountingError: as `spend_of`.
    """
    return Projection(
        before=spend_of(spent_events, delta=delta),
        after=spend_of([*spent_events, *planned_events], delta=delta),
    )


@lru_cache(maxsize=4096)
def _spend_of_groups(groups: tuple[Group, ...], delta: float) -> PrivacySpend:
    if not groups:
        return PrivacySpend(epsilon=0.0, delta=delta, epsilon_pld=0.0)
    by_pld = _rdp_epsilon(groups, delta)
    if by_pld < _HOPELESS:
        by_pld = pld_epsilon(groups, delta, interval=_PLD_INTERVAL)
    if not by_pld <= MAX_EPSILON:
        raise AccountingError(
            f"these events cost an epsilon of about {by_pld:.4g} at delta {delta:g}, beyond {MAX_EPSILON:g}: no "
            "promise is left; raise noise_multiplier, or lower sample_rate or the number of steps"
        )
    by_prv = prv_epsilon(groups, delta, error=prv_margin(by_pld))
    if abs(by_prv - by_pld) > MAX_DISAGREEMENT or by_pld > by_prv:
        by_pld = pld_epsilon(groups, delta, interval=_PLD_INTERVAL_FINE)
    if not abs(by_prv - by_pld) <= MAX_DISAGREEMENT:
        raise AccountingError(
            f"Opacus' PRV says epsilon {by_prv:.5f} and dp-accounting's PLD {by_pld:.5f} at delta {delta:g}, more than "
            f"{MAX_DISAGREEMENT:g} apart: one of them is wrong, so nothing may run; change the plan's settings and "
            "report these groups (noise_multiplier, sample_rate, steps): " + repr(groups)
        )
    return PrivacySpend(
        epsilon=_rounded_up(max(by_prv, by_pld)), delta=delta, epsilon_pld=_rounded_up(by_pld)
    )


def prv_epsilon(groups: Sequence[Group], delta: float, *, error: float = _PRV_ERROR) -> float:
    """Epsilon by Opacus' PRV accountant: its upper bound, `error` above its estimate.

    Discretisation, error bound and epsilon are Opacus'; the groups are composed in one Fourier transform, where
    Opacus convolves them pair by pair. The grid is at most 2^-13 wide even where `error` allows a coarser one: finer
    is only nearer to the truth, and it keeps the figure from falling when an event is added.

    Raises:
        AccountingError: Opacus could not compute it.
    """
    import numpy as np

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # on the choice of Renyi orders, which only sizes the grid
            epsilon = _one_transform_accountant()(groups, delta, error)
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as problem:
        raise AccountingError(f"Opacus' PRV accountant failed on {list(groups)!r}: {problem}") from problem
    if not math.isfinite(epsilon):
        raise AccountingError(f"Opacus' PRV accountant gives {epsilon!r} for {list(groups)!r}")
    return max(epsilon, 0.0)


def pld_epsilon(groups: Sequence[Group], delta: float, *, interval: float = _PLD_INTERVAL) -> float:
    """Epsilon by dp-accounting's privacy loss distributions, rounded pessimistically on a grid of `interval`.

    Raises:
        AccountingError: dp-accounting could not compute it.
    """
    try:
        composed: PrivacyLossDistribution | None = None
        for group in groups:
            part = _pld_of_group(group, interval)
            composed = part if composed is None else composed.compose(part)
        epsilon = 0.0 if composed is None else float(composed.get_epsilon_for_delta(delta))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as problem:
        raise AccountingError(f"dp-accounting's PLD failed on {list(groups)!r}: {problem}") from problem
    if math.isnan(epsilon):
        raise AccountingError(f"dp-accounting's PLD gives {epsilon!r} for {list(groups)!r}")
    return epsilon


def prv_margin(epsilon: float) -> float:
    """What the PRV's proved error bound adds to a spend of about `epsilon`."""
    return min(max(_PRV_ERROR_SHARE * epsilon, _PRV_ERROR_SMALLEST), _PRV_ERROR)


def _rdp_epsilon(groups: Sequence[Group], delta: float) -> float:
    import numpy as np
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [tuple(group) for group in groups]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        epsilon = float(accountant.get_epsilon(delta))
    return math.inf if math.isnan(epsilon) else epsilon


@cache
def _one_transform_accountant() -> Callable[[Sequence[Group], float, float], float]:
    import numpy as np
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import (
        DiscretePRV,
        Domain,
        PoissonSubsampledGaussianPRV,
        TruncatedPrivacyRandomVariable,
        compute_safe_domain_size,
        discretize,
    )
    from scipy.fft import irfft, next_fast_len, rfft

    class OneTransform(PRVAccountant):  # type: ignore[misc]
        def _get_dprv(self, eps_error: float, delta_error: float) -> Any:
            prvs = [PoissonSubsampledGaussianPRV(rate, sigma) for sigma, rate, _ in self.history]
            counts = [count for _, _, count in self.history]
            reach = float(compute_safe_domain_size(prvs, counts, eps_error, delta_error))
            mesh = min(_PRV_MESH, eps_error / math.sqrt(sum(counts) * math.log(12 / delta_error) / 2))
            half = next_fast_len(math.ceil(reach / mesh) + 1, real=True) - 1
            grid = Domain(-half * mesh, (half + 1) * mesh, 2 * half + 2)
            spectrum, shift = np.ones(grid.size // 2 + 1, dtype=np.complex128), 0.0
            for prv, count in zip(prvs, counts, strict=True):
                single = discretize(TruncatedPrivacyRandomVariable(prv, grid.t_min, grid.t_max), grid)
                spectrum *= rfft(single.pmf) ** count
                shift += single.domain.shifts * count
            # Index i stands for (i - half) * mesh, so K of them add up to index + (K - 1) * half.
            composed = np.roll(irfft(spectrum, n=grid.size), -(sum(counts) - 1) * half)
            return DiscretePRV(pmf=composed, domain=grid.shift_right(shift))

    def epsilon_of(groups: Sequence[Group], delta: float, error: float) -> float:
        accountant = OneTransform()
        accountant.history = [tuple(group) for group in groups]
        return float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta * _DELTA_ERROR))

    return epsilon_of


@lru_cache(maxsize=256)
def _pld_of_group(group: Group, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution

    sigma, rate, steps = group
    if rate == 1.0:
        return privacy_loss_distribution.from_gaussian_mechanism(
            sigma / math.sqrt(steps), value_discretization_interval=interval
        )
    single = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=rate, value_discretization_interval=interval
    )
    return single.self_compose(steps)


def _rounded_up(epsilon: float) -> float:
    # One part in 1e12 first, so that 0.3 does not become 0.300001 for its last bit.
    return math.ceil(round(epsilon * _ROUNDING, 6)) / _ROUNDING
