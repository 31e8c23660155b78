"""A table as codes: what the rest of the models see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 384


@dataclass(frozen=True)
class EncodedTable:
    """Records as codes, each patient's beside each other. # Sensitive at a site: do not log.

    Attributes:
        codes: (R, K), level of each column: int64, or uint8 or int16 where a site keeps a large table. Make a
            part of it int64 (`.long()`) before any arithmetic: narrow integers wrap around silently.
        patient_offsets: (P + 1,) int64; patient i has the records from offset i to offset i + 1.
        images: (R, C, H, W) uint8, the picture of each record, in a study with images.
    """

    codes: Tensor
    patient_offsets: Tensor
    images: Tensor | None = None

    def __post_init__(self) -> None:
        offsets = self.patient_offsets
        if self.codes.ndim != 2 or offsets.ndim != 1 or len(offsets) < 1:
            raise ValueError(
                f"codes must be (R, K) and patient_offsets (P + 1,); found {tuple(self.codes.shape)} "
                f"and {tuple(offsets.shape)}"
            )
        if offsets[0] != 0 or offsets[-1] != len(self.codes) or bool((offsets.diff() < 1).any()):
            raise ValueError(
                "patient_offsets must rise from 0 to the number of records, each patient with one"
            )
        images = self.images
        if images is not None and (
            images.ndim != 4 or len(images) != len(self.codes) or images.dtype != torch.uint8
        ):
            raise ValueError(
                f"images must be ({len(self.codes)}, C, H, W) uint8, one for each record; found "
                f"{tuple(images.shape)} {images.dtype}"
            )

    @property
    def num_records(self) -> int:
        """Rows."""
        return len(self.codes)

    @property
    def num_patients(self) -> int:
        """Privacy units."""
        return len(self.patient_offsets) - 1

    def select(self, patients: Tensor) -> EncodedTable:
        """The records of some patients, given by distinct or repeated positions (B,)."""
        counts = self.patient_offsets.diff()[patients]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts)
        rows = self.patient_offsets[patients].repeat_interleave(counts) + within
        images = None if self.images is None else self.images[rows]
        return EncodedTable(codes=self.codes[rows], patient_offsets=offsets, images=images)

    def one_record_each(self, patients: Tensor, uniforms: Tensor) -> Tensor:
        """One record of each patient: (B, K) int64 codes.

        Args:
            patients: (B,) positions.
            uniforms: (B,) in [0, 1): which of the patient's records.
        """
        starts, counts = self.patient_offsets[patients], self.patient_offsets.diff()[patients]
        picked = torch.minimum((uniforms * counts).long(), counts - 1)
        return self.codes[starts + picked].long()


def one_hot(codes: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Codes (B, K) as float32 one-hot records (B, D)."""
    offsets = column_offsets(cardinalities)[:-1]
    hot = torch.zeros(len(codes), sum(cardinalities))
    return hot.scatter_(1, codes + offsets, 1.0)


def column_offsets(cardinalities: Sequence[int]) -> Tensor:
    """Where each column starts in a one-hot record, and the width last: (K + 1,) int64."""
    return torch.tensor([0, *cardinalities], dtype=torch.int64).cumsum(0)


def column_blocks(cardinalities: Sequence[int]) -> list[tuple[int, int]]:
    """One-hot places in blocks of whole columns: where each starts and ends.

    Each has `_BLOCK` places or a few more, the last may be smaller: what is worked out of tables (D, D) block by block
    of rows stays in the processor's cache, and the part below the diagonal can be left out.
    """
    offsets = column_offsets(cardinalities).tolist()
    starts = [0]
    for offset in offsets[1:-1]:
        if offset - starts[-1] >= _BLOCK:
            starts.append(offset)
    return list(zip(starts, [*starts[1:], offsets[-1]], strict=True))
