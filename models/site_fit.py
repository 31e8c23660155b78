"""Sites whose patients differ: a mixture per site, each helped by what all sites tell of how columns hang together.

A site's noisy moments alone say little of its pairs of columns. What a pair shows beyond its two columns' frequencies,
relative to them, is therefore drawn towards the mean of all sites, the more the noisier the site and the less the sites
differ in that pair (empirical Bayes). The sites' mixtures, weighted by their patients, are one generator of the same
form.

Whether that is better than one mixture for all is judged by the noisy moments, thinned: no patient is asked.

References:
    DerSimonian, Laird: Meta-analysis in clinical trials, Controlled Clinical Trials 1986 (variance between sites).
    Efron, Morris: Stein's estimation rule and its competitors - an empirical Bayes approach, JASA 1973.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.anchor import Anchor, estimated_patients
from models.generator import MixtureGenerator
from models.moments import MomentCounts, MomentLayout

Fit = Callable[[Anchor, int], MixtureGenerator]
"""Fit a mixture to an anchor with at most so many components."""

MAX_COMPONENTS = 1_500
MAX_SITE_COMPONENTS = 150
_LEAST_FREQUENCY = 0.02  # a rarer level's pairs tell nothing of how strongly it hangs together with others
_MARGIN_PRECISION = 4.0  # a column's frequencies are known from all its pairs, not from its counts alone
_MOST_PRECISION = 50.0
_CERTAIN = 40.0  # a logit beside zeros
_DIFFERENT = 5.0  # standard deviations, before a fit by site is tried
_CONVINCING = 1.5  # standard deviations, before it is preferred


@dataclass(frozen=True, kw_only=True)
class SiteMoments:
    """What one site released.

    Attributes:
        name: the site's.
        anchor: its noisy frequencies.
        share: what it counts for; the sites' sum to 1.
        num_patients: how many patients its moments tell of.
    """

    name: str
    anchor: Anchor
    share: float
    num_patients: float


def site_moments(
    layout: MomentLayout, vectors: Mapping[str, Tensor], shares: Sequence[float], *, noise_std: float
) -> list[SiteMoments]:
    """Each site's vector, read on its own.

    Args:
        layout: of the vectors.
        vectors: (size,) each, by the site's name.
        shares: what each counts for.
        noise_std: of one entry of one vector.

    Raises:
        AnchorError: a site's noise hides whether it has patients.
    """
    return [
        SiteMoments(
            name=name,
            anchor=Anchor.from_sum(layout, vector, noise_std=noise_std),
            share=share,
            num_patients=estimated_patients(layout, vector),
        )
        for (name, vector), share in zip(vectors.items(), shares, strict=True)
    ]


def sites_differ(sites: Sequence[SiteMoments]) -> bool:
    """Whether single columns' frequencies differ by more than noise and the chance of who came to which hospital."""
    if len(sites) < 2:
        return False
    found = torch.stack([site.anchor.frequencies.one_way for site in sites])
    patients = torch.tensor([[site.num_patients] for site in sites], dtype=torch.float64)
    noise = torch.tensor([[site.anchor.noise_std] for site in sites], dtype=torch.float64)
    middle = (patients * found).sum(0) / patients.sum()
    chance = middle.clamp(0.0, 1.0) * (1 - middle.clamp(0.0, 1.0)) / patients
    variance = (noise.square() + chance).clamp_min(1e-18)
    mean = (found / variance).sum(0) / (1 / variance).sum(0)
    energy = float(((found - mean).square() / variance).sum())
    freedom = (len(sites) - 1) * found.shape[1]
    return energy > freedom + _DIFFERENT * (2 * freedom) ** 0.5


def better_by_site(sites: Sequence[SiteMoments], fit: Fit, *, components: int, seed: int = 0) -> bool:
    """Whether a mixture per site meets moments that it was not fitted to better than one mixture for all.

    Args:
        sites: two or more.
        fit: how a mixture is fitted.
        components: of the one mixture for all.
        seed: of the thinning.
    """
    halves = [site.anchor.thinned(seed=seed + place) for place, site in enumerate(sites)]
    fitted_to = [replace(site, anchor=first) for site, (first, _) in zip(sites, halves, strict=True)]
    judged_by = _mean([replace(site, anchor=second) for site, (_, second) in zip(sites, halves, strict=True)])
    candidates = (fit(_mean(fitted_to), components), fit_by_site(fitted_to, fit))
    with torch.no_grad():
        together, apart = (judged_by.residuals(one) for one in candidates)
    between = MomentCounts(
        together.one_way - apart.one_way,
        together.interactions - apart.interactions,
        together.label_interactions - apart.label_interactions,
    )
    gain = float(judged_by.energy(together) - judged_by.energy(apart))
    # The judge's noise moves the gain by this standard deviation.
    chance = 2 * judged_by.noise_std * float(judged_by.energy(between)) ** 0.5
    return gain > _CONVINCING * chance


def fit_by_site(
    sites: Sequence[SiteMoments], fit: Fit, *, names: Sequence[str] = (), seed: int = 0
) -> MixtureGenerator:
    """One generator that holds a mixture for each site.

    Args:
        sites: two or more; one will do where there are names.
        fit: how a mixture is fitted.
        names: where given, the generator has one more column: of which of these sites a patient is.
        seed: of the components' order, which does not tell which site they are of.
    """
    components = min(MAX_SITE_COMPONENTS, max(20, MAX_COMPONENTS // len(sites)))
    own = [fit(site.anchor, components) for site in sites]
    margins = [one.one_way().detach().double() for one in own]
    anchors = _drawn_together([site.anchor for site in sites], margins) if len(sites) > 1 else []
    fits = [fit(anchor, components) for anchor in anchors] or own
    logits = torch.cat([one.logits.detach() for one in fits])
    weights = torch.cat([one.weights().detach() * site.share for one, site in zip(fits, sites, strict=True)])
    cardinalities = own[0].cardinalities
    if names:
        places = torch.tensor([names.index(site.name) for site in sites])
        places = places.repeat_interleave(torch.tensor([one.num_components for one in fits]))
        of_site = _CERTAIN * torch.nn.functional.one_hot(places, len(names)).float()
        logits, cardinalities = torch.cat([logits, of_site], 1), (*cardinalities, len(names))
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    return MixtureGenerator(logits[order], weights[order].log(), cardinalities)


def _mean(sites: Sequence[SiteMoments]) -> Anchor:
    """All sites' patients together."""
    parts = [(site.share, site.anchor) for site in sites]
    frequencies = MomentCounts(
        *(
            torch.stack([share * getattr(one.frequencies, name) for share, one in parts]).sum(0)
            for name in ("one_way", "interactions", "label_interactions")
        )
    )
    noise_std = sum((share * one.noise_std) ** 2 for share, one in parts) ** 0.5
    first = sites[0].anchor
    return Anchor(first.layout, frequencies, noise_std, first.precision)


def _drawn_together(anchors: Sequence[Anchor], margins: Sequence[Tensor]) -> list[Anchor]:
    """Each site's anchor with its pairs drawn towards what all sites show.

    Args:
        anchors: the sites', of one layout.
        margins: (D,) frequencies of each site's columns.
    """
    layout = anchors[0].layout
    expected = [_independent(layout, margin) for margin in margins]
    beyond = torch.stack(
        [_stacked(one.frequencies) - _stacked(apart) for one, apart in zip(anchors, expected, strict=True)]
    )  # (S, 1 + contrasts, D, D): how the pairs hang together at each site
    strength = torch.stack([margin.clamp_min(_LEAST_FREQUENCY).sqrt() for margin in margins])
    strength = (strength[:, :, None] * strength[:, None, :])[:, None]
    weight = torch.tensor([one.noise_std**-2 for one in anchors], dtype=torch.float64)
    known = weight[:, None, None, None]
    common = strength * ((known * strength * beyond).sum(0) / (known * strength.square()).sum(0))
    between = _variance_between(layout, beyond[:, 0] - common[:, 0], weight)  # (K, K)
    drawn = []
    for place, one in enumerate(anchors):
        noise = float(1 / weight[place])
        apart = between + _beyond_others(layout, beyond[place, 0] - common[place, 0], between, weight, place)
        own = apart / (apart + noise)
        level = own[layout.column_of][:, layout.column_of]
        joined = level * beyond[place] + (1 - level) * common[place]
        off = own.square() * noise + (1 - own).square() * (apart + float(1 / weight.sum()))
        precision = (noise / off).clamp(max=_MOST_PRECISION)
        precision.fill_diagonal_(_MARGIN_PRECISION)
        moments = joined + _stacked(expected[place])
        found = MomentCounts(margins[place], moments[0], moments[1:])
        drawn.append(Anchor.weighted(layout, found, one.noise_std, precision))
    return drawn


def _independent(layout: MomentLayout, margin: Tensor) -> MomentCounts:
    """What would be measured if the columns were independent."""
    centred = torch.cat([part - part.mean() for part in margin.split(layout.cardinalities)])
    pairs = centred[:, None] * centred
    label = margin[:0] if layout.label is None else margin.split(layout.cardinalities)[layout.label]
    contrasted = [
        float(row @ label) * pairs * layout.between_others for row in layout.contrasts[:, : len(label)]
    ]
    empty = torch.zeros(0, layout.width, layout.width, dtype=torch.float64)
    return MomentCounts(margin, pairs * layout.between, torch.stack(contrasted) if contrasted else empty)


def _stacked(counts: MomentCounts) -> Tensor:
    return torch.cat([counts.interactions[None], counts.label_interactions])


def _variance_between(layout: MomentLayout, off: Tensor, weight: Tensor) -> Tensor:
    """How much the sites differ in each pair of columns, beyond noise: (K, K) variances of one cell.

    Args:
        layout: of the pairs.
        off: (S, D, D) each site's pairs less what all show.
        weight: (S,) one over the variance of each site's noise.
    """
    columns = layout.num_columns
    belongs = torch.nn.functional.one_hot(layout.column_of, columns).double()  # (D, K)
    energy = belongs.T @ (weight[:, None, None] * off.square()).sum(0) @ belongs
    freedom = _freedom(layout)
    spread = float(weight.sum() - weight.square().sum() / weight.sum())
    return ((energy - (len(weight) - 1) * freedom) / (spread * freedom)).clamp_min(0.0)


def _beyond_others(layout: MomentLayout, off: Tensor, between: Tensor, weight: Tensor, place: int) -> float:
    """How much more one site differs in a pair than the sites in general do, over all pairs: a variance, 0 or more.

    The sites' variance of one pair hears little of a small site; all its pairs together tell whether it is another
    kind.
    """
    freedom = _freedom(layout).fill_diagonal_(0.0)
    noise = float(1 / weight[place]) * (1 - float(weight[place] / weight.sum()))
    expected = float((freedom * (noise + between)).sum())
    return max(0.0, float(off.square().sum()) - expected) / max(1.0, float(freedom.sum()))


def _freedom(layout: MomentLayout) -> Tensor:
    """Degrees of freedom of each pair of columns' table: (K, K), at least 1."""
    free = torch.tensor(layout.cardinalities, dtype=torch.float64) - 1
    return (free[:, None] * free).clamp_min(1.0)
