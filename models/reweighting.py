"""The generator's step against the sites' discriminators: generated records are weighed, and a mixture is fitted to it.

A discriminator's logit estimates how much likelier a record is among patients than among generated ones. The sites'
judgements of the same records become one, so that what one of them has learnt of its noise and of its own patients
alone averages out. Records get weights by it. The weights are scaled until every pair of columns is as before, which is
the anchor: pairs were measured, and better than a discriminator can tell. Then a new mixture is fitted to the weighed
records by expectation maximisation. It starts from records, not from the old components: where pairs cannot say what
is missing, these are at a saddle of the likelihood, which small steps do not leave.

Privacy: post-processing of what the sites released; costs nothing.

References:
    Hjelm et al.: Boundary-Seeking Generative Adversarial Networks, ICLR 2018 (weights by the density ratio).
    Azadi et al.: Discriminator Rejection Sampling, ICLR 2019.
    Deming, Stephan: On a Least Squares Adjustment of a Sampled Frequency Table, 1940 (the scaling).
    Dempster, Laird, Rubin: Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from models.generator import MixtureGenerator
from models.refinement import judged_records
from models.study import Study
from models.table import one_hot

Progress = Callable[[float], None]

COMPONENTS = 500
STEPS = 8
"""Of expectation maximisation: few, since many fit the records that happened to be drawn."""
MOST = 2.0
"""A record's weight is within a factor of exp(MOST) of one."""
SCALINGS, MOST_PAIRS = 3, 300
"""How often every pair is scaled, and how many of them where there are more: those that are furthest off."""
_OWN = 0.7  # of a first component is one record, the rest is all of them
_RECORDS_AT_ONCE = 5_000


@torch.no_grad()
def refined_generator(
    study: Study,
    generator: MixtureGenerator,
    logits: Tensor,
    *,
    round_number: int,
    progress: Progress | None = None,
    seed: int = 0,
) -> MixtureGenerator:
    """The next generator.

    Args:
        study: its settings and schema.
        generator: whose records were judged.
        logits: (num_judged,) the sites' judgements as one.
        round_number: of the run; see `models.refinement.judged_records`.
        progress: called with the done part.
        seed: of the first components.
    """
    told = progress or (lambda _: None)
    codes = judged_records(generator, study.refine, round_number=round_number)
    weights = scaled(density_ratio(logits, study.refine.power), codes, generator.cardinalities)
    told(0.1)
    return fit_to_records(
        codes, weights, generator.cardinalities, seed=seed, progress=lambda done: told(0.1 + 0.9 * done)
    )


def density_ratio(logits: Tensor, power: float) -> Tensor:
    """How much likelier each record is among patients, to a power: (N,) float64, of mean about 1.

    Whatever constant a discriminator adds to all its judgements (it has met more fakes than patients) drops out.
    """
    off = power * logits.double()
    off = off - off.logsumexp(0) + math.log(len(off))
    return off.clamp(-MOST, MOST).exp()


def scaled(weights: Tensor, codes: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """The weights brought to the records' own pairs of columns, one pair after the other: (N,), summing to 1.

    Args:
        weights: (N,) above 0.
        codes: (N, K).
        cardinalities: levels of each column.
    """
    weights = weights / weights.sum()
    flat = torch.full_like(weights, 1 / len(weights))
    for a, b in _furthest(weights - flat, codes, cardinalities) * SCALINGS:
        cell, cells = codes[:, a] * cardinalities[b] + codes[:, b], cardinalities[a] * cardinalities[b]
        wanted, found = (cell.bincount(one, minlength=cells) for one in (flat, weights))
        weights = weights * (wanted / found.clamp_min(1e-300))[cell]
    return weights / weights.sum()


def _furthest(off: Tensor, codes: Tensor, cardinalities: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of columns, `MOST_PAIRS` of them at most."""
    columns = len(cardinalities)
    pairs = list(itertools.combinations(range(columns), 2)) or [(0, 0)]
    if len(pairs) <= MOST_PAIRS:
        return pairs
    moment = sum(X.T @ (X * w[:, None]) for X, w in _parts(codes, off, cardinalities))
    assert isinstance(moment, Tensor)
    column_of = torch.arange(columns).repeat_interleave(torch.tensor(cardinalities))
    far = torch.zeros(columns, columns).index_put_(
        (column_of[:, None], column_of[None]), moment.abs(), accumulate=True
    )
    return sorted(sorted(pairs, key=lambda pair: -float(far[pair]))[:MOST_PAIRS])


def fit_to_records(
    codes: Tensor,
    weights: Tensor,
    cardinalities: Sequence[int],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> MixtureGenerator:
    """A mixture fitted to weighed records by expectation maximisation.

    Args:
        codes: (N, K).
        weights: (N,) float64, summing to 1.
        cardinalities: levels of each column.
        seed: of which records the components start from.
        progress: called with the done part.
    """
    components = min(COMPONENTS, len(codes))
    source = torch.Generator().manual_seed(seed)
    first = codes[weights.multinomial(components, generator=source)]
    mean = sum(w @ X for X, w in _parts(codes, weights, cardinalities))
    assert isinstance(mean, Tensor)
    P = _OWN * one_hot(first, cardinalities) + (1 - _OWN) * mean  # (C, D)
    shares = torch.full((components,), 1 / components)
    one_record = 1 / len(codes)
    for step in range(STEPS):
        logs, offset = P.clamp_min(1e-12).log(), shares.clamp_min(1e-30).log()
        counts, totals = torch.zeros_like(P), torch.zeros_like(shares)
        for X, w in _parts(codes, weights, cardinalities):
            belongs = (X @ logs.T + offset).softmax(1) * w[:, None]
            counts += belongs.T @ X
            totals += belongs.sum(0)
        # Each component has seen one record more, which is all of them: no level that there is becomes impossible.
        P, shares = (counts + one_record * mean) / (totals[:, None] + one_record), totals
        if progress:
            progress((step + 1) / STEPS)
    return MixtureGenerator(P.clamp_min(1e-12).log(), shares.clamp_min(1e-30).log(), cardinalities)


def _parts(codes: Tensor, weights: Tensor, cardinalities: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """One-hot records (B, D) and their weights (B,), float32, a part after the other."""
    for part, w in zip(codes.split(_RECORDS_AT_ONCE), weights.split(_RECORDS_AT_ONCE), strict=True):
        yield one_hot(part, cardinalities), w.float()
