"""How a generator fits the noisy moments; no patient is asked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.anchor import Anchor
from models.generator import MixtureGenerator
from models.moments import MomentLayout, pair_sum
from models.study import Study


def score(study: Study, generator: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> dict[str, float]:
    """How a round's generator fits the noisy moments; no patient is asked.

    Args:
        study: its schema.
        generator: the generator's arrays.
        anchor: holds `anchor`, as the warm start made it.

    Returns:
        `residual`: mean squared residual over the noise variance, about 1 for the truth and below 1 where noise
        was fitted; `misfit`: what of it noise does not explain, so 0 for every generator that the noisy moments
        cannot tell from the truth; `residual_one_way`: as `residual`, over single columns.
    """
    cardinalities = study.table.cardinalities
    held = Anchor.from_tensor(MomentLayout.of(study.table), anchor["anchor"])
    return scores_of(MixtureGenerator.from_arrays(generator, cardinalities), held)


@torch.no_grad()
def scores_of(generator: MixtureGenerator, anchor: Anchor) -> dict[str, float]:
    """See `score`."""
    layout = anchor.layout
    singles, pairs, triples = (float(part.sum()) for part in anchor.squares(anchor.residuals(generator)))
    # Degrees of freedom: centring leaves (d_a - 1)(d_b - 1) of a pair's cells to the noise.
    free = [d - 1.0 for d in layout.cardinalities]
    others = [d for k, d in enumerate(free) if k != layout.label]
    cells = layout.width + pair_sum(free) + layout.num_contrasts * pair_sum(others)
    variance = max(anchor.noise_std, 1e-9) ** 2
    residual = (singles + (pairs + triples) / 2) / (variance * cells)  # a pair stands twice
    # A chi-square mean over n cells has a standard deviation of sqrt(2/n): allow two of them.
    return {
        "misfit": max(0.0, residual - 1 - 2 * (2 / cells) ** 0.5),
        "residual": residual,
        "residual_one_way": singles / (variance * layout.width),
    }
