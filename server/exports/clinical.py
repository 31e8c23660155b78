"""Rows back into clinical records: what each column's binding (`models.mapping`) reads, turned around.

A site reads a column from the patient, or from the patient's records of a kind under some codes: whether there is
one, how many, or the value of the first, last, lowest, highest. Here the row's values become such records, so that
the same study reads the same values back from them. FHIR and OMOP share this; how a record is written is theirs.

Days are made up. A patient's records lie around 2000-01-01, except where a column gives a day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from models.mapping import FhirMapping, OmopMapping
from models.schema import BooleanColumn, Column, DateColumn, IntegerColumn
from server.exports.context import ExportContext
from server.exports.values import Value, row_values

Kind = Literal["fhir", "omop"]
Code = str | int
LAST_DAY = dt.date(2000, 1, 1)
_MIDDLE_DAY = LAST_DAY - dt.timedelta(days=10)
_FIRST_DAY = LAST_DAY - dt.timedelta(days=20)
_DAY_OF = {"first": _FIRST_DAY, "last": LAST_DAY}
_ORDER = {"first": 0, "last": 2}  # on one day
UNWRITTEN = frozenset({"Procedure", "Immunization", "procedure_occurrence"})
VISITS = frozenset({"Encounter", "visit_occurrence"})
# Values of the same records that can stand side by side; others would change each other.
_TOGETHER = (frozenset({"first", "last"}), frozenset({"lowest", "highest"}))


@dataclass(slots=True)
class Event:
    """One record of a patient.

    Attributes:
        kind: type of resource, or table.
        codes: any of which the binding asks for; empty where any will do.
        day: when.
        take: which of several it stands for: `first`, `last` or, for those between, "".
        values: what it holds: by part (`value`, `code`, `days`, or a component's code) the column's binding and
            the source's own word for the row's value.
    """

    kind: str
    codes: tuple[Code, ...]
    day: dt.date
    take: str = ""
    values: dict[str, tuple[Column, Value]] = field(default_factory=dict)


@dataclass(slots=True)
class ClinicalPatient:
    """One row as a patient.

    Attributes:
        number: from 1.
        fields: the patient's own, by the binding's name for them; absent ones are left out.
        born: day of birth, if the row says it; exact only where the row has a day.
        events: visits first, then by day.
        visit: day of the visit that all events belong to, where a row is a visit.
    """

    number: int
    fields: dict[str, Value]
    born: tuple[dt.date, bool] | None
    events: list[Event]
    visit: dt.date | None


@dataclass(frozen=True)
class _Group:
    """Columns that the same records fill in the same way."""

    kind: str
    codes: tuple[Code, ...]
    take: str
    parts: dict[str, tuple[int, Column]]


class ClinicalPlan:
    """How a schema's columns become records.

    Attributes:
        kinds: of records that can come, in the order of the schema.
        left_out: by column, why it is not carried.
    """

    def __init__(self, context: ExportContext, kind: Kind) -> None:
        self._kind = kind
        self._by_visit = context.schema.rows == "visit"
        self.left_out: dict[str, str] = {}
        self._fields: dict[str, tuple[int, Column]] = {}
        self._groups: dict[tuple[str, tuple[Code, ...], str], _Group] = {}
        self._presences: list[tuple[int, Column]] = []
        self._counts: list[tuple[int, Column]] = []
        self._takes: dict[tuple[str, tuple[Code, ...], str], frozenset[str]] = {}
        for at, column in enumerate(context.chosen):
            reason = self._plan(at, column)
            if reason is not None:
                self.left_out[column.name] = reason
        self._counts.sort(key=lambda one: not self._codes(one[1]))  # those of any record count what is there
        carried = [column for column in context.chosen if column.name not in self.left_out]
        self._inverse = {column.name: _inverse(column, kind) for column in carried}
        kinds = [kind_of(column, kind) for column in carried]
        visits = "Encounter" if kind == "fhir" else "visit_occurrence"
        counted = any(kind_of(column, kind) in VISITS for _, column in self._counts)
        ages = any(_mapping(column, kind).at is None for _, column in self._of_field("age"))
        self._visit_kind = visits if self._by_visit or (ages and not counted) else None
        if self._visit_kind is not None:
            kinds.append(visits)
        self.kinds = tuple(dict.fromkeys(one for one in kinds if one not in ("Patient", "person")))

    @property
    def is_empty(self) -> bool:
        """Whether no column is carried."""
        return not (self._fields or self._groups or self._presences or self._counts)

    def patients(self, table: pd.DataFrame, *, first: int) -> Iterator[ClinicalPatient]:
        """The rows as patients, numbered from `first`."""
        for number, row in enumerate(row_values(table), start=first):
            yield self._patient(number, row)

    def _plan(self, at: int, column: Column) -> str | None:
        """Take a column in; the reason where it cannot be."""
        mapping = column.fhir if self._kind == "fhir" else column.omop
        if mapping is None:
            return f"the study does not bind it to {'FHIR' if self._kind == 'fhir' else 'OMOP'}"
        kind, take = kind_of(column, self._kind), mapping.take
        if kind in UNWRITTEN:
            return f"{kind} is not written"
        if take is None:
            if mapping.field in self._fields:
                return f"column {self._fields[mapping.field][1].name!r} fills the patient's {mapping.field} already"
            if mapping.field == "age" and ("birthDate" in self._fields or "birth_date" in self._fields):
                return "another column gives the day of birth already"
            self._fields[mapping.field] = (at, column)
            return None
        if take == "present":
            if not isinstance(column, BooleanColumn):
                return "take = 'present' gives true or false, and the column is neither"
            self._presences.append((at, column))
            return None
        if take == "count":
            if not isinstance(column, IntegerColumn):
                return "take = 'count' gives a whole number, and the column is none"
            if not (self._by_visit and kind in VISITS):
                self._counts.append((at, column))
            return None
        return self._plan_value(at, column, kind, take)

    def _plan_value(self, at: int, column: Column, kind: str, take: str) -> str | None:
        part = "day" if isinstance(column, DateColumn) else _part(_mapping(column, self._kind))
        codes = self._codes(column)
        takes = self._takes.get((kind, codes, part), frozenset())
        if takes and not (take not in takes and any(takes | {take} <= together for together in _TOGETHER)):
            return (
                f"another column takes {', '.join(sorted(takes))} of the same records, and this takes {take}"
            )
        self._takes[kind, codes, part] = takes | {take}
        group = self._groups.setdefault((kind, codes, take), _Group(kind, codes, take, {}))
        group.parts[part] = (at, column)
        return None

    def _patient(self, number: int, row: tuple[Value, ...]) -> ClinicalPatient:
        events = [event for group in self._groups.values() if (event := self._event(group, row)) is not None]
        for at, column in self._presences:
            kind, codes = kind_of(column, self._kind), self._codes(column)
            if row[at] is True and not self._matching(events, kind, codes):
                events.append(Event(kind, codes, _MIDDLE_DAY))
        for at, column in self._counts:
            wanted = row[at]
            if isinstance(wanted, int):
                kind, codes = kind_of(column, self._kind), self._codes(column)
                there = self._matching(events, kind, codes)
                day = _day_between(there)
                events.extend(Event(kind, codes, day) for _ in range(wanted - len(there)))
        visit = self._visit(events)
        if self._by_visit:
            for event in events:
                if "day" not in event.values and visit is not None:
                    event.day = visit
        events.sort(key=lambda event: (event.kind not in VISITS, event.day, _ORDER.get(event.take, 1)))
        fields = {
            name: self._word(column, row[at]) for name, (at, column) in self._fields.items() if name != "age"
        }
        return ClinicalPatient(
            number=number,
            fields={name: value for name, value in fields.items() if value is not None},
            born=self._born(row, events),
            events=events,
            visit=visit if self._by_visit else None,
        )

    def _event(self, group: _Group, row: tuple[Value, ...]) -> Event | None:
        event = Event(group.kind, group.codes, _DAY_OF.get(group.take, _MIDDLE_DAY), group.take)
        for part, (at, column) in group.parts.items():
            value = row[at]
            if value is None:
                continue
            if part == "day":
                assert isinstance(value, dt.date)
                event.day = value
                event.values[part] = (column, value)
            elif (word := self._word(column, value)) is not None:
                event.values[part] = (column, word)
        return event if event.values else None

    def _visit(self, events: list[Event]) -> dt.date | None:
        """Make sure that there is the visit that is needed; the day of the last."""
        visits = [event for event in events if event.kind in VISITS]
        if self._by_visit and len(visits) > 1:  # a row is one visit: what is said of it belongs together
            for other in visits[1:]:
                visits[0].values.update(other.values)
                visits[0].codes = visits[0].codes or other.codes
                visits[0].day = other.day if "day" in other.values else visits[0].day
                events.remove(other)
            visits = visits[:1]
        if not visits and self._visit_kind is not None:
            visits = [Event(self._visit_kind, (), LAST_DAY)]
            events.extend(visits)
        return max((event.day for event in visits), default=None)

    def _born(self, row: tuple[Value, ...], events: list[Event]) -> tuple[dt.date, bool] | None:
        for name in ("birthDate", "birth_date"):
            if name in self._fields and isinstance(day := row[self._fields[name][0]], dt.date):
                return day, True
        if "age" not in self._fields:
            return None
        at, column = self._fields["age"]
        age = row[at]
        if not isinstance(age, int | float):
            return None
        visits = [event.day for event in events if event.kind in VISITS]
        when = _mapping(column, self._kind).at or max(visits, default=LAST_DAY)
        # The first of January: exactly that many completed years on any day of the other year.
        return dt.date(max(when.year - int(age), 1), 1, 1), False

    def _matching(self, events: list[Event], kind: str, codes: tuple[Code, ...]) -> list[Event]:
        return [
            event
            for event in events
            if event.kind == kind and (not codes or not set(codes).isdisjoint(event.codes[:1]))
        ]

    def _word(self, column: Column, value: Value) -> Value:
        """The source's own word for a value; None where it has none."""
        words = self._inverse[column.name]
        return value if words is None or value is None else words.get(str(value))

    def _codes(self, column: Column) -> tuple[Code, ...]:
        mapping = _mapping(column, self._kind)
        return mapping.codes if isinstance(mapping, FhirMapping) else mapping.concepts

    def _of_field(self, name: str) -> list[tuple[int, Column]]:
        return [self._fields[name]] if name in self._fields else []


def kind_of(column: Column, kind: Kind) -> str:
    """The type of resource, or the table, that a bound column is read from."""
    mapping = _mapping(column, kind)
    return mapping.resource if isinstance(mapping, FhirMapping) else mapping.table


def _day_between(events: list[Event]) -> dt.date:
    """A day on which one more record is neither the first nor the last."""
    day = _MIDDLE_DAY
    for event in events:
        day = min(day, event.day) if event.take == "last" else day
        day = max(day, event.day) if event.take == "first" else day
    return day


def _mapping(column: Column, kind: Kind) -> FhirMapping | OmopMapping:
    mapping = column.fhir if kind == "fhir" else column.omop
    assert mapping is not None
    return mapping


def _part(mapping: FhirMapping | OmopMapping) -> str:
    """Which part of a record holds the value."""
    if isinstance(mapping, FhirMapping):
        if mapping.component:
            return mapping.component
        return mapping.field or ("value" if mapping.resource == "Observation" else "code")
    if mapping.table in ("measurement", "observation"):
        return {"concept": "value_concept"}.get(mapping.field, mapping.field)
    return {"concept": "code"}.get(mapping.field, mapping.field)


def _inverse(column: Column, kind: Kind) -> Mapping[str, str] | None:
    """From the study's words to the source's; the first of several. None: they are the same."""
    values = _mapping(column, kind).values
    if not values:
        return None
    words: dict[str, str] = {}
    for source, word in values.items():
        words.setdefault(word, source)
    return words
