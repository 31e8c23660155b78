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

THINNING = 0.5
"""How much more noise the part to fit to has: a factor of sqrt(1 + THINNING^2), 1.12."""


class AnchorError(ValueError):
    """Moments that no generator can be fitted to."""


@dataclass(frozen=True)
class Anchor:
    """Noisy frequencies.

    Attributes:
        layout: which columns; no pair is emphasised in it.
        frequencies: the layout's counts over the patients, noisy; columns sum to 1 up to noise.
        noise_std: standard deviation of the noise of one frequency where `precision` is 1; of a label's interaction
            it is this over `LABEL_TRIPLE_WEIGHT`.
        precision: (K, K) float64 by columns, symmetric: `noise_std` over the standard deviation of a pair's (on the
            diagonal, a column's) noise, squared. Its mean over pairs is 1.
    """

    layout: MomentLayout
    frequencies: MomentCounts
    noise_std: float
    precision: Tensor

    @classmethod
    def from_sum(cls, layout: MomentLayout, noisy_sum: Tensor, *, noise_std: float) -> Anchor:
        """Normalise the sites' summed vectors by the best estimate of how many patients there are.

        Args:
            layout: of the vectors, whose emphasis becomes the precision of the pairs.
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
        return cls.weighted(
            MomentLayout(layout.cardinalities, layout.label),
            layout.read(noisy_sum / num_patients),
            count_std / num_patients,
            layout.pair_emphasis.square(),
        )

    @classmethod
    def weighted(
        cls, layout: MomentLayout, frequencies: MomentCounts, noise_std: float, precision: Tensor
    ) -> Anchor:
        """An anchor whose precision is brought to a mean of 1 over the pairs.

        Args:
            layout, frequencies: as the anchor has them.
            noise_std: standard deviation of the noise where `precision` is 1.
            precision: (K, K) above 0, symmetric, of any mean.
        """
        columns = layout.num_columns
        off_diagonal = float(precision.sum() - precision.diagonal().sum())
        mean = off_diagonal / (columns * (columns - 1)) if columns > 1 else float(precision)
        return cls(layout, frequencies, noise_std / mean**0.5, precision / mean)

    def joined(self, other: Anchor) -> Anchor:
        """What two exchanges tell together: each frequency's mean, weighted by one over the noise's variance.

        Raises:
            AnchorError: the other is of other columns.
        """
        if other.layout != self.layout:
            raise AnchorError("the two exchanges measured different columns")
        own, more = (one.precision / max(one.noise_std, 1e-12) ** 2 for one in (self, other))
        share = own / (own + more)  # (K, K)
        column_of = self.layout.column_of
        singles, pairs = share.diagonal()[column_of], share[column_of][:, column_of]
        first, second = self.frequencies, other.frequencies
        return Anchor.weighted(
            self.layout,
            MomentCounts(
                singles * first.one_way + (1 - singles) * second.one_way,
                pairs * first.interactions + (1 - pairs) * second.interactions,
                pairs * first.label_interactions + (1 - pairs) * second.label_interactions,
            ),
            1.0,
            own + more,
        )

    def thinned(self, *, seed: int) -> tuple[Anchor, Anchor]:
        """Two anchors with independent noise, one to fit to and one to judge that fit by.

        Noise z like the anchor's own is drawn once more; a = `THINNING` of it is added for the first and z / a taken
        off for the second. What is fitted to the first then meets the second as it would meet the truth, plus a
        constant that is the same for all fits. Nothing but the released moments is looked at.

        Args:
            seed: of z; post-processing.

        References:
            Oliveira, Lei, Tibshirani: Unbiased risk estimation in the normal means problem via coupled bootstrap
            techniques, 2021.
        """
        source = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.layout.size, generator=source, dtype=torch.float64)
        unit, spread = self.layout.read(drawn * self.layout.scale), self.noise_std / self.precision.sqrt()
        column_of = self.layout.column_of
        singles, pairs = spread.diagonal()[column_of], spread[column_of][:, column_of]
        own = self.frequencies

        def moved(factor: float) -> Anchor:
            frequencies = MomentCounts(
                own.one_way + factor * singles * unit.one_way,
                own.interactions + factor * pairs * unit.interactions,
                own.label_interactions + factor * pairs * unit.label_interactions,
            )
            noise_std = self.noise_std * (1 + factor**2) ** 0.5
            return Anchor(self.layout, frequencies, noise_std, self.precision)

        return moved(THINNING), moved(-1 / THINNING)

    def to_tensor(self) -> Tensor:
        """(size + 1 + K^2,) float64: for the wire; `from_tensor` reads it."""
        noise = torch.tensor([self.noise_std], dtype=torch.float64)
        return torch.cat([self.layout.write(self.frequencies), noise, self.precision.flatten()])

    @classmethod
    def from_tensor(cls, layout: MomentLayout, values: Tensor) -> Anchor:
        """Read what `to_tensor` gave.

        Raises:
            AnchorError: another size, or a value that is not finite.
        """
        columns = layout.num_columns
        size = layout.size + 1 + columns**2
        if values.shape != (size,) or not bool(torch.isfinite(values).all()):
            raise AnchorError(f"the anchor must hold {size} finite values; found {tuple(values.shape)}")
        values = values.double()
        precision = values[layout.size + 1 :].view(columns, columns)
        if not bool((precision > 0).all()):
            raise AnchorError("the anchor's precision must be above 0")
        return cls(layout, layout.read(values[: layout.size]), float(values[layout.size]), precision)

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
            (weighted * (P[:, self.label_places] @ contrast)[:, None]).T @ centred * layout.between_others
            - measured
            for contrast, measured in zip(layout.contrasts.float(), label_interactions, strict=True)
        ]
        return MomentCounts(
            w @ P - one_way,
            weighted.T @ centred * layout.between - interactions,
            torch.stack(found) if found else label_interactions,
        )

    @property
    def label_places(self) -> slice:
        """The one-hot places of the label whose triples are measured; none without one."""
        label = self.layout.label
        return slice(0, 0) if label is None else slice(*self.layout.offsets[label : label + 2])

    def loss(self, generator: MixtureGenerator, *, label_weight: float = 1.0) -> Tensor:
        """Sum of squared residuals of all that was measured: the noise's Gaussian likelihood, scaled.

        Columns and pairs with the label weigh `label_weight`.
        """
        squares = self.squares(self.residuals(generator))
        total = _energy(squares)
        if label_weight != 1:
            singles, pairs, _ = squares
            own = self.label_places
            total = total + (label_weight - 1) * (singles[own].sum() + pairs[own].sum())
        return total

    def energy(self, off: MomentCounts) -> Tensor:
        """What `loss` is of a generator with these residuals."""
        return _energy(self.squares(off))

    def squares(self, off: MomentCounts) -> tuple[Tensor, Tensor, Tensor]:
        """Squared residuals in units in which every one's noise has the variance `noise_std` squared.

        Returns:
            (D,) of columns, (D, D) of pairs and (L - 1, D, D) of pairs by the label.
        """
        singles, pairs, triples = self.weights
        return (
            off.one_way.square() * singles,
            off.interactions.square() * pairs,
            off.label_interactions.square() * triples,
        )

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a squared residual weighs, float32: (D,) of columns, (D, D) of pairs, (D, D) of pairs by the label."""
        column_of, precision = self.layout.column_of, self.precision.float()
        pairs = precision[column_of][:, column_of]
        return precision.diagonal()[column_of], pairs, pairs * LABEL_TRIPLE_WEIGHT**2


def _energy(squares: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    singles, pairs, triples = squares
    return singles.sum() + (pairs.sum() + triples.sum()) / 2  # a pair stands twice in a symmetric table


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
