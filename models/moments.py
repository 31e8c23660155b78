"""What is measured: every 1-way and 2-way marginal of the one-hot records, and each pair's with the label.

For columns a <= b let Y_ab be the table of counts of their levels: for a = b the counts of one column, else a
pair. With C_a = I - 11'/d_a the vector holds

    scale * Y_aa                            for each column (its levels),
    scale * C_a Y_ab C_b                    for each pair (their interaction),
    scale * v * C_a (sum_l h_kl Y_ab|l) C_b for each pair of other columns, with the label at level l,

where the rows h_k of a Helmert matrix span what contrasts the label's levels and v = LABEL_TRIPLE_WEIGHT. The
last part is left out without a label, or with one of more than MAX_LABEL_LEVELS levels.

A later exchange may weigh pairs unequally (`MomentLayout.emphasised`): what stands for a pair, with and without the
label, is then multiplied by the pair's emphasis.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.schema import StudySchema
from models.table import EncodedTable, column_blocks, column_offsets, one_hot

LABEL_TRIPLE_WEIGHT = 0.6
MAX_LABEL_LEVELS = 5
EMPHASIS_RANGE = (0.05, 20.0)
_CHUNK_CELLS = 2**19  # codes of a chunk: all that is worked on at once stays in the processor's cache
_CHUNK_PLACES = 2**22  # one-hot places of a chunk
_EXACT_COUNT = 2**24  # float32 counts one by one up to here
_WIDE, _MANY_LEVELS = 1_000, 15.0  # width from and mean levels to which multiplying is cheaper than counting


@dataclass(frozen=True)
class MomentCounts:
    """A vector read back as estimates of counts, or of frequencies when it was divided by the patients.

    Attributes:
        one_way: (D,) of each column's levels.
        interactions: (D, D) symmetric; block (a, b) is C_a Y_ab C_b, blocks (a, a) are zero.
        label_interactions: (L - 1, D, D) symmetric; the same, contrasted by the label's L levels; zero where
            the label itself is a or b. (0, D, D) where they are not measured.
    """

    one_way: Tensor
    interactions: Tensor
    label_interactions: Tensor


@dataclass(frozen=True)
class MomentLayout:
    """Which entry of the measured vector is what.

    The vector is [counts of all columns (D)], then for each column a the interactions with all later columns as
    one panel of shape (d_a, width of the later columns), row by row, then the same panels without the label
    for each contrast of the label.

    Attributes:
        cardinalities: levels of each column, K of them, D in all.
        label: index of the column whose triples are measured, or None.
        emphasis: factor of each pair's entries by its two columns, symmetric, the diagonal 1; None: all are 1.
    """

    cardinalities: tuple[int, ...]
    label: int | None = None
    emphasis: tuple[tuple[float, ...], ...] | None = None

    def __init__(
        self,
        cardinalities: Sequence[int],
        label: int | None = None,
        emphasis: tuple[tuple[float, ...], ...] | None = None,
    ) -> None:
        if not cardinalities or min(cardinalities) < 1:
            raise ValueError(f"cardinalities are {tuple(cardinalities)}; each column needs at least 1 level")
        if label is not None and not 0 <= label < len(cardinalities):
            raise ValueError(f"label is {label}; there are {len(cardinalities)} columns")
        if label is not None and not 2 <= cardinalities[label] <= MAX_LABEL_LEVELS:
            label = None
        object.__setattr__(self, "cardinalities", tuple(int(d) for d in cardinalities))
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "emphasis", emphasis)

    def emphasised(self, emphasis: Tensor) -> MomentLayout:
        """The same columns with pairs that weigh unequally: the more a pair weighs, the less noise it gets.

        Args:
            emphasis: (K, K) by columns, within `EMPHASIS_RANGE`, symmetric; the diagonal is 1.

        Raises:
            ValueError: another shape, or values that are none of that.
        """
        columns, (least, most) = self.num_columns, EMPHASIS_RANGE
        if emphasis.shape != (columns, columns):
            raise ValueError(
                f"the emphasis has shape {tuple(emphasis.shape)}; it must be ({columns}, {columns})"
            )
        values = emphasis.double()
        if not bool(((values >= least) & (values <= most)).all()):
            raise ValueError(f"an emphasis lies outside of {least} to {most}, or is not a number")
        if not torch.equal(values, values.T) or not bool((values.diagonal() == 1).all()):
            raise ValueError("the emphasis must be symmetric, and 1 on its diagonal")
        rows = tuple(tuple(row) for row in values.tolist())
        return MomentLayout(self.cardinalities, self.label, rows)

    @cached_property
    def pair_emphasis(self) -> Tensor:
        """(K, K) float64: factor of each pair of columns, 1 on the diagonal."""
        if self.emphasis is None:
            return torch.ones(self.num_columns, self.num_columns, dtype=torch.float64)
        return torch.tensor(self.emphasis, dtype=torch.float64)

    @classmethod
    def of(cls, schema: StudySchema) -> MomentLayout:
        """The layout of a study's table."""
        label = None if schema.label is None else schema.names.index(schema.label)
        return cls(schema.cardinalities, label)

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

    @property
    def num_contrasts(self) -> int:
        """Contrasts of the label that pairs are measured with: its levels less one, or 0."""
        return 0 if self.label is None else self.cardinalities[self.label] - 1

    @cached_property
    def contrasts(self) -> Tensor:
        """(num_contrasts, L) float64: orthonormal rows of sum zero (Helmert)."""
        if self.label is None:
            return torch.zeros(0, 1, dtype=torch.float64)
        levels = self.cardinalities[self.label]
        rows = torch.zeros(levels - 1, levels, dtype=torch.float64)
        for k in range(1, levels):
            rows[k - 1, :k], rows[k - 1, k] = 1.0, -float(k)
        return rows / rows.norm(dim=1, keepdim=True)

    @cached_property
    def size(self) -> int:
        """Entries of the vector."""
        others = [d for k, d in enumerate(self.cardinalities) if k != self.label]
        pairs, triples = round(pair_sum(self.cardinalities)), round(pair_sum(others))
        return self.width + pairs + self.num_contrasts * triples

    @property
    def sensitivity(self) -> float:
        """L2 norm of one patient's vector, at most; exactly this for a patient with one record."""
        return math.sqrt(self.num_columns * (self.num_columns + 1) / 2)

    @cached_property
    def scale(self) -> float:
        """Factor between counts and the vector: `sensitivity` over a record's L2 norm before scaling."""
        # Squared norms of centred one-hot parts: of a pair their product.
        parts = 1 - 1 / torch.tensor(self.cardinalities, dtype=torch.float64)
        pairs = (parts[:, None] * parts * self.pair_emphasis.square()).triu(1)
        squared = self.num_columns + float(pairs.sum())
        if self.label is not None:
            with_label = float(pairs[self.label].sum() + pairs[:, self.label].sum())
            triples = float(parts[self.label]) * (float(pairs.sum()) - with_label)
            squared += LABEL_TRIPLE_WEIGHT**2 * triples
        return self.sensitivity / math.sqrt(squared)

    def sum(self, table: EncodedTable, *, progress: Callable[[float], None] | None = None) -> Tensor:
        """The vector summed over patients: float64 (size,).

        Privacy: exact sums of patients; to be noised before anything else (`privacy.mechanisms.release_sum`
        with `max_norm=sensitivity`). Unit: one patient; neighbours: one patient added or removed.

        Guarantees: adding a patient with any number of records changes it by an L2 norm of at most
        `sensitivity`; sums of disjoint tables add up.

        Args:
            table: any number of patients; a patient with k records counts 1/k in each.
            progress: called with the done part, once per chunk of records.
        """
        if table.codes.shape[1] != self.num_columns:
            raise ValueError(f"the table has {table.codes.shape[1]} columns, the layout {self.num_columns}")
        told, records = progress or (lambda _: None), table.patient_offsets.diff()
        if bool((records > 1).any()):
            weights = (1 / records.double()).repeat_interleave(records)
            return self._joined(self._counted(table.codes, weights, told))
        if self.width >= _WIDE and self.width < _MANY_LEVELS * self.num_columns:
            return self._joined(self._multiplied(table.codes, told))
        return self._joined(self._counted(table.codes, None, told))

    def _multiplied(self, codes: Tensor, progress: Callable[[float], None]) -> Tensor:
        """Counts (levels of the label, D, D) of each column with itself and later ones, as products of one-hot records.

        They are whole numbers that float32 adds up without rounding, in any order, as long as they are small enough.
        """
        levels, width, blocks = self.num_contrasts + 1, self.width, column_blocks(self.cardinalities)
        total, part = (
            torch.zeros(levels, width, width, dtype=torch.float64),
            torch.zeros(levels, width, width),
        )
        rows_at_once, held = max(1, _CHUNK_PLACES // width), 0
        for start in range(0, len(codes), rows_at_once):
            progress(start / len(codes))
            chunk = codes[start : start + rows_at_once].long()  # large tables come as narrow integers
            if held + len(chunk) > _EXACT_COUNT:
                total, held = total + part, 0
                part.zero_()
            held += len(chunk)
            for level in range(levels):
                own = chunk if self.label is None else chunk[chunk[:, self.label] == level]
                hot = one_hot(own, self.cardinalities)
                for first, last in blocks:
                    part[level, first:last, first:].addmm_(hot[:, first:last].T, hot[:, first:])
        return total + part

    def _counted(self, codes: Tensor, weights: Tensor | None, progress: Callable[[float], None]) -> Tensor:
        """The same, pair by pair of columns, each record by its weight."""
        levels, width, num_records = self.num_contrasts + 1, self.width, len(codes)
        sizes = [levels * d * width for d in self.cardinalities]
        counts = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        places = column_offsets(self.cardinalities)[:-1]
        rows_at_once = max(1, _CHUNK_CELLS // self.num_columns)
        for start in range(0, num_records, rows_at_once):
            progress(start / num_records)
            chunk = codes[start : start + rows_at_once].long()
            placed = chunk + places
            for a, d in enumerate(self.cardinalities):
                rows = chunk[:, a] if self.label is None else chunk[:, self.label] * d + chunk[:, a]
                cells = (rows[:, None] * width + placed[:, a:]).flatten()
                repeated = None
                if weights is not None:
                    repeated = weights[start : start + rows_at_once].repeat_interleave(self.num_columns - a)
                counts[a] += torch.bincount(cells, repeated, minlength=sizes[a])
        return torch.cat(
            [count.view(levels, d, width) for count, d in zip(counts, self.cardinalities, strict=True)], 1
        )

    def _joined(self, counts: Tensor) -> Tensor:
        """Counts (levels of the label, D, D) of each column with itself and later ones as one vector."""
        total = counts.sum(0)
        parts = [total.diagonal().clone()]
        parts.append(self._emphasised(self._centred(total)).masked_select(self._later(with_label=True)))
        others = self._later(with_label=False)
        for contrast in self.contrasts * LABEL_TRIPLE_WEIGHT:
            table = self._centred(torch.tensordot(contrast, counts, 1))
            parts.append(self._emphasised(table).masked_select(others))
        return torch.cat(parts) * self.scale

    def _later(self, *, with_label: bool) -> Tensor:
        """(D, D): whether a place stands in the vector beside another; read row by row in the vector's order."""
        later = self.column_of[:, None] < self.column_of
        if with_label or self.label is None:
            return later
        other = self.column_of != self.label
        return later & other & other[:, None]

    def _emphasised(self, table: Tensor, *, power: int = 1) -> Tensor:
        """A table (D, D) with each pair multiplied by its emphasis to this power."""
        if self.emphasis is None:
            return table
        return table * self.pair_emphasis[self.column_of][:, self.column_of] ** power

    def _centred(self, table: Tensor) -> Tensor:
        """C_a Y_ab C_b in each block of two columns a < b of a table (D, D), in place."""
        for start, end in zip(self.offsets, self.offsets[1:], strict=False):
            rows, columns = table[start:end, end:], table[:start, start:end]
            rows -= rows.mean(0)
            columns -= columns.mean(1, keepdim=True)
        return table

    def read(self, vector: Tensor) -> MomentCounts:
        """The vector as estimates of counts; the part of the noise that no count can produce is taken out.

        Args:
            vector: (size,) a sum over patients, usually noisy.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}; this layout needs ({self.size},)")
        vector = vector.double() / self.scale
        one_way, rest = vector[: self.width], vector[self.width :]
        later, others = self._later(with_label=True), self._later(with_label=False)
        pairs, rest = rest.tensor_split([int(later.sum())])
        found = torch.zeros(self.num_contrasts, self.width, self.width, dtype=torch.float64)
        for table, panel in zip(found, rest.view(self.num_contrasts, int(others.sum())), strict=True):
            table.copy_(self._read_table(panel / LABEL_TRIPLE_WEIGHT, others))
        return MomentCounts(one_way, self._read_table(pairs, later), found)

    def _read_table(self, panel: Tensor, places: Tensor) -> Tensor:
        """Interactions (D, D), symmetric, from those of them that stand in the vector."""
        table = torch.zeros(self.width, self.width, dtype=torch.float64)
        table.masked_scatter_(places, panel)
        found = self._centred(self._emphasised(table, power=-1))
        return found + found.T

    def write(self, counts: MomentCounts) -> Tensor:
        """The vector (size,) that `read` gives these counts for."""
        later, others = self._later(with_label=True), self._later(with_label=False)
        parts = [counts.one_way, self._emphasised(counts.interactions).masked_select(later)]
        parts += [
            LABEL_TRIPLE_WEIGHT * self._emphasised(one).masked_select(others)
            for one in counts.label_interactions
        ]
        return torch.cat(parts) * self.scale

    @cached_property
    def column_of(self) -> Tensor:
        """The column that each one-hot place belongs to: (D,) int64."""
        return torch.arange(self.num_columns).repeat_interleave(torch.tensor(self.cardinalities))

    @cached_property
    def centre(self) -> Tensor:
        """1/d of each one-hot place's column: (D,) float64; a one-hot record less this is centred."""
        return (1 / torch.tensor(self.cardinalities, dtype=torch.float64))[self.column_of]

    @cached_property
    def between(self) -> Tensor:
        """(D, D) float32: 1 where two places belong to different columns, else 0."""
        return (self.column_of[:, None] != self.column_of).float()

    @cached_property
    def between_others(self) -> Tensor:
        """(D, D) float32: as `between`, 0 also where one of the places is the label's."""
        other = (self.column_of != (-1 if self.label is None else self.label)).float()
        return self.between * other[:, None] * other


def pair_sum(parts: Sequence[float]) -> float:
    """Sum of the products of all pairs."""
    return (sum(parts) ** 2 - sum(part * part for part in parts)) / 2
