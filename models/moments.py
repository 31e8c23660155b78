"""What is measured: every 1-way and 2-way marginal of the one-hot records, as one vector per site.

For columns a <= b let Y_ab be the table of counts of their levels: for a = b the counts of one column, else a
pair. With C_a = I - 11'/d_a the vector holds

    scale * Y_aa                    for each column (its levels),
    scale * C_a Y_ab C_b            for each pair (their interaction).

The main effects of a pair are the columns' own counts, so measuring them again in each pair would only buy
noise: a patient's interaction has an L2 norm of sqrt((1 - 1/d_a)(1 - 1/d_b)) instead of 1. `scale` then brings
one patient's whole vector to the L2 norm sqrt(K(K+1)/2) that the study declares, exactly and whatever the
patient's values, so that the noise of a given noise multiplier is smaller against the counts.

References:
    Xiao, He, Zhang, Kifer: An Optimal and Scalable Matrix Mechanism for Noisy Marginals under Convex Loss
    Functions (ResidualPlanner), NeurIPS 2023: residual queries, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.table import EncodedTable, column_offsets

_CHUNK_RECORDS = 65_536


@dataclass(frozen=True)
class MomentLayout:
    """Which entry of the measured vector is what.

    The vector is [counts of all columns (D)] followed, for each column a, by the interactions with all later
    columns as one panel of shape (d_a, width of the later columns), row by row.

    Attributes:
        cardinalities: levels of each column, K of them, D in all.
    """

    cardinalities: tuple[int, ...]

    def __init__(self, cardinalities: Sequence[int]) -> None:
        if not cardinalities or min(cardinalities) < 1:
            raise ValueError(f"cardinalities are {tuple(cardinalities)}; each column needs at least 1 level")
        object.__setattr__(self, "cardinalities", tuple(int(d) for d in cardinalities))

    @property
    def num_columns(self) -> int:
        """K."""
        return len(self.cardinalities)

    @property
    def width(self) -> int:
        """D, the one-hot width."""
        return sum(self.cardinalities)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each column starts in a one-hot record, and D last."""
        return tuple(column_offsets(self.cardinalities).tolist())

    @cached_property
    def size(self) -> int:
        """Entries of the vector."""
        panels = (d * (self.width - end) for d, end in zip(self.cardinalities, self.offsets[1:], strict=True))
        return self.width + sum(panels)

    @property
    def sensitivity(self) -> float:
        """L2 norm of one patient's vector, at most; exactly this for a patient with one record."""
        return math.sqrt(self.num_columns * (self.num_columns + 1) / 2)

    @cached_property
    def scale(self) -> float:
        """Factor between counts and the vector: `sensitivity` over a record's L2 norm before scaling."""
        interaction = [1 - 1 / d for d in self.cardinalities]
        pairs = (sum(interaction) ** 2 - sum(r * r for r in interaction)) / 2
        return self.sensitivity / math.sqrt(self.num_columns + pairs)

    def sum(self, table: EncodedTable) -> Tensor:
        """The vector summed over patients: float64 (size,).

        Privacy: exact sums of patients; to be noised before anything else (`privacy.mechanisms.release_sum`
        with `max_norm=sensitivity`). Unit: one patient; neighbours: one patient added or removed.

        Guarantees: adding a patient with any number of records changes it by an L2 norm of at most
        `sensitivity`; sums of disjoint tables add up.

        Args:
            table: any number of patients; a patient with k records counts 1/k in each.
        """
        if table.codes.shape[1] != self.num_columns:
            raise ValueError(f"the table has {table.codes.shape[1]} columns, the layout {self.num_columns}")
        counts = [torch.zeros(d * self.width, dtype=torch.float64) for d in self.cardinalities]
        sizes = table.patient_offsets.diff()
        weights = None
        if bool((sizes > 1).any()):
            weights = (1 / sizes.double()).repeat_interleave(sizes)
        places = column_offsets(self.cardinalities)[:-1]
        for start in range(0, table.num_records, _CHUNK_RECORDS):
            codes = table.codes[start : start + _CHUNK_RECORDS].long()
            placed = codes + places
            for a in range(self.num_columns):
                cells = (codes[:, a : a + 1] * self.width + placed[:, a:]).flatten()
                repeated = None
                if weights is not None:
                    chunk = weights[start : start + _CHUNK_RECORDS]
                    repeated = chunk.repeat_interleave(self.num_columns - a)
                counts[a] += torch.bincount(cells, repeated, minlength=len(counts[a]))
        return self._joined([count.view(d, -1) for count, d in zip(counts, self.cardinalities, strict=True)])

    def _joined(self, counts: list[Tensor]) -> Tensor:
        """Panels of raw counts (d_a, D), of which columns before a are not used, as one scaled vector."""
        diagonals = [
            count[:, start:end].diagonal()
            for count, start, end in zip(counts, self.offsets, self.offsets[1:], strict=False)
        ]
        panels = [
            self._centred(count[:, end:], a)
            for a, (count, end) in enumerate(zip(counts, self.offsets[1:], strict=True))
        ]
        return torch.cat([*diagonals, *(panel.flatten() for panel in panels)]) * self.scale

    def _centred(self, panel: Tensor, a: int) -> Tensor:
        """C_a Y_ab C_b for all b > a: (d_a, later width)."""
        panel = panel - panel.mean(0)
        widths = self.cardinalities[a + 1 :]
        if not widths:
            return panel
        return torch.cat([block - block.mean(1, keepdim=True) for block in panel.split(widths, 1)], 1)

    def counts(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The vector as estimates of counts.

        Args:
            vector: (size,) a sum over patients, usually noisy.

        Returns:
            one_way: (D,) counts of each column's levels.
            interactions: (D, D) symmetric; block (a, b) is C_a Y_ab C_b, centred again, blocks (a, a) zero.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}; this layout needs ({self.size},)")
        vector = vector.double() / self.scale
        one_way, rest = vector[: self.width], vector[self.width :]
        interactions = torch.zeros(self.width, self.width, dtype=torch.float64)
        for a, (d, start, end) in enumerate(
            zip(self.cardinalities, self.offsets, self.offsets[1:], strict=False)
        ):
            later = self.width - end
            panel, rest = rest[: d * later].view(d, later), rest[d * later :]
            # The part of the noise that no count can produce is taken out.
            interactions[start:end, end:] = self._centred(panel, a)
        return one_way, interactions + interactions.T

    @cached_property
    def column_of(self) -> Tensor:
        """The column that each one-hot place belongs to: (D,) int64."""
        return torch.arange(self.num_columns).repeat_interleave(torch.tensor(self.cardinalities))

    @cached_property
    def centre(self) -> Tensor:
        """1/d of each one-hot place's column: (D,) float64; a one-hot record less this is centred."""
        return (1 / torch.tensor(self.cardinalities, dtype=torch.float64))[self.column_of]
