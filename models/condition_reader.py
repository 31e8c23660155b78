"""Conditions read from text or JSON, and checked against the schema.

Text reads like `age >= 60 and sex == 'female'`, `40 <= age < 60`, `race in ['A', 'B']`, `chol is missing`,
`not smoker`, `` `capital-gain` > 0 `` (back-quotes around a name that is no plain word),
`diastolic < systolic` and `fees + 2 * drugs <= total` (sums: `models.sums`). JSON reads
`{"column": "age", "op": ">=", "value": 60}` and `{"sum": {"fees": 1, "drugs": 2}, "op": "<=", "value": 100}`, joined by
`{"all": [...]}`, `{"any": [...]}` and `{"not": ...}`.
"""

from __future__ import annotations

import ast
import datetime as dt
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from models.conditions import (
    AllOf,
    AnyOf,
    ColumnComparison,
    Comparison,
    Condition,
    ConditionError,
    Levels,
    Negation,
)
from models.schema import BooleanColumn, CategoricalColumn, Column, DateColumn, OrdinalColumn, StudySchema
from models.sums import (
    ORDERS,
    Sum,
    SumError,
    is_sum,
    number_of,
    read_coefficients,
    read_sum,
    relate,
)

MAX_LENGTH = 4_000
MAX_PARTS = 200

_SETS = ("in", "not in")
_ABSENCE = ("is missing", "is not missing")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


def parse_condition(source: str | Mapping[str, Any], schema: StudySchema) -> Condition:
    """Read one condition.

    Args:
        source: text or JSON data, see the module.
        schema: the columns it may speak of.

    Raises:
        ConditionError: says what cannot be read or does not exist, and what there is instead.
    """
    reader = _Reader(schema)
    if isinstance(source, str):
        return reader.read_text(source)
    return reader.read_data(source)


def parse_conditions(
    sources: Sequence[str | Mapping[str, Any] | Condition], schema: StudySchema
) -> tuple[Condition, ...]:
    """Read conditions that must all hold; what is read already passes through.

    Raises:
        ConditionError: see `parse_condition`.
    """
    if isinstance(sources, str):
        raise ConditionError("conditions are a list; put the text into a list of one")
    return tuple(
        parse_condition(source, schema) if isinstance(source, str | Mapping) else source for source in sources
    )


@dataclass
class _Reader:
    schema: StudySchema
    quoted: dict[str, str] = field(default_factory=dict)
    parts: int = 0

    def read_text(self, text: str) -> Condition:
        if len(text) > MAX_LENGTH:
            raise ConditionError(f"the condition has {len(text)} characters; at most {MAX_LENGTH} are read")

        def replace(match: re.Match[str]) -> str:
            name = f"quoted_column_{len(self.quoted)}_"
            self.quoted[name] = match.group(1)
            return name

        try:
            tree = ast.parse(re.sub(r"`([^`]+)`", replace, text.strip()), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ConditionError(
                f"{_cut(text)} cannot be read ({getattr(error, 'msg', error)}); "
                "write for example: age >= 60 and sex == 'female'"
            ) from error
        return self._from_tree(tree.body)

    def read_data(self, data: object, depth: int = 0) -> Condition:
        self._count()
        if depth > 50:
            raise ConditionError("the condition is nested more than 50 deep")
        if isinstance(data, str):
            return self.read_text(data)
        if not isinstance(data, Mapping):
            raise ConditionError(f"{_cut(data)} is no condition; it must be text or an object")
        keys = set(data)
        if keys == {"not"}:
            return Negation(self.read_data(data["not"], depth + 1))
        if keys in ({"all"}, {"any"}):
            (key,) = keys
            if not isinstance(data[key], list | tuple) or not data[key]:
                raise ConditionError(f"{key!r} needs a list of at least one condition")
            parts = tuple(self.read_data(part, depth + 1) for part in data[key])
            return AllOf(parts) if key == "all" else AnyOf(parts)
        relation = data.get("op")
        if relation in _ABSENCE and keys == {"column", "op"}:
            return self._absence(self._index(data["column"]), str(relation))
        if keys == {"sum", "op", "value"}:
            return self._relate(
                lambda: (read_coefficients(data["sum"], self._index), number_of(data["value"])), str(relation)
            )
        if keys != {"column", "op", "value"}:
            raise ConditionError(
                "a condition has the fields column, op and value, or sum, op and value, or one of all, any, not; "
                f"found {sorted(map(str, keys))}"
            )
        return self._compare(self._index(data["column"]), str(relation), data["value"])

    def _from_tree(self, node: ast.expr) -> Condition:
        self._count()
        if isinstance(node, ast.BoolOp):
            parts = tuple(self._from_tree(value) for value in node.values)
            return AllOf(parts) if isinstance(node.op, ast.And) else AnyOf(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Negation(self._from_tree(node.operand))
        if isinstance(node, ast.Name):
            return self._compare(self._index(self._name(node)), "==", True)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = tuple(
                self._from_sides(left, relation, right)
                for left, relation, right in zip(sides, node.ops, sides[1:], strict=False)
            )
            return parts[0] if len(parts) == 1 else AllOf(parts)
        raise ConditionError(
            f"{_cut(ast.unparse(node))} is no condition; compare a column with a value, and join by and, or, not"
        )

    def _from_sides(self, left: ast.expr, relation: ast.cmpop, right: ast.expr) -> Condition:
        symbol = {
            ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
            ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
        }[type(relation)]  # fmt: skip
        if is_sum(left) or is_sum(right):
            return self._compare_sums(left, symbol, right)
        left_name, right_name = self._column_name(left), self._column_name(right)
        if symbol in ("is", "is not"):
            if left_name is None or not (isinstance(right, ast.Name) and right.id.lower() == "missing"):
                raise ConditionError("after 'is' only 'missing' or 'not missing' can stand")
            return self._absence(self._index(left_name), f"{symbol} missing")
        if left_name is not None and right_name is not None:
            return self._compare_columns(self._index(left_name), symbol, self._index(right_name))
        if left_name is not None:
            return self._compare(self._index(left_name), symbol, _constant(right))
        if right_name is not None and symbol in _MIRRORED:
            return self._compare(self._index(right_name), _MIRRORED[symbol], _constant(left))
        raise ConditionError(f"{_cut(ast.unparse(left))} {symbol} ...: one side must be a column")

    def _compare(self, index: int, relation: str, value: Any) -> Condition:
        column = self.schema.columns[index]
        if relation not in ORDERS and relation not in _SETS:
            raise ConditionError(
                f"column {column.name!r}: {relation!r} is no comparison; there are {[*ORDERS, *_SETS, *_ABSENCE]}"
            )
        if relation in _SETS:
            if not isinstance(value, list | tuple | set | frozenset) or not value:
                raise ConditionError(f"column {column.name!r}: {relation!r} needs a list of values")
            same = AnyOf(tuple(self._compare(index, "==", item) for item in value))
            if relation == "in":
                return same
            return AllOf((Negation(same), self._absence(index, "is not missing")))
        if isinstance(column, CategoricalColumn | OrdinalColumn | BooleanColumn):
            return Levels(index, self._levels(column, relation, value))
        number = _days(column, value) if isinstance(column, DateColumn) else _number(column, value)
        return Comparison(index, relation, number, column.num_values)

    def _levels(self, column: Column, relation: str, value: Any) -> frozenset[int]:
        if isinstance(column, BooleanColumn):
            if not isinstance(value, bool) and value not in (0, 1):
                raise ConditionError(f"column {column.name!r} is true or false, not {_cut(value)}")
            level, ordered = int(value), False
        else:
            assert isinstance(column, CategoricalColumn | OrdinalColumn)
            text = str(value)
            if text not in column.categories:
                near = difflib.get_close_matches(text, column.categories, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                shown = list(column.categories[:20])
                raise ConditionError(
                    f"column {column.name!r} has no category {_cut(value)}; {hint}it has {shown}"
                )
            level, ordered = column.categories.index(text), isinstance(column, OrdinalColumn)
        if relation not in ("==", "!=") and not ordered:
            raise ConditionError(f"column {column.name!r} has no order; compare by ==, != or in")
        return frozenset(k for k in range(column.num_values) if ORDERS[relation](k, level))

    def _compare_columns(self, left: int, relation: str, right: int) -> Condition:
        first, second = self.schema.columns[left], self.schema.columns[right]
        named = CategoricalColumn | OrdinalColumn | BooleanColumn
        dates = isinstance(first, DateColumn), isinstance(second, DateColumn)
        if isinstance(first, named) or isinstance(second, named) or dates[0] != dates[1]:
            raise ConditionError(
                f"columns {first.name!r} and {second.name!r} cannot be compared; two numbers or two dates can"
            )
        if relation not in ORDERS:
            raise ConditionError(f"{relation!r} does not compare two columns; there are {list(ORDERS)}")
        if relation == "==":
            sides = Sum({left: Fraction(1)}), Sum({right: Fraction(1)})
            return self._relate(lambda: sides, relation, alone=(left, right))
        shift = 0.0
        if isinstance(first, DateColumn) and isinstance(second, DateColumn):
            shift = float((second.minimum - first.minimum).days)
        return ColumnComparison(left, relation, right, (first.num_values, second.num_values), shift)

    def _compare_sums(self, left: ast.expr, relation: str, right: ast.expr) -> Condition:
        self._check_order(relation)

        def index_of(node: ast.Name) -> int:
            return self._index(self._name(node))

        def read() -> tuple[Sum, Sum]:
            return read_sum(left, index_of, self._count), read_sum(right, index_of, self._count)

        alone = tuple(index_of(side) for side in (left, right) if isinstance(side, ast.Name))
        return self._relate(read, relation, alone)

    def _relate(
        self, read: Callable[[], tuple[Sum, Sum]], relation: str, alone: tuple[int, ...] = ()
    ) -> Condition:
        self._check_order(relation)
        try:
            left, right = read()
            return relate(left, relation, right, self.schema, alone)
        except SumError as error:
            raise ConditionError(str(error)) from error

    def _check_order(self, relation: str) -> None:
        if relation not in ORDERS:
            raise ConditionError(f"{relation!r} does not compare sums; there are {list(ORDERS)}")

    def _absence(self, index: int, relation: str) -> Condition:
        column = self.schema.columns[index]
        present = frozenset(range(column.num_values))
        absent = frozenset({column.num_values}) if column.missing else frozenset()
        return Levels(index, absent if relation == "is missing" else present)

    def _column_name(self, node: ast.expr) -> str | None:
        """The column that a side names, or None for a value (`true`, `false` are values)."""
        if isinstance(node, ast.Name) and node.id.lower() not in ("true", "false"):
            return self._name(node)
        return None

    def _name(self, node: ast.Name) -> str:
        return self.quoted.get(node.id, node.id)

    def _index(self, name: object) -> int:
        if isinstance(name, str) and name in self.schema.names:
            return self.schema.names.index(name)
        near = difflib.get_close_matches(str(name), self.schema.names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConditionError(
            f"there is no column {_cut(name)}; {hint}the columns are {list(self.schema.names)}"
        )

    def _count(self) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise ConditionError(f"the condition has more than {MAX_PARTS} parts; use 'in' for long lists")


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id.lower() in ("true", "false"):
        return node.id.lower() == "true"
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ConditionError(f"{_cut(ast.unparse(node))} is no value; write a number or 'text'") from error


def _number(column: Column, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ConditionError(f"column {column.name!r} holds numbers; {_cut(value)} is none")
    return float(value)


def _days(column: DateColumn, value: Any) -> float:
    try:
        day = value if isinstance(value, dt.date) else dt.date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ConditionError(
            f"column {column.name!r} holds dates; {_cut(value)} is none, write '2024-02-29'"
        ) from error
    return float((day - column.minimum).days)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
