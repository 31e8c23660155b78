"""What the image generator is fitted to: the noisy means of one look's features, for each category."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.image_lens import ImageLens
from models.image_moments import ImageMomentLayout
from models.image_schema import ImageSchema
from models.schema import StudySchema

MAX_BLUR = 10.0
TYPICAL_BLUR = 0.5


class ImageFitError(ValueError):
    """Moments that no image generator can be fitted to."""


class ImageTargets:
    """Noisy means of the features, one block per conditioned column.

    Attributes:
        layout: of what was measured.
        means: (d_j, F) float32 each.
        weights: (d_j,) each, of a category in the loss; 0 where the noise hides whether it has patients.
    """

    def __init__(self, layout: ImageMomentLayout, means: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self.layout, self.means, self.weights = layout, tuple(means), tuple(weights)

    @classmethod
    def from_sum(
        cls,
        layout: ImageMomentLayout,
        noisy_moments: Tensor,
        class_totals: Sequence[Tensor],
        *,
        noise_std: float,
    ) -> ImageTargets:
        """Divide the sites' summed vectors by how many patients each category has.

        Args:
            layout: of the vectors.
            noisy_moments: (size,) float64, the sites' vectors added up.
            class_totals: for each conditioned column the noisy numbers of patients of its categories, (d_j,).
            noise_std: standard deviation of the noise in one entry of `noisy_moments`, all sites' noise together.

        Raises:
            ImageFitError: the moments are not finite or not of this layout, or tell of no patients.
        """
        if noisy_moments.shape != (layout.size,) or not bool(torch.isfinite(noisy_moments).all()):
            raise ImageFitError(
                f"the image moments must be {layout.size} finite values; found {tuple(noisy_moments.shape)}"
            )
        if [len(total) for total in class_totals] != list(layout.cardinalities):
            raise ImageFitError(
                f"class_totals have {[len(t) for t in class_totals]} categories; needed: {layout.cardinalities}"
            )
        means, weights = [], []
        for column, totals in enumerate(class_totals):
            known = totals.double()
            # Noise of a mean over its norm: a category whose features are all noise says nothing.
            blur = noise_std * math.sqrt(layout.features.size) / known.clamp_min(1e-9)
            usable = (known > 1) & (blur < MAX_BLUR)
            safe = torch.where(usable, known, 1.0)
            means.append((layout.block(noisy_moments.double(), column) / safe[:, None]).float())
            weights.append(torch.where(usable, 1 / (1 + (blur / TYPICAL_BLUR) ** 2), 0.0).float())
        if not any(bool((weight > 0).any()) for weight in weights):
            raise ImageFitError(
                "the image moments are within the noise of none; more patients or a larger epsilon are needed"
            )
        return cls(layout, means, weights)


def looks_as_arrays(looks: Sequence[ImageTargets]) -> dict[str, Tensor]:
    """What every exchange so far found, for safetensors; names start with `look`."""
    arrays = {}
    for number, look in enumerate(looks, start=1):
        arrays[f"look{number}.means"] = torch.cat(look.means)
        arrays[f"look{number}.weights"] = torch.cat(look.weights)
        if isinstance(look.layout.features, ImageLens):
            lens = look.layout.features.to_arrays()
            arrays |= {f"look{number}.{name}": array for name, array in lens.items()}
    return arrays


def looks_from_arrays(
    arrays: Mapping[str, Tensor], table: StudySchema, image: ImageSchema
) -> list[ImageTargets]:
    """Read what `looks_as_arrays` gave; other names are left alone.

    Raises:
        LensError: a lens is none of this study.
        ImageFitError: the means or weights are of another study.
    """
    looks: list[ImageTargets] = []
    while f"look{len(looks) + 1}.means" in arrays:
        prefix = f"look{len(looks) + 1}."
        found = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        lens = ImageLens.from_arrays(found, image) if looks else None
        layout = ImageMomentLayout.of(table, image, lens)
        means, weights = found["means"], found["weights"]
        if means.shape != (sum(layout.cardinalities), layout.features.size) or len(weights) != len(means):
            raise ImageFitError(f"{prefix}means have shape {tuple(means.shape)}, which is not of this study")
        looks.append(
            ImageTargets(layout, means.split(layout.cardinalities), weights.split(layout.cardinalities))
        )
    return looks
