"""Which pairs of columns the next exchange looks at more closely: those that the generator found to hang together.

A pair without a dependence has nothing to be measured, and its noise is shrunk away by the fit; one with a strong
dependence keeps as much noise as it was measured with. What an exchange found is the sites' noisy release, so choosing
by it costs nothing.

References:
    McKenna, Mullins, Sheldon, Miklau: AIM: an adaptive and iterative mechanism for differentially private synthetic
    data, VLDB 2022 (measuring next what matters, by what was measured before).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.generator import MixtureGenerator
from models.moments import EMPHASIS_RANGE

_POWER = 1 / 3
"""Of a pair's dependence. The sum of errors c / w over pairs, at a fixed sum of w squared, is least for w ~ c^(1/3)."""


@torch.no_grad()
def emphasis_of(generator: MixtureGenerator) -> Tensor:
    """How much each pair is to weigh in the next exchange: (K, K) float64 for `MomentLayout.emphasised`.

    Privacy: post-processing.

    A pair's dependence is the total variation distance between its table and the product of its margins; its weight
    is the dependence over the pairs' mean, to the power of one third.
    """
    distance = (generator.moments() - torch.outer(generator.one_way(), generator.one_way())).abs() / 2
    blocks = [rows.split(generator.cardinalities, 1) for rows in distance.split(generator.cardinalities)]
    found = torch.stack([torch.stack([block.sum() for block in row]) for row in blocks]).double()
    columns = len(found)
    if columns > 1:
        mean = (found.sum() - found.diagonal().sum()) / (columns * (columns - 1))
        found = (found / mean.clamp_min(1e-12)) ** _POWER
    upper = found.clamp(*EMPHASIS_RANGE).triu(1)
    return (upper + upper.T).fill_diagonal_(1.0)  # to the last bit the same on both sides
