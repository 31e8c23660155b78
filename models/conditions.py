"""Conditions on patients: what they say, and tested on records. How they are read: `models.condition_reader`.

A comparison with a missing value does not hold; `not` turns that around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.sums import (
    ORDERS,
    LinearRelation,
)


class ConditionError(ValueError):
    """A condition that cannot be read, or names something that the schema does not have."""


@dataclass(frozen=True)
class Records:
    """Records that conditions are tested on.

    Attributes:
        levels: (N, K) codes.
        numbers: by column index, (N,) values of the columns on a grid (days since the minimum for dates).
    """

    levels: np.ndarray
    numbers: Mapping[int, np.ndarray]

    def chosen(self, rows: np.ndarray) -> Records:
        """Some of them, by their positions (B,)."""
        return Records(self.levels[rows], {column: number[rows] for column, number in self.numbers.items()})


@dataclass(frozen=True)
class Levels:
    """The column has one of these levels (the one for missing values may be among them)."""

    column: int
    allowed: frozenset[int]

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        return np.isin(records.levels[:, self.column], sorted(self.allowed))


@dataclass(frozen=True)
class Comparison:
    """The column's number stands so to a constant, and is not missing."""

    column: int
    relation: str
    value: float
    missing_level: int

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        present = records.levels[:, self.column] != self.missing_level
        return np.asarray(ORDERS[self.relation](records.numbers[self.column], self.value) & present)


@dataclass(frozen=True)
class ColumnComparison:
    """Two columns' numbers stand so to each other, in order, and neither is missing; see also `LinearRelation`."""

    left: int
    relation: str
    right: int
    missing_levels: tuple[int, int]
    shift: float = 0.0  # added to the right side: dates count from their own minimum

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        present = records.levels[:, self.left] != self.missing_levels[0]
        present &= records.levels[:, self.right] != self.missing_levels[1]
        right = records.numbers[self.right] + self.shift
        return np.asarray(ORDERS[self.relation](records.numbers[self.left], right) & present)


@dataclass(frozen=True)
class AllOf:
    """Every part holds."""

    parts: tuple[Condition, ...]

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        return np.logical_and.reduce([part.holds(records) for part in self.parts])


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        return np.logical_or.reduce([part.holds(records) for part in self.parts])


@dataclass(frozen=True)
class Negation:
    """The part does not hold."""

    part: Condition

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        return ~self.part.holds(records)


Condition = Levels | Comparison | ColumnComparison | LinearRelation | AllOf | AnyOf | Negation


def columns_of(condition: Condition) -> frozenset[int]:
    """The columns that a condition speaks of."""
    if isinstance(condition, Levels | Comparison):
        return frozenset({condition.column})
    if isinstance(condition, ColumnComparison):
        return frozenset({condition.left, condition.right})
    if isinstance(condition, LinearRelation):
        return frozenset(condition.columns)
    if isinstance(condition, Negation):
        return columns_of(condition.part)
    return frozenset().union(*(columns_of(part) for part in condition.parts))


def sums_in(condition: Condition) -> list[LinearRelation]:
    """The relations between sums, wherever they stand in a condition."""
    if isinstance(condition, LinearRelation):
        return [condition]
    if isinstance(condition, Negation):
        return sums_in(condition.part)
    return (
        [one for part in condition.parts for one in sums_in(part)]
        if isinstance(condition, AllOf | AnyOf)
        else []
    )
