"""The anchor: the summed noisy moments as frequencies with their noise, what every fit and every score looks at.

It is post-processing of the sites' releases, so it may travel and be looked at as often as is useful.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.generator import MixtureGenerator
from models.moments import MomentLayout


class AnchorError(ValueError):
    """Moments that no generator can be fitted to."""


@dataclass(frozen=True)
class Anchor:
    """Noisy frequencies.

    Attributes:
        layout: which columns.
        one_way: (D,) frequencies of the columns' levels, noisy, of sum 1 per column up to noise.
        interactions: (D, D) symmetric, centred pair frequencies, noisy; zero within a column.
        noise_std: standard deviation of the noise of one frequency.
    """

    layout: MomentLayout
    one_way: Tensor
    interactions: Tensor
    noise_std: float

    @classmethod
    def from_sum(cls, layout: MomentLayout, noisy_sum: Tensor, *, noise_std: float) -> Anchor:
        """Normalise the sites' summed vectors by the best estimate of how many patients there are.

        Args:
            layout: of the vectors.
            noisy_sum: (size,) float64.
            noise_std: of one entry of `noisy_sum`, all sites' noise together, 0 or more.

        Raises:
            AnchorError: a value is not finite, or the noise hides whether there are patients at all.
        """
        if not bool(torch.isfinite(noisy_sum).all()):
            raise AnchorError("the summed moments hold a value that is not finite")
        one_way, interactions = layout.counts(noisy_sum)
        # Each column's levels sum to the patients; the estimate's variance is smallest weighted by 1/levels.
        totals = torch.stack([part.sum() for part in one_way.split(layout.cardinalities)])
        precision = 1 / torch.tensor(layout.cardinalities, dtype=torch.float64)
        num_patients = float((totals * precision).sum() / precision.sum())
        cell_std = noise_std / layout.scale
        if num_patients <= max(1.0, 3 * cell_std / float(precision.sum()) ** 0.5):
            raise AnchorError(
                f"the moments tell of {num_patients:.0f} patients, within the noise of none "
                f"(standard deviation of a count: {cell_std:.0f}); more patients or a larger epsilon are needed"
            )
        return cls(layout, one_way / num_patients, interactions / num_patients, cell_std / num_patients)

    def to_tensor(self) -> Tensor:
        """(size + 1,) float64: for the wire; `from_tensor` reads it."""
        panels = [
            self.interactions[start:end, end:].flatten()
            for start, end in zip(self.layout.offsets, self.layout.offsets[1:], strict=False)
        ]
        noise = torch.tensor([self.noise_std], dtype=torch.float64)
        return torch.cat([self.one_way, *panels, noise])

    @classmethod
    def from_tensor(cls, layout: MomentLayout, values: Tensor) -> Anchor:
        """Read what `to_tensor` gave.

        Raises:
            AnchorError: another size, or a value that is not finite.
        """
        if values.shape != (layout.size + 1,) or not bool(torch.isfinite(values).all()):
            raise AnchorError(
                f"the anchor must hold {layout.size + 1} finite values; found {tuple(values.shape)}"
            )
        values = values.double()
        one_way, interactions = layout.counts(values[:-1] * layout.scale)
        return cls(layout, one_way, interactions, float(values[-1]))

    def residuals(self, generator: MixtureGenerator) -> tuple[Tensor, Tensor]:
        """Generator minus anchor: one-way (D,) and interactions (D, D), zero within a column; float32."""
        P, w = generator.probabilities(), generator.weights()
        centred = P - self.layout.centre.float()
        M = (centred * w[:, None]).T @ centred
        column = self.layout.column_of
        other = column[:, None] != column
        return w @ P - self.one_way.float(), (M - self.interactions.float()) * other

    def loss(
        self, generator: MixtureGenerator, *, label: int | None = None, label_weight: float = 1.0
    ) -> Tensor:
        """Sum of squared residuals of all columns and of all pairs: the noise's Gaussian likelihood, scaled.

        Columns and pairs with the label weigh `label_weight`.
        """
        one_way, interactions = self.residuals(generator)
        total = one_way.square().sum() + interactions.square().sum() / 2  # each pair stands twice
        if label is not None and label_weight != 1:
            own = slice(self.layout.offsets[label], self.layout.offsets[label + 1])
            extra = one_way[own].square().sum() + interactions[own].square().sum()
            total = total + (label_weight - 1) * extra
        return total
