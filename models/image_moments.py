"""What is measured of a study's images: for each category of each conditioned column the sum of their features.

The features are those of the first look (`models.image_features`), or of a later one (`models.image_lens`).

For column j with d_j categories the vector holds a block (d_j, F): row c is the sum over patients of the mean over
the patient's images of features(x) [code_j(x) = c]. A patient's images share one unit of weight, whatever their
number and categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.image_features import ImageFeatures, fastest_device
from models.image_lens import ImageLens
from models.image_schema import ImageSchema
from models.schema import StudySchema

Progress = Callable[[float], None]

BATCH_IMAGES = 256


class ImageMomentLayout:
    """Which entry of the measured vector is what.

    Attributes:
        image: the images' schema.
        cardinalities: categories of each conditioned column.
        features: what is measured of one image.
    """

    def __init__(
        self, image: ImageSchema, cardinalities: tuple[int, ...], lens: ImageLens | None = None
    ) -> None:
        self.image = image
        self.cardinalities = cardinalities
        self.features: ImageFeatures | ImageLens = ImageFeatures.of(image) if lens is None else lens

    @classmethod
    def of(cls, table: StudySchema, image: ImageSchema, lens: ImageLens | None = None) -> ImageMomentLayout:
        """The layout of a study: of its first exchange, or of one that looks through a lens.

        Raises:
            ValueError: a conditioned column is not in the table.
        """
        return cls(image, image.cardinalities_in(table), lens)

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return sum(self.cardinalities) * self.features.size

    @property
    def sensitivity(self) -> float:
        """Bound on the L2 norm of what one patient adds: one image's bound in each column's block."""
        return math.sqrt(len(self.cardinalities)) * self.features.max_norm

    @torch.no_grad()
    def sum(
        self,
        images: Tensor,
        codes: Tensor,
        patient_offsets: Tensor,
        *,
        progress: Progress | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """The vector summed over patients: float64 (size,).

        Privacy: exact sums of patients; to be noised before anything else (`privacy.mechanisms.release_sum`
        with `max_norm=sensitivity`). Unit: one patient; neighbours: one patient added or removed.

        Guarantees: adding a patient with any number of images changes it by an L2 norm of at most `sensitivity`;
        sums over disjoint patients add up.

        Args:
            images: (N, C, H, W) uint8, each patient's beside each other. Sensitive: do not log.
            codes: (N, columns) int64, categories of the conditioned columns. Sensitive: do not log.
            patient_offsets: (P + 1,) int64; patient i has the images from offset i to offset i + 1.
            progress: called with the done part, from 0 to 1.
            device: where to compute; `fastest_device` if None.

        Raises:
            ValueError: shapes or types that are not of this study, or a code beyond its column.
        """
        self._check(images, codes, patient_offsets)
        device = device or fastest_device()
        features = self.features.to(device)
        counts = patient_offsets.diff()
        weights = (1 / counts.double()).repeat_interleave(counts)
        blocks = [
            torch.zeros(d, self.features.size, dtype=torch.float64, device=device) for d in self.cardinalities
        ]
        for start in range(0, len(images), BATCH_IMAGES):
            part = slice(start, start + BATCH_IMAGES)
            # In full precision on every device: all sites measure the same function.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found = features(images[part].to(device).float() / 255)
            rows = bounded_rows(found, features.max_norm)
            rows *= weights[part, None].to(device)
            for block, column in zip(blocks, codes[part].to(device).T, strict=True):
                block.index_add_(0, column, rows)
            if progress:
                progress(min(1.0, (start + BATCH_IMAGES) / len(images)))
        return torch.cat([block.flatten() for block in blocks]).cpu()

    def block(self, flat: Tensor, column: int) -> Tensor:
        """The block of a conditioned column, by its place in `conditioned_on`: (categories, F)."""
        if flat.shape != (self.size,):
            raise ValueError(f"the vector has shape {tuple(flat.shape)}; this layout needs ({self.size},)")
        start = sum(self.cardinalities[:column]) * self.features.size
        length = self.cardinalities[column] * self.features.size
        return flat[start : start + length].view(self.cardinalities[column], self.features.size)

    def _check(self, images: Tensor, codes: Tensor, patient_offsets: Tensor) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != torch.Size(self.image.shape):
            raise ValueError(
                f"images must be uint8 of shape (N, {', '.join(map(str, self.image.shape))}); "
                f"found {images.dtype} {tuple(images.shape)}"
            )
        if codes.shape != (len(images), len(self.cardinalities)):
            raise ValueError(
                f"codes must be ({len(images)}, {len(self.cardinalities)}), one row per image; "
                f"found {tuple(codes.shape)}"
            )
        if len(codes) and not bool(((codes >= 0) & (codes < torch.tensor(self.cardinalities))).all()):
            raise ValueError(f"a code lies outside its column; the columns have {self.cardinalities} levels")
        rising = patient_offsets.ndim == 1 and len(patient_offsets) >= 1 and patient_offsets[0] == 0
        if not rising or patient_offsets[-1] != len(images) or bool((patient_offsets.diff() < 1).any()):
            raise ValueError(
                "patient_offsets must rise from 0 to the number of images, each patient with one"
            )


def bounded_rows(features: Tensor, max_norm: float) -> Tensor:
    """Rows (B, F) as float64 with an L2 norm of at most `max_norm`, whatever they held; NaN and Inf count as 0."""
    rows = features.double().nan_to_num_(0.0, 0.0, 0.0)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.mul_((max_norm / norms.clamp_min(1e-300)).clamp_(max=1.0))
