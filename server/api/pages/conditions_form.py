"""The cohort builder's form: one set of fields per column, read into the conditions that the API takes.

Fields are named by the column's place in the schema: `c0.in` (categories, any of them), `c0.from` and `c0.to`,
`c0.is` (yes or no), `c0.missing` (present or absent); `where` takes further conditions as text.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.schema import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    ContinuousColumn,
    DateColumn,
    OrdinalColumn,
    StudySchema,
)
from server.api.pages.access import Form
from server.cohorts import FORMATS, MAX_SEED, CohortRequest
from server.errors import InvalidError

Condition = str | dict[str, Any]
MAX_BOXES = 12


@dataclass(frozen=True, kw_only=True)
class ColumnField:
    """A column's part of the form, with what was entered.

    Attributes:
        kind: `choice`, `yes-no`, `number` or `date`.
        chosen: of a choice's categories.
        low, high: as entered, or empty.
        answer: `yes`, `no` or empty.
        presence: `present`, `absent` or empty.
    """

    column: Column
    name: str
    kind: str
    chosen: frozenset[str]
    low: str
    high: str
    answer: str
    presence: str

    @property
    def is_set(self) -> bool:
        """Whether it restricts anything."""
        return bool(self.chosen or self.low or self.high or self.answer or self.presence)

    @property
    def is_long(self) -> bool:
        """Whether its categories are a list to choose from rather than boxes to tick."""
        return (
            isinstance(self.column, CategoricalColumn | OrdinalColumn)
            and len(self.column.categories) > MAX_BOXES
        )


def column_fields(schema: StudySchema, form: Form) -> list[ColumnField]:
    """The form's column fields in the schema's order."""
    fields = []
    for index, column in enumerate(schema.columns):
        name = f"c{index}"
        fields.append(
            ColumnField(
                column=column,
                name=name,
                kind=_kind(column),
                chosen=frozenset(form.many(f"{name}.in")),
                low=form.one(f"{name}.from"),
                high=form.one(f"{name}.to"),
                answer=form.one(f"{name}.is"),
                presence=form.one(f"{name}.missing"),
            )
        )
    return fields


def read_conditions(schema: StudySchema, form: Form) -> tuple[Condition, ...]:
    """The conditions that the form's fields ask for; all must hold.

    Raises:
        InvalidError: a bound that is no number or date, named by its column.
    """
    conditions: list[Condition] = []
    for field in column_fields(schema, form):
        name = field.column.name
        if field.presence:
            relation = "is missing" if field.presence == "absent" else "is not missing"
            conditions.append({"column": name, "op": relation})
        if field.chosen:
            conditions.append({"column": name, "op": "in", "value": sorted(field.chosen)})
        if field.answer:
            conditions.append({"column": name, "op": "==", "value": field.answer == "yes"})
        for text, relation in ((field.low, ">="), (field.high, "<=")):
            if text:
                conditions.append({"column": name, "op": relation, "value": _bound(field.column, text)})
    if form.one("where"):
        conditions.append(form.one("where"))
    return tuple(conditions)


def read_request(schema: StudySchema, form: Form) -> CohortRequest:
    """The cohort that the form asks for.

    Raises:
        InvalidError: a field has a value that it cannot have.
    """
    seed = form.one("seed")
    return CohortRequest(
        release=form.one("release"),
        num_patients=_whole("Number of patients", form.one("num_patients")),
        seed=_whole("Seed", seed) if seed else None,
        conditions=read_conditions(schema, form),
        columns=_columns(schema, form.many("columns")),
        formats=tuple(one for one in FORMATS if one in form.many("formats")),
    )


def in_words(conditions: Iterable[object]) -> list[str]:
    """Conditions as a person reads them."""
    return [_phrase(one) for one in conditions]


def example(schema: StudySchema) -> str:
    """A condition that this schema can read, with an `or`, which the fields of the form cannot say."""
    parts = []
    for column in schema.columns:
        name = column.name if column.name.isidentifier() else f"`{column.name}`"
        if isinstance(column, CategoricalColumn | OrdinalColumn):
            parts.append(f"{name} == {column.categories[0]!r}")
        elif isinstance(column, BooleanColumn):
            parts.append(f"not {name}")
        elif not isinstance(column, DateColumn):
            parts.append(f"{name} > {column.edges[len(column.edges) // 2]:.10g}")
    return " or ".join(parts[:2]) or f"{schema.columns[0].name} is missing"


def _phrase(condition: Any) -> str:
    if not isinstance(condition, dict) or "column" not in condition:
        return str(condition)
    name, relation, value = condition["column"], condition["op"], condition.get("value")
    if relation == "in" and isinstance(value, list):
        return f"{name} is {' or '.join(map(str, value))}"
    if isinstance(value, bool):
        return f"{name} is {'yes' if value else 'no'}"
    sign = {">=": "at least", "<=": "at most", "==": "is"}.get(relation, relation)
    return f"{name} {sign} {value}" if value is not None else f"{name} {relation}"


def _columns(schema: StudySchema, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """None where all are wanted."""
    return () if set(chosen) == set(schema.names) else tuple(chosen)


def _kind(column: Column) -> str:
    if isinstance(column, CategoricalColumn | OrdinalColumn):
        return "choice"
    if isinstance(column, BooleanColumn):
        return "yes-no"
    return "date" if isinstance(column, DateColumn) else "number"


def _bound(column: Column, text: str) -> float | int | str:
    title = column.title or column.name
    if isinstance(column, DateColumn):
        try:
            return dt.date.fromisoformat(text).isoformat()
        except ValueError as error:
            raise InvalidError("conditions", f"{title}: {text!r} is no date; write 2024-02-29") from error
    try:
        number = float(text)
        if isinstance(column, ContinuousColumn) or number != int(number):
            return number
        return int(number)
    except (ValueError, OverflowError) as error:
        raise InvalidError("conditions", f"{title}: {text!r} is no number") from error


def _whole(title: str, text: str) -> int:
    digits = text.replace(",", "").replace(" ", "")
    if not (digits.isascii() and digits.isdigit() and int(digits[:20]) <= MAX_SEED):
        raise InvalidError(title, f"{title}: {text!r} is no whole number")
    return int(digits)
