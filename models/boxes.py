"""A condition as disjoint boxes: products of conditions on single columns, which a mixture of products
can be conditioned on exactly."""

from __future__ import annotations

from collections.abc import Mapping

from models.conditions import AllOf, AnyOf, ColumnComparison, Condition, Negation, columns_of
from models.sums import LinearRelation

MAX_BOXES = 256

Box = Mapping[int, tuple[Condition, ...]]


class NotFactorisableError(Exception):
    """The condition compares columns with each other, or would take too many boxes."""


def disjoint_boxes(condition: Condition) -> list[Box]:
    """Boxes, no two of which share a record, whose union is the condition.

    Args:
        condition: any.

    Returns:
        For each box the conditions on each column it restricts, which all must hold.

    Raises:
        NotFactorisableError: there is no such list of at most `MAX_BOXES`.
    """
    return _boxes(_pushed(condition, positive=True))


def _boxes(condition: Condition) -> list[Box]:
    columns = columns_of(condition)
    if len(columns) == 1:
        (column,) = columns
        return [{column: (condition,)}]
    if isinstance(condition, AllOf):
        boxes: list[Box] = [{}]
        for part in condition.parts:
            boxes = [_joined(box, other) for box in boxes for other in _boxes(part)]
            _check(boxes)
        return boxes
    if isinstance(condition, AnyOf):
        first, rest = condition.parts[0], condition.parts[1:]
        if not rest:
            return _boxes(first)
        # A or B as the disjoint A and (not A and B).
        others = rest[0] if len(rest) == 1 else AnyOf(rest)
        boxes = _boxes(first) + _boxes(AllOf((_pushed(first, positive=False), others)))
        _check(boxes)
        return boxes
    raise NotFactorisableError("it compares columns with each other")


def _pushed(condition: Condition, *, positive: bool) -> Condition:
    """The condition (or its negation) with negations on single columns only."""
    if isinstance(condition, Negation):
        return _pushed(condition.part, positive=not positive)
    if isinstance(condition, AllOf | AnyOf) and len(columns_of(condition)) > 1:
        parts = tuple(_pushed(part, positive=positive) for part in condition.parts)
        return AllOf(parts) if isinstance(condition, AllOf) == positive else AnyOf(parts)
    if isinstance(condition, ColumnComparison | LinearRelation) and len(columns_of(condition)) > 1:
        raise NotFactorisableError("it compares columns with each other")
    return condition if positive else Negation(condition)


def _joined(box: Box, other: Box) -> Box:
    return {column: (*box.get(column, ()), *other.get(column, ())) for column in {**box, **other}}


def _check(boxes: list[Box]) -> None:
    if len(boxes) > MAX_BOXES:
        raise NotFactorisableError(f"it would take more than {MAX_BOXES} boxes")
