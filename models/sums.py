"""Sums of number columns, such as `total == fees + drugs` or `a + 2 * b - c >= 3`: read and tested without rounding.

A number lies on its column's grid: whole numbers and days on 1, others on ten to the minus `decimals`. So a relation
between sums is one between whole numbers, and holds to the last digit that a file has.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from models.schema import ContinuousColumn, DateColumn, GridColumn, IntegerColumn, StudySchema

if TYPE_CHECKING:
    from models.conditions import Records

ORDERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXACT_FLOATS = 2**53
_LARGEST = 2**62


class SumError(ValueError):
    """A sum that cannot be read, or that speaks of what cannot be added."""


@dataclass(frozen=True)
class Sum:
    """A constant and columns, by index, with their coefficients; none is 0."""

    coefficients: Mapping[int, Fraction]
    constant: Fraction = Fraction(0)

    def plus(self, other: Sum, factor: Fraction | int = 1) -> Sum:
        """This and a multiple of another."""
        joined = dict(self.coefficients)
        for column, coefficient in other.coefficients.items():
            joined[column] = joined.get(column, Fraction(0)) + factor * coefficient
        kept = {column: coefficient for column, coefficient in sorted(joined.items()) if coefficient}
        return Sum(kept, self.constant + factor * other.constant)


@dataclass(frozen=True)
class LinearRelation:
    """A sum of the columns' numbers stands so to 0, and none is missing.

    Attributes:
        columns: indices, ascending.
        factors: of each column's number in its own units; whole.
        offset: what is added, whole.
        units: how many units of each column are 1: ten to the power of its decimals.
        missing_levels: of each column.
        alone: the columns that stand alone on a side as they were written, the left one first.
    """

    columns: tuple[int, ...]
    factors: tuple[int, ...]
    offset: int
    relation: str
    units: tuple[int, ...]
    missing_levels: tuple[int, ...]
    alone: tuple[int, ...] = field(default=(), compare=False)

    def holds(self, records: Records) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(ORDERS[self.relation](self.total(records), 0) & self.present(records))

    def present(self, records: Records, but: int | None = None) -> np.ndarray:
        """Whether no column's value is missing, (N,) bool; that of `but` may be."""
        parts = zip(self.columns, self.missing_levels, strict=True)
        absent = [records.levels[:, column] == level for column, level in parts if column != but]
        return np.asarray(~np.logical_or.reduce([np.zeros(len(records.levels), dtype=bool), *absent]))

    def total(self, records: Records, but: int | None = None) -> np.ndarray:
        """The sum in common units, (N,) int64; without the term of the column `but`."""
        total = np.full(len(records.levels), self.offset, dtype=np.int64)
        for column, factor, unit in zip(self.columns, self.factors, self.units, strict=True):
            if column != but:
                total += factor * np.rint(records.numbers[column] * unit).astype(np.int64)
        return total

    def on_grid(self, records: Records) -> np.ndarray:
        """Whether every number is a whole number of units, to the last bit: (N,) bool."""
        exact = np.ones(len(records.levels), dtype=bool)
        for column, unit in zip(self.columns, self.units, strict=True):
            number = records.numbers[column]
            exact &= np.rint(number * unit) / unit == number
        return exact


def is_sum(node: ast.expr) -> bool:
    """Whether a side of a comparison is arithmetic, and not just a number with a sign."""
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.BinOp)


def read_sum(node: ast.expr, index_of: Callable[[ast.Name], int], count: Callable[[], None]) -> Sum:
    """A side of a comparison as a sum.

    Args:
        node: as Python parses it.
        index_of: a column's index by its name; raises where there is none.
        count: called for each part; raises where there are too many.

    Raises:
        SumError: it is not linear, or holds what is neither a number nor a column.
    """
    count()
    if isinstance(node, ast.Name):
        return Sum({index_of(node): Fraction(1)})
    if isinstance(node, ast.Constant):
        return Sum({}, _fraction(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        sign = 1 if isinstance(node.op, ast.UAdd) else -1
        return Sum({}).plus(read_sum(node.operand, index_of, count), sign)
    if isinstance(node, ast.BinOp):
        left, right = read_sum(node.left, index_of, count), read_sum(node.right, index_of, count)
        if isinstance(node.op, ast.Add | ast.Sub):
            return left.plus(right, 1 if isinstance(node.op, ast.Add) else -1)
        if isinstance(node.op, ast.Mult) and not (left.coefficients and right.coefficients):
            factor, of = (right, left) if left.coefficients else (left, right)
            return Sum({}).plus(of, factor.constant)
        if isinstance(node.op, ast.Div) and not right.coefficients and right.constant:
            return Sum({}).plus(left, 1 / right.constant)
    raise SumError(
        f"{_cut(ast.unparse(node))} is no sum; columns can be added, subtracted, and multiplied or divided by numbers, "
        "as in a + 2 * b - c / 10"
    )


def read_coefficients(data: object, index_of: Callable[[object], int]) -> Sum:
    """The JSON form `{"a": 1, "b": -2}`: columns and their coefficients.

    Raises:
        SumError: it is no such object.
    """
    if not isinstance(data, Mapping) or not data:
        raise SumError(f"'sum' needs an object of columns and coefficients, {{\"a\": 1}}, not {_cut(data)}")
    total = Sum({})
    for name, value in data.items():
        total = total.plus(Sum({index_of(name): Fraction(1)}), _fraction(value))
    return total


def number_of(value: object) -> Sum:
    """A constant.

    Raises:
        SumError: it is no finite number.
    """
    return Sum({}, _fraction(value))


def relate(
    left: Sum, relation: str, right: Sum, schema: StudySchema, alone: tuple[int, ...] = ()
) -> LinearRelation:
    """`left relation right`, in whole numbers.

    Args:
        left, right: the two sides.
        relation: of `ORDERS`.
        schema: whose columns they are of.
        alone: the columns that stand alone on a side.

    Raises:
        SumError: a column holds no numbers, dates are added to each other, nothing is compared, or the numbers have
            more digits than can be computed with exactly.
    """
    difference = left.plus(right, -1)
    if not difference.coefficients:
        raise SumError("no column is left in the comparison; both sides say the same of each")
    grids: dict[int, GridColumn] = {index: _grid(schema, index) for index in difference.coefficients}
    dates = {index: grid for index, grid in grids.items() if isinstance(grid, DateColumn)}
    if sum((difference.coefficients[index] for index in dates), Fraction(0)):
        names = [grid.name for grid in dates.values()]
        raise SumError(
            f"dates {names} do not add up to days; subtract one date from another, as in discharge - admission <= 30"
        )
    # A date counts from its own column's minimum.
    constant = difference.constant + sum(
        (difference.coefficients[index] * grid.minimum.toordinal() for index, grid in dates.items()),
        Fraction(0),
    )
    units = {index: units_of(grid) for index, grid in grids.items()}
    exact = {index: difference.coefficients[index] / units[index] for index in grids}
    common = math.lcm(constant.denominator, *(one.denominator for one in exact.values()))
    factors = {index: int(one * common) for index, one in exact.items()}
    offset = int(constant * common)
    shared = math.gcd(offset, *factors.values())
    reach = abs(offset) + sum(abs(factors[i]) * max(map(abs, reach_of(grid))) for i, grid in grids.items())
    if reach // shared >= _LARGEST:
        raise SumError(
            f"the sum of {[grid.name for grid in grids.values()]} has too many digits to be exact; "
            "give the columns fewer decimals or the sum rounder coefficients"
        )
    return LinearRelation(
        columns=tuple(grids),
        factors=tuple(factor // shared for factor in factors.values()),
        offset=offset // shared,
        relation=relation,
        units=tuple(units.values()),
        missing_levels=tuple(grid.num_values for grid in grids.values()),
        alone=tuple(index for index in alone if index in grids),
    )


def units_of(column: GridColumn) -> int:
    """How many of the column's units are 1."""
    return 10**column.decimals if isinstance(column, ContinuousColumn) else 1


def reach_of(column: GridColumn) -> tuple[int, int]:
    """The lowest and highest number of units that the column's bounds allow."""
    if isinstance(column, DateColumn):
        return 0, (column.maximum - column.minimum).days
    if isinstance(column, IntegerColumn):
        return column.minimum, column.maximum
    low, high = (Fraction(repr(bound)) * units_of(column) for bound in column.bounds)
    return math.ceil(low), math.floor(high)


def _grid(schema: StudySchema, index: int) -> GridColumn:
    column = schema.columns[index]
    if not isinstance(column, ContinuousColumn | IntegerColumn | DateColumn):
        raise SumError(f"column {column.name!r} is {column.kind}; only numbers and dates can be added")
    if isinstance(column, ContinuousColumn):
        unit, edges = units_of(column), column.edges
        if max(map(abs, reach_of(column))) >= _EXACT_FLOATS:
            raise SumError(
                f"column {column.name!r} has {column.decimals} decimals and bounds {list(column.bounds)}: more digits "
                "than a number holds, so a sum cannot be exact; give it fewer decimals"
            )
        if bool((np.ceil(edges[:-1] * unit) / unit >= edges[1:]).any()):
            raise SumError(
                f"column {column.name!r} has bins without a number of {column.decimals} decimals, so a sum cannot be "
                "exact; give it more decimals or fewer bins"
            )
    return column


def _fraction(value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise SumError(f"{_cut(repr(value))} is no number; sums are of columns and numbers")
    return Fraction(repr(value))


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
