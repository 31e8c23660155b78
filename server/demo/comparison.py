"""Real against synthetic patients, level by level. For the demo only: it reads raw patients, which no release does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from models.encoding import encode_table
from models.schema import CategoricalColumn, Column, DateColumn, StudySchema
from server.level_names import day_of, level_names


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """One column's distribution over its levels, real and synthetic.

    Attributes:
        column: of the study's schema.
        levels: names of the levels; for a grid the bins' left edges.
        real, synthetic: shares, each summing to 1.
    """

    column: Column
    levels: tuple[str, ...]
    real: tuple[float, ...]
    synthetic: tuple[float, ...]

    @property
    def distance(self) -> float:
        """Total variation distance, in [0, 1]."""
        return 0.5 * float(np.abs(np.subtract(self.real, self.synthetic)).sum())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the report shows of two tables.

    Attributes:
        correlated: names of the rows of the two matrices.
        real_correlation, synthetic_correlation: rank correlations, each (C, C).
        two_way: mean total variation distance over all pairs of columns, to the real table.
        two_way_independent: the same for a table of as many rows whose columns are independent.
        two_way_resampled: the same for as many real rows drawn again with replacement, what chance alone does.
    """

    num_real: int
    num_synthetic: int
    marginals: tuple[Marginal, ...]
    correlated: tuple[str, ...]
    real_correlation: np.ndarray
    synthetic_correlation: np.ndarray
    two_way: float
    two_way_independent: float
    two_way_resampled: float


def compare(real: pd.DataFrame, synthetic: pd.DataFrame, schema: StudySchema) -> Comparison:
    """Compare two tables of one schema.

    Args:
        real: patients, raw. Sensitive: the result is a statement about them without any noise.
        synthetic: a cohort, any number of rows above 0.
        schema: the study's; both tables have its columns.

    Raises:
        ValueError: a table is empty or does not fit the schema.
    """
    codes, drawn = _codes(real, schema), _codes(synthetic, schema)
    chance = np.random.default_rng(0)  # of the two baselines only
    rows = len(drawn)
    shuffled = np.stack([chance.choice(column, rows) for column in codes.T], axis=1)
    resampled = codes[chance.integers(0, len(codes), rows)]
    sizes = schema.cardinalities
    marginals = tuple(
        Marginal(
            column=column,
            levels=_level_names(column),
            real=tuple(_shares(codes[:, index], sizes[index])),
            synthetic=tuple(_shares(drawn[:, index], sizes[index])),
        )
        for index, column in enumerate(schema.columns)
    )
    names, real_ranks = _ordered(codes, schema)
    return Comparison(
        num_real=len(codes),
        num_synthetic=rows,
        marginals=marginals,
        correlated=names,
        real_correlation=_rank_correlation(real_ranks),
        synthetic_correlation=_rank_correlation(_ordered(drawn, schema)[1]),
        two_way=_two_way(codes, drawn, sizes),
        two_way_independent=_two_way(codes, shuffled, sizes),
        two_way_resampled=_two_way(codes, resampled, sizes),
    )


def _level_names(column: Column) -> tuple[str, ...]:
    """Short ones, for a plot's axis: of a bin where it begins."""
    return tuple(name.replace("_", " ") for name in level_names(column, _start))


def _start(column: Column, low: float, _high: float) -> str:
    if isinstance(column, DateColumn):
        return day_of(column, low)
    return f"{low:.3g}" if low < 1000 else f"{low / 1000:.3g}k"


def _codes(frame: pd.DataFrame, schema: StudySchema) -> np.ndarray:
    if frame.empty:
        raise ValueError("a table to compare has no rows; a comparison needs at least one")
    if schema.patient_id is not None:  # cohorts number their patients in a way of their own
        frame = frame.assign(**{schema.patient_id: [f"row{row}" for row in range(len(frame))]})
    return encode_table(frame, schema).codes.numpy()


def _shares(codes: np.ndarray, cardinality: int) -> np.ndarray:
    return np.bincount(codes, minlength=cardinality) / len(codes)


def _two_way(real: np.ndarray, other: np.ndarray, sizes: Sequence[int]) -> float:
    distances = []
    for left, right in combinations(range(len(sizes)), 2):
        cells = sizes[left] * sizes[right]
        shares = [_shares(table[:, left] * sizes[right] + table[:, right], cells) for table in (real, other)]
        distances.append(0.5 * np.abs(shares[0] - shares[1]).sum())
    return float(np.mean(distances))


def _ordered(codes: np.ndarray, schema: StudySchema) -> tuple[tuple[str, ...], np.ndarray]:
    """Columns with an order as they are, a category without one as one 0/1 column for each of its levels."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    for index, column in enumerate(schema.columns):
        title = column.title or column.name
        if isinstance(column, CategoricalColumn):
            levels = _level_names(column)
            for level in range(1 if len(levels) == 2 else 0, len(levels)):
                names.append(f"{title}: {levels[level]}")
                columns.append(codes[:, index] == level)
        else:
            names.append(title)
            columns.append(codes[:, index])
    return tuple(names), np.stack(columns, axis=1).astype(float)


def _rank_correlation(columns: np.ndarray) -> np.ndarray:
    """Spearman's; a column with a single value correlates with nothing (0)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.corrcoef(pd.DataFrame(columns).rank().to_numpy(), rowvar=False)
    matrix = np.nan_to_num(matrix)
    np.fill_diagonal(matrix, 1.0)
    return matrix
