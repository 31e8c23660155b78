"""What a study measures of a patient, in one vector: the table's moments and, where there are pictures, theirs.

Both parts go through one Gaussian mechanism. The table's part is as `models.moments` has it; the pictures' part is
scaled so that one patient's whole vector has the L2 norm that the study declares (`Study.sensitivity`) at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.image_lens import PREFIX as LENS
from models.image_lens import ImageLens
from models.image_moments import ImageMomentLayout
from models.moments import MomentLayout
from models.study import Study
from models.table import EncodedTable

Progress = Callable[[float], None]

EMPHASIS = "emphasis"
"""The array that a later exchange starts from: how much each pair of columns weighs. Beside it, where there are
pictures, stand the arrays of a lens."""


def base_of(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the kept arrays the next exchange starts from; nothing where none follows."""
    return {name: array for name, array in arrays.items() if name == EMPHASIS or name.startswith(LENS)}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Which part of the measured vector is what.

    Attributes:
        sensitivity: L2 norm of what one patient adds, at most.
        table: the layout of the first part.
        image: the layout of the rest, None without pictures.
        image_places: which columns the pictures depend on.
        image_scale: factor between the pictures' moments and the vector.
    """

    sensitivity: float
    table: MomentLayout
    image: ImageMomentLayout | None = None
    image_places: tuple[int, ...] = ()
    image_scale: float = 1.0

    @classmethod
    def of(cls, study: Study, base: Mapping[str, Tensor] | None = None) -> Measurement:
        """The measurement that a study declares.

        Args:
            study: its schema and settings.
            base: what a round starts from: nothing in the first exchange, `EMPHASIS` and, where there are
                pictures, a lens in a later one.

        Raises:
            ValueError: the base holds something else, or an emphasis or a lens that cannot be used.
        """
        table, lens = MomentLayout.of(study.table.measured), None
        if base:
            lens = None if study.image is None else ImageLens.from_arrays(base, study.image)
            expected = {EMPHASIS, *(() if lens is None else lens.to_arrays())}
            if set(base) != expected:
                raise ValueError(
                    f"a measurement starts from {sorted(expected)} or nothing; found {sorted(base)}"
                )
            table = table.emphasised(base[EMPHASIS])
        if study.image is None:
            return cls(sensitivity=study.sensitivity, table=table)
        image = ImageMomentLayout.of(study.table, study.image, lens)
        rest = math.sqrt(study.sensitivity**2 - table.sensitivity**2)
        return cls(
            sensitivity=study.sensitivity,
            table=table,
            image=image,
            image_places=study.image.columns_in(study.table),
            image_scale=rest / image.sensitivity,
        )

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return self.table.size + (0 if self.image is None else self.image.size)

    def sum(self, table: EncodedTable, *, progress: Progress | None = None) -> Tensor:
        """The vector summed over patients: float64 (size,).

        Privacy: exact sums of patients; to be noised before anything else (`privacy.mechanisms.release_sum`
        with `max_norm=sensitivity`). Unit: one patient; neighbours: one patient added or removed.

        Args:
            table: records, with pictures where the study has them.
            progress: called with the done part, of the table first and then of the pictures.

        Raises:
            ValueError: the records have no pictures and the study does, or another shape.
        """
        moments = self.table.sum(table, progress=progress)
        if self.image is None:
            return moments
        if table.images is None:
            raise ValueError("the records have no images; the study measures them")
        codes = table.codes[:, list(self.image_places)].long()
        pictures = self.image.sum(table.images, codes, table.patient_offsets, progress=progress)
        return torch.cat([moments, pictures * self.image_scale])

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        """The table's moments, and the pictures' in the units of their layout.

        Args:
            vector: (size,), usually noisy.

        Raises:
            ValueError: another size.
        """
        if vector.shape != (self.size,):
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}; this study measures ({self.size},)"
            )
        table, rest = vector[: self.table.size], vector[self.table.size :]
        return table, None if self.image is None else rest / self.image_scale
