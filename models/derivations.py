"""Equalities among a schema's constraints: `total == fees + drugs` makes `total` follow from the others.

Independent draws of three numbers hardly ever add up, so an equality is not waited for: the column that stands alone on
a side is computed from the other side. `total is missing or total == fees + drugs` does so only where `total` was drawn
as present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.conditions import (
    AllOf,
    AnyOf,
    ColumnComparison,
    Condition,
    ConditionError,
    Negation,
    Records,
    columns_of,
)
from models.schema import BooleanColumn, CategoricalColumn, OrdinalColumn, StudySchema
from models.sums import LinearRelation, reach_of


@dataclass(frozen=True)
class Derivation:
    """A column that follows from others.

    Attributes:
        target: the column's index.
        relation: the equality.
        unless: where any of these holds, the equality need not.
        edges: of the target's bins.
        reach: lowest and highest number of the target's units.
    """

    target: int
    relation: LinearRelation
    unless: tuple[Condition, ...]
    edges: np.ndarray = field(compare=False)
    reach: tuple[int, int]

    @property
    def sources(self) -> frozenset[int]:
        """The columns that must be known before."""
        guards = (columns_of(one) for one in self.unless)
        return frozenset(self.relation.columns).union(*guards) - {self.target}

    def applied(self, records: Records) -> Records:
        """The records with the target computed wherever the others are present and it comes to lie within its bounds.

        Where it does not, the record is as it was, and fails the constraint.
        """
        place = self.relation.columns.index(self.target)
        units, rest = np.divmod(-self.relation.total(records, but=self.target), self.relation.factors[place])
        possible = (rest == 0) & (units >= self.reach[0]) & (units <= self.reach[1])
        possible &= self.relation.present(records, but=self.target)
        for guard in self.unless:
            possible &= ~guard.holds(records)
        computed = units / self.relation.units[place]
        level = np.searchsorted(self.edges, computed, side="right") - 1
        levels = records.levels.copy()
        levels[possible, self.target] = np.clip(level, 0, len(self.edges) - 2)[possible]
        number = np.where(possible, computed, records.numbers[self.target])
        return Records(levels, {**records.numbers, self.target: number})


def derivations_of(constraints: Sequence[Condition], schema: StudySchema) -> tuple[Derivation, ...]:
    """What the equalities among constraints make of a draw, in the order in which it must be done.

    Raises:
        ConditionError: no column stands alone on a side; one follows from two equalities or from itself; the others'
            bounds never bring it within its own; or an equality stands where a row would have to choose.
    """
    found: list[Derivation] = []
    for constraint in constraints:
        _collect(constraint, (), schema, found)
    ordered: list[Derivation] = []
    waiting = list(found)
    while waiting:
        open_targets = {one.target for one in waiting}
        ready = [one for one in waiting if not one.sources & open_targets]
        if not ready:
            names = sorted(schema.names[one] for one in open_targets)
            raise ConditionError(
                f"columns {names} would each follow from another of them: equalities go in a circle; drop one"
            )
        ordered += ready
        waiting = [one for one in waiting if one not in ready]
    return tuple(ordered)


def _collect(
    condition: Condition, unless: tuple[Condition, ...], schema: StudySchema, found: list[Derivation]
) -> None:
    equal = _equalities(condition)
    if not equal:
        return
    if isinstance(condition, AllOf):
        for part in condition.parts:
            _collect(part, unless, schema, found)
    elif isinstance(condition, AnyOf) and sum(bool(_equalities(part)) for part in condition.parts) == 1:
        (bound,) = (part for part in condition.parts if _equalities(part))
        guards = tuple(part for part in condition.parts if part is not bound)
        _collect(bound, unless + guards, schema, found)
    elif isinstance(condition, LinearRelation):
        found.append(_derivation(condition, unless, schema, found))
    else:
        said = ", ".join(sorted({schema.names[c] for one in equal for c in columns_of(one)}))
        raise ConditionError(
            f"an equality of numbers ({said}) stands where a row would have to choose; write it plainly, or once "
            "behind 'or', as in: total is missing or total == a + b"
        )


def _derivation(
    relation: LinearRelation, unless: tuple[Condition, ...], schema: StudySchema, found: Sequence[Derivation]
) -> Derivation:
    taken = {one.target for one in found if not (one.unless and unless)}
    names = [schema.names[one] for one in relation.columns]
    if not relation.alone:
        raise ConditionError(
            f"the equality of {names} does not say which column follows from the others; write it with that one alone "
            "on a side, as in: total == a + b"
        )
    target = next((one for one in relation.alone if one not in taken), None)
    if target is None:
        raise ConditionError(
            f"column {schema.names[relation.alone[0]]!r} follows from two equalities; "
            "write one of them for another column"
        )
    column = schema.columns[target]
    assert not isinstance(column, CategoricalColumn | OrdinalColumn | BooleanColumn)  # sums are of numbers
    ends, reach = _ends(relation, target, schema), reach_of(column)
    unit = relation.units[relation.columns.index(target)]
    if ends[1] < reach[0] or ends[0] > reach[1]:
        raise ConditionError(
            f"no patient can meet the equality of {names}: by the others' bounds column {column.name!r} would lie "
            f"between {ends[0] / unit:g} and {ends[1] / unit:g}{_days(column.kind)}, by its own between "
            f"{reach[0] / unit:g} and {reach[1] / unit:g}"
        )
    return Derivation(target, relation, unless, column.edges, reach)


def _days(kind: str) -> str:
    return " days from its minimum" if kind == "date" else ""


def _ends(relation: LinearRelation, target: int, schema: StudySchema) -> tuple[float, float]:
    """Between which numbers of its units the target would lie, by the bounds of the others."""
    low = high = relation.offset
    for column, factor in zip(relation.columns, relation.factors, strict=True):
        if column == target:
            divisor = -factor
            continue
        grid = schema.columns[column]
        assert not isinstance(grid, CategoricalColumn | OrdinalColumn | BooleanColumn)
        products = [factor * end for end in reach_of(grid)]
        low, high = low + min(products), high + max(products)
    first, second = sorted((low / divisor, high / divisor))
    return first, second


def _equalities(condition: Condition, *, positive: bool = True) -> list[Condition]:
    """The equalities of numbers that the condition may demand."""
    if isinstance(condition, Negation):
        return _equalities(condition.part, positive=not positive)
    if isinstance(condition, AllOf | AnyOf):
        return [one for part in condition.parts for one in _equalities(part, positive=positive)]
    if isinstance(condition, LinearRelation | ColumnComparison):
        return [condition] if condition.relation == ("==" if positive else "!=") else []
    return []
