"""How the sites' vectors become one: the mean, or an estimate that a bounded number of lying sites cannot carry away.

A rule looks at each coordinate alone. It orders the sites' values and averages those that lie in a central band of
the sites' weight; what is outside the band counts as nothing, however far away it is. The weights are public: equal
for judgements and comparisons, and for moments each site's noisy number of patients, with a cap on one site's share.

Guarantee (`median`, `trimmed-mean`): as long as no more than `max_faulty_sites` sites lie, every coordinate of the
outcome lies within the honest sites' values. It bounds a lie and does not undo it: with four sites a liar still
decides which honest values the band holds.

References:
    Yin, Chen, Ramchandran, Bartlett: Byzantine-robust distributed learning: towards optimal statistical rates,
    ICML 2018 (coordinate-wise median and trimmed mean).
    Huber, Ronchetti: Robust Statistics, 2009, section 3.3 (L-estimates).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.anchor import estimated_patients
from models.moments import MomentLayout
from models.plausibility import redundancy
from models.study import FederationSettings

MIN_SITES_TO_CAP = 3
"""With two sites nobody can say which of them claims too much, so that no share is capped."""
_ROBUST_SHARE = 0.4
_NOISE_DRAWS = 20_000


@dataclass(frozen=True)
class CombinedMoments:
    """The sites' moments as one vector.

    Attributes:
        vector: like the sites', float64, as a sum over patients.
        noise_std: standard deviation of the noise in one entry of it.
        shares: what each site counts for, in the order given; they sum to 1.
        claimed: what each would count for by its own number of patients.
    """

    vector: Tensor
    noise_std: float
    shares: tuple[float, ...]
    claimed: tuple[float, ...]


def capped_shares(totals: Tensor, cap: float) -> Tensor:
    """Shares proportional to `totals`, none above `cap`; what is cut goes to the others in proportion.

    Args:
        totals: (K,) above 0.
        cap: at least 1/K.

    Returns:
        (K,) float64, summing to 1.
    """
    shares = totals.double() / totals.double().sum()
    held = torch.zeros(len(shares), dtype=torch.bool)
    while bool((over := (shares > cap * (1 + 1e-12)) & ~held).any()):
        held |= over
        shares[held] = cap
        rest = shares[~held]
        shares[~held] = rest * (1 - cap * int(held.sum())) / rest.sum()
    return shares


def combine(values: Tensor, shares: Tensor, settings: FederationSettings) -> Tensor:
    """One value for each coordinate.

    Args:
        values: (K, N) of the sites.
        shares: (K,) positive weights that sum to 1; of the robust rules no `max_faulty_sites` of them reach half.
        settings: which rule.

    Returns:
        (N,) float64.
    """
    values, shares = values.double(), shares.double()
    if settings.aggregation == "mean" or len(values) == 1:
        return shares @ values
    low = _trimmed(shares, settings)
    ordered, places = values.sort(0)
    upper = shares[places].cumsum(0)
    lower = upper - shares[places]
    inside = (upper.clamp(max=1 - low) - lower.clamp(min=low)).clamp(min=0.0)
    return (inside * ordered).sum(0) / inside.sum(0)


def _trimmed(shares: Tensor, settings: FederationSettings) -> float:
    """The weight that is left out at each end: never less than what the liars can have together."""
    liars = settings.max_faulty_sites * float(shares.max())
    if liars >= 0.5:
        raise ValueError(
            f"{settings.max_faulty_sites} of {len(shares)} sites can have {liars:.0%} of the weight; "
            f"{settings.aggregation} needs at least {2 * settings.max_faulty_sites + 1} sites of like weight"
        )
    # The median's band is one site wide: the middle one of an odd number, halves of the middle two of an even one.
    return liars if settings.aggregation == "trimmed-mean" else max(liars, 0.5 - 0.5 / len(shares))


def combine_equally(values: Sequence[Tensor], settings: FederationSettings) -> Tensor:
    """The sites' judgements, or what they say in a comparison, as one: each site with the same weight.

    Args:
        values: (N,) of each accepted site, at least one.
        settings: which rule.

    Returns:
        (N,) float64.

    Raises:
        ValueError: there is none, or there are too few for the rule.
    """
    if not values:
        raise ValueError("there is no site's reply to combine")
    shares = torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    return combine(torch.stack(list(values)), shares, settings)


def combine_moments(
    layout: MomentLayout, vectors: Sequence[Tensor], settings: FederationSettings, *, noise_std: float
) -> CombinedMoments:
    """The sites' noisy moments as one.

    `mean` adds them up, a site beyond the cap scaled down. The robust rules work on each site's moments per
    patient, so that a hospital of another size is not an outlier for its size.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        layout: of the table's moments, which every vector begins with.
        vectors: (size or more,) each, of sites that `models.plausibility.check_moments` has passed; at least one.
        settings: rule and cap.
        noise_std: of one entry of one vector, 0 or more.

    Raises:
        ValueError: there is no vector, or there are too few for the rule.
    """
    if not vectors:
        raise ValueError("there are no moments to combine")
    stacked = torch.stack([vector.double() for vector in vectors])
    totals = torch.tensor([estimated_patients(layout, vector) for vector in stacked], dtype=torch.float64)
    claimed = totals / totals.sum()
    shares = capped_shares(totals, _cap(len(vectors), settings))
    per_patient = shares / totals
    num_patients = float(
        1 / per_patient.max()
    )  # patients that count, if those of an uncapped site count whole
    if settings.aggregation == "mean" or len(vectors) == 1:
        factor = float(per_patient.square().sum().sqrt())
        combined = per_patient @ stacked
    else:
        combined = combine(stacked / totals[:, None], shares, settings)
        factor = _noise_factor(totals, shares, settings)
        energy, freedom = redundancy(layout, combined[: layout.size])
        if freedom and noise_std:
            # Where sites differ, the order is theirs and not the noise's, and less of the noise averages out.
            # Two standard deviations of chi-square are left to chance.
            factor = max(factor, (energy / (freedom + (8 * freedom) ** 0.5)) ** 0.5 / noise_std)
    return CombinedMoments(
        combined * num_patients,
        noise_std * factor * num_patients,
        tuple(shares.tolist()),
        tuple(claimed.tolist()),
    )


def _cap(num_sites: int, settings: FederationSettings) -> float:
    cap = settings.max_site_share
    if settings.aggregation != "mean":
        cap = min(cap, _ROBUST_SHARE / settings.max_faulty_sites)
    elif num_sites < MIN_SITES_TO_CAP:
        cap = 1.0
    return max(cap, 1 / num_sites)


def _noise_factor(totals: Tensor, shares: Tensor, settings: FederationSettings) -> float:
    """Standard deviation of the rule's outcome for unit noise in each site's vector, over alike sites."""
    source = torch.Generator().manual_seed(0)  # of a public constant, found by simulation
    drawn = torch.randn(len(totals), _NOISE_DRAWS, generator=source, dtype=torch.float64)
    return float(combine(drawn / totals[:, None], shares, settings).square().mean().sqrt())
