"""Codes back to values: a smooth rule inside each bin, always within the public bounds.

Inside a bin the density is a line whose slope follows the neighbouring bins' heights (a monotonised central
slope, van Leer 1977, so that a spike does not leak into its neighbours), along the column's own scale:
linear, or the logarithm of it for bins of equal ratio. Whole numbers and days are the points of that line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from models.schema import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    ContinuousColumn,
    DateColumn,
    GridColumn,
    IntegerColumn,
    OrdinalColumn,
    StudySchema,
)


def decode_table(
    codes: Tensor,
    schema: StudySchema,
    *,
    rng: np.random.Generator,
    marginals: Sequence[np.ndarray] | None = None,
    numbers: Mapping[int, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Values for codes.

    Args:
        codes: (N, K) int64 levels.
        schema: the columns.
        rng: where in its bin a number lies.
        marginals: each column's distribution over its levels, which gives the slopes; of the codes if absent.
        numbers: by column index, those that are known already, (N,), as `numbers_at` gives them.

    Returns:
        A table with the schema's columns; named values as categoricals, absent values as NA.

    Raises:
        ValueError: the codes do not fit the schema.
    """
    levels = codes.numpy()
    if levels.ndim != 2 or levels.shape[1] != len(schema.columns):
        raise ValueError(f"codes are {levels.shape}; the schema has {len(schema.columns)} columns")
    numbers = numbers or {}
    table: dict[str, object] = {}
    for index, column in enumerate(schema.columns):
        level = levels[:, index]
        if level.size and not (level.min() >= 0 and level.max() < column.cardinality):
            raise ValueError(f"column {column.name!r}: levels must lie in 0 to {column.cardinality - 1}")
        if isinstance(column, CategoricalColumn | OrdinalColumn | BooleanColumn):
            table[column.name] = _named_values(column, level)
            continue
        if index in numbers:
            table[column.name] = _typed(column, numbers[index], level == column.num_values)
            continue
        if marginals is None:
            marginal = np.bincount(level, minlength=column.cardinality).astype(np.float64)
        else:
            marginal = np.asarray(marginals[index], dtype=np.float64)
        drawn = numbers_at(column, level, rng.random(len(level)), marginal)
        table[column.name] = _typed(column, drawn, level == column.num_values)
    return pd.DataFrame(table, copy=False)


def numbers_at(column: GridColumn, level: np.ndarray, place: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """Numbers (days since the minimum for dates) at quantiles `place` of their bins; shape (N,).

    Args:
        column: the grid.
        level: (N,) bins; the missing level gives a number that means nothing.
        place: (N,) quantiles in [0, 1).
        marginal: (cardinality,) distribution over levels, not necessarily of sum 1.
    """
    edges = column.edges
    level = np.minimum(level, column.num_values - 1)
    slope = _slopes(column, marginal[: column.num_values])[level]
    start = 1 - slope / 2
    # Inverse of the distribution function u + slope/2 (u^2 - u) on [0, 1].
    u = 2 * place / (start + np.sqrt(np.maximum(start**2 + 2 * slope * place, 1e-300)))
    low, high = edges[level], edges[level + 1]
    geometric = _is_geometric(column)[level]
    number = low + u * (high - low)
    if geometric.any():
        safe = np.where(geometric, low, 1.0)
        ratio = np.where(geometric, high, 2.0) / safe
        number = np.where(geometric, safe * ratio**u, number)
    number = np.clip(number, low, np.nextafter(high, low))
    if not isinstance(column, ContinuousColumn):
        return np.floor(number)
    return _rounded(number, low, high, column)


def _slopes(column: GridColumn, marginal: np.ndarray) -> np.ndarray:
    """Relative slope of the density in each bin, in [-2, 2]: the density is 1 + slope (u - 1/2)."""
    edges, geometric = column.edges, _is_geometric(column)
    with np.errstate(divide="ignore"):
        ends = np.log(np.maximum(edges, 1e-300)) if geometric.any() else edges
    width = np.where(geometric, np.diff(ends), np.diff(edges))
    height = np.maximum(marginal, 0) / width
    backward, forward = np.diff(height, prepend=height[:1]), np.diff(height, append=height[-1:])
    # A bin beside one of another kind of scale, and the outermost bins, stay flat.
    alike = np.concatenate([[False], geometric[1:] == geometric[:-1], [False]])
    central = (backward + forward) / 2
    limited = np.sign(central) * np.minimum.reduce(
        [np.abs(central), 2 * np.abs(backward), 2 * np.abs(forward)]
    )
    limited = np.where((backward * forward > 0) & alike[:-1] & alike[1:], limited, 0.0)
    return np.clip(np.divide(limited, height, out=np.zeros_like(limited), where=height > 0), -2, 2)


def _is_geometric(column: GridColumn) -> np.ndarray:
    """Which bins are spaced by ratio: on a log scale all that start at the floor or above."""
    starts = column.edges[:-1]
    if column.scale != "log":
        return np.zeros(len(starts), dtype=bool)
    return starts >= float(column.log_floor or np.inf)


def _rounded(number: np.ndarray, low: np.ndarray, high: np.ndarray, column: ContinuousColumn) -> np.ndarray:
    """Rounded to the column's decimals where that stays in the bin."""
    unit = 10.0**column.decimals
    rounded = np.round(number * unit) / unit
    above = np.ceil(low * unit) / unit
    below = (np.ceil(high * unit) - 1) / unit
    kept = np.clip(rounded, above, np.maximum(below, above))
    return np.where((kept >= low) & (kept < high), kept, number)


def _named_values(column: Column, level: np.ndarray) -> object:
    absent = level == column.num_values
    if isinstance(column, BooleanColumn):
        if not column.missing:
            return level == 1
        return pd.arrays.BooleanArray(level == 1, absent)
    codes = np.where(absent, -1, level)
    ordered = isinstance(column, OrdinalColumn)
    return pd.Categorical.from_codes(codes, categories=list(column.categories), ordered=ordered)


def _typed(column: GridColumn, numbers: np.ndarray, absent: np.ndarray) -> object:
    if isinstance(column, DateColumn):
        start = np.datetime64(column.minimum, "s")
        dates = start + numbers.astype(np.int64) * np.timedelta64(86_400, "s")
        dates[absent] = np.datetime64("NaT", "s")
        return dates
    if isinstance(column, IntegerColumn):
        whole = numbers.astype(np.int64)
        return pd.arrays.IntegerArray(whole, absent) if column.missing else whole
    return pd.arrays.FloatingArray(numbers, absent) if column.missing else numbers
