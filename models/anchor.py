"""The anchor: the summed noisy moments as frequencies with their noise, what every fit and every score looks at.

It is post-processing of the sites' releases, so it may travel and be looked at as often as is useful.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.generator import MixtureGenerator
from models.moments import LABEL_TRIPLE_WEIGHT, MomentCounts, MomentLayout


class AnchorError(ValueError):
    """Moments that no generator can be fitted to."""


@dataclass(frozen=True)
class Anchor:
    """Noisy frequencies.

    Attributes:
        layout: which columns.
        frequencies: the layout's counts over the patients, noisy; columns sum to 1 up to noise.
        noise_std: standard deviation of the noise of one frequency; of a label's interaction it is this over
            `LABEL_TRIPLE_WEIGHT`.
    """

    layout: MomentLayout
    frequencies: MomentCounts
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
        num_patients = estimated_patients(layout, noisy_sum)
        count_std = noise_std / layout.scale
        if num_patients <= max(1.0, 3 * count_std / _precision(layout).sum().item() ** 0.5):
            raise AnchorError(
                f"the moments tell of {num_patients:.0f} patients, within the noise of none "
                f"(standard deviation of a count: {count_std:.0f}); more patients or a larger epsilon are needed"
            )
        return cls(layout, layout.read(noisy_sum / num_patients), count_std / num_patients)

    def to_tensor(self) -> Tensor:
        """(size + 1,) float64: for the wire; `from_tensor` reads it."""
        noise = torch.tensor([self.noise_std], dtype=torch.float64)
        return torch.cat([self.layout.write(self.frequencies), noise])

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
        return cls(layout, layout.read(values[:-1]), float(values[-1]))

    @cached_property
    def _targets(self) -> tuple[Tensor, Tensor, Tensor]:
        found = self.frequencies
        return found.one_way.float(), found.interactions.float(), found.label_interactions.float()

    def residuals(self, generator: MixtureGenerator) -> MomentCounts:
        """Generator less anchor, as frequencies in float32."""
        layout = self.layout
        one_way, interactions, label_interactions = self._targets
        P, w = generator.probabilities(), generator.weights()
        centred = P - layout.centre.float()
        weighted = centred * w[:, None]
        found = [
            (weighted * (P[:, self._label] @ contrast)[:, None]).T @ centred * layout.between_others
            - measured
            for contrast, measured in zip(layout.contrasts.float(), label_interactions, strict=True)
        ]
        return MomentCounts(
            w @ P - one_way,
            weighted.T @ centred * layout.between - interactions,
            torch.stack(found) if found else label_interactions,
        )

    @property
    def _label(self) -> slice:
        label = self.layout.label
        return slice(0, 0) if label is None else slice(*self.layout.offsets[label : label + 2])

    def loss(self, generator: MixtureGenerator, *, label_weight: float = 1.0) -> Tensor:
        """Sum of squared residuals of all that was measured: the noise's Gaussian likelihood, scaled.

        Columns and pairs with the label weigh `label_weight`.
        """
        off = self.residuals(generator)
        # Each pair stands twice in a symmetric table.
        total = off.one_way.square().sum() + off.interactions.square().sum() / 2
        total = total + LABEL_TRIPLE_WEIGHT**2 * off.label_interactions.square().sum() / 2
        if label_weight != 1:
            own = self._label
            extra = off.one_way[own].square().sum() + off.interactions[own].square().sum()
            total = total + (label_weight - 1) * extra
        return total


def estimated_patients(layout: MomentLayout, noisy_sum: Tensor) -> float:
    """How many patients a summed vector (size,) tells of.

    Each column's levels sum to the patients; the estimate's variance is smallest weighted by 1/levels.
    """
    one_way = noisy_sum[: layout.width].double() / layout.scale
    totals = torch.stack([part.sum() for part in one_way.split(layout.cardinalities)])
    precision = _precision(layout)
    return float((totals * precision).sum() / precision.sum())


def _precision(layout: MomentLayout) -> Tensor:
    return 1 / torch.tensor(layout.cardinalities, dtype=torch.float64)
