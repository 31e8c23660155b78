"""An OMOP CDM database to a table, by the concepts that the study names: a row per person or per visit.

Persons are taken in ranges of `person_id`, and each table is asked once per range, so that memory depends on the
range and not on the database; `person_id` is indexed in every CDM.

References:
    OHDSI Common Data Model 5.4, https://ohdsi.github.io/CommonDataModel/cdm54.html
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import sqlalchemy as sa

from client.connectors.database import reading
from client.connectors.errors import DataSourceError
from client.connectors.events import (
    GatheredColumn,
    Record,
    completed_years,
    day_of,
    mappings_of,
    time_of,
    translated,
)
from client.connectors.omop_tables import EVENT_TABLES, EventTable
from client.connectors.settings import OmopSource
from client.connectors.source import rows_per_chunk, wanted_columns
from models.faults import FaultList
from models.mapping import OmopMapping
from models.schema import Column, StudySchema

_MAX_CONCEPTS_IN_QUERY = 1_000  # beyond it the rows are filtered here; databases bound the parameters


class OmopDatabase:
    """A CDM 5.4 database; it cannot say whether it changed, so it is read once per run."""

    has_lines = False

    def __init__(self, settings: OmopSource) -> None:
        self._settings = settings

    def stamp(self) -> None:
        """See `PatientSource.stamp`."""

    def fingerprint(self, secret: bytes) -> None:
        """See `PatientSource.fingerprint`."""

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """The rows, some persons at a time; see `PatientSource.chunks`.

        Raises:
            DataSourceError: the database does not answer, or is no CDM.
            TableFaultsError: a record does not fit the mapping; says table, record and column.
        """
        mapped = mappings_of(schema.columns, "omop")
        num_rows = 0
        with reading(self._settings.url, self._settings.password_file) as connection:
            cdm = _Cdm(connection, self._settings.cdm_schema or None)
            reader = _PersonReader(cdm, schema, mapped)  # type: ignore[arg-type]
            for persons in cdm.persons(rows_per_chunk(len(mapped))):
                frame = reader.frame(persons)
                if len(frame):
                    num_rows += len(frame)
                    yield frame
        if num_rows == 0:
            raise DataSourceError(
                f"the OMOP database has no {'visit' if schema.rows == 'visit' else 'person'}"
            )


class _Cdm:
    """The queries."""

    def __init__(self, connection: sa.Connection, schema: str | None) -> None:
        self._connection = connection
        self._schema = schema

    def persons(self, size: int) -> Iterator[list[Any]]:
        """All persons by `person_id`, in lists of at most `size` rows."""
        columns = ("person_id", "gender_concept_id", "race_concept_id", "ethnicity_concept_id")
        births = ("year_of_birth", "month_of_birth", "day_of_birth")
        person = self._table("person", *columns, *births)
        last: int | None = None
        while True:
            query = sa.select(person).order_by(person.c.person_id).limit(size)
            if last is not None:
                query = query.where(person.c.person_id > last)
            rows = list(self._connection.execute(query))
            if not rows:
                return
            yield rows
            last = rows[-1].person_id

    def records(self, table: EventTable, first: int, last: int, concepts: set[int] | None) -> list[Any]:
        """A table's records of the persons from `first` to `last`, oldest first."""
        found = self._table(table.name, *dict.fromkeys(table.columns.values()))
        query = (
            sa.select(*(found.c[name].label(label) for label, name in table.columns.items()))
            .where(found.c.person_id.between(first, last))
            .order_by(found.c.person_id, found.c[table.columns["start"]], found.c[table.columns["id"]])
        )
        if concepts is not None and len(concepts) <= _MAX_CONCEPTS_IN_QUERY:
            query = query.where(found.c[table.columns["concept"]].in_(sorted(concepts)))
        return list(self._connection.execute(query))

    def descendants(self, concepts: Sequence[int]) -> set[int]:
        """The concepts and all below them."""
        ancestor = self._table("concept_ancestor", "ancestor_concept_id", "descendant_concept_id")
        query = sa.select(ancestor.c.descendant_concept_id).where(
            ancestor.c.ancestor_concept_id.in_(sorted(concepts))
        )
        return {*concepts, *self._connection.scalars(query)}

    def _table(self, name: str, *columns: str) -> sa.TableClause:
        return sa.table(name, *(sa.column(column) for column in columns), schema=self._schema)


class _PersonReader:
    """Makes rows of persons or their visits."""

    def __init__(self, cdm: _Cdm, schema: StudySchema, mapped: list[tuple[Column, OmopMapping]]) -> None:
        self._cdm = cdm
        self._schema = schema
        self._by_visit = schema.rows == "visit"
        self._mapped = mapped
        self._concepts = {
            column.name: cdm.descendants(mapping.concepts) if mapping.descendants else set(mapping.concepts)
            for column, mapping in mapped
        }
        self._wanted: defaultdict[str, list[tuple[Column, OmopMapping]]] = defaultdict(list)
        for column, mapping in mapped:
            if mapping.take is not None:
                self._wanted[mapping.table].append((column, mapping))
        if self._by_visit or any(mapping.field == "age" and mapping.at is None for _, mapping in mapped):
            _ = self._wanted["visit_occurrence"]  # asked for even where no column counts visits

    def frame(self, persons: list[Any]) -> pd.DataFrame:
        """The rows of some persons, ascending by `person_id`.

        Raises:
            TableFaultsError: what does not fit.
        """
        faults = FaultList()
        gathered = {
            column.name: GatheredColumn(column, mapping.take, mapping.values, faults)
            for column, mapping in self._mapped
            if mapping.take is not None
        }
        starts: dict[object, dt.date | None] = {}  # a visit's start, or the start of a person's last visit
        whose: dict[object, int] = {}
        by_person = {row.person_id: row for row in persons}
        for name, wanted in self._wanted.items():
            self._gather(EVENT_TABLES[name], wanted, by_person, gathered, starts, whose, faults)
        for found in gathered.values():
            found.finish()
        rows = list(whose) if self._by_visit else list(by_person)
        columns: dict[str, list[object]] = {}
        for column, mapping in self._mapped:
            if mapping.take is not None:
                columns[column.name] = [gathered[column.name].value(row) for row in rows]
            else:
                columns[column.name] = [
                    _of_person(by_person[whose.get(row, row)], column, mapping, starts.get(row), faults)
                    for row in rows
                ]
        if self._schema.patient_id is not None:
            columns[self._schema.patient_id] = [str(whose.get(row, row)) for row in rows]
        faults.raise_if_any()
        return pd.DataFrame(
            {name: pd.Series(columns[name], dtype=object) for name in wanted_columns(self._schema)}
        )

    def _gather(
        self,
        table: EventTable,
        wanted: list[tuple[Column, OmopMapping]],
        by_person: dict[int, Any],
        gathered: dict[str, GatheredColumn],
        starts: dict[object, dt.date | None],
        whose: dict[object, int],
        faults: FaultList,
    ) -> None:
        everything = table.name == "visit_occurrence" or any(not m.concepts for _, m in wanted)
        needed = None if everything else set().union(*(self._concepts[c.name] for c, _ in wanted))
        persons = list(by_person)
        for record in self._cdm.records(table, persons[0], persons[-1], needed):
            if record.person_id not in by_person:
                continue
            day = _day_text(record.start)
            if table.name == "visit_occurrence":
                visit = record.visit if self._by_visit else record.person_id
                starts[visit] = day_of(day) if day is not None else starts.get(visit)
                if self._by_visit:
                    whose[visit] = record.person_id
            row = record.visit if self._by_visit else record.person_id
            if row is None:
                continue  # not part of any visit
            place = f"{table.name} {record.id}"
            for column, mapping in wanted:
                if mapping.concepts and record.concept not in self._concepts[column.name]:
                    continue
                if mapping.unit_concepts and record.unit not in mapping.unit_concepts:
                    faults.add(
                        None,
                        column.name,
                        f"{place}: the unit is concept {record.unit}, the study wants "
                        f"{list(mapping.unit_concepts)}: convert before the study",
                    )
                    continue
                gathered[column.name].add(
                    row,
                    Record(
                        value=_value(record, table, mapping),
                        time=None if day is None else time_of(day),
                        day=day,
                        place=place,
                    ),
                )


def _value(record: Any, table: EventTable, mapping: OmopMapping) -> object:
    if mapping.field == "days":
        start, end = (day_of(_day_text(moment) or "") for moment in (record.start, record.end))
        return None if start is None or end is None else max(0, (end - start).days)
    if mapping.field == "concept":
        value = record.value_concept if table.has_values else record.concept
        return None if value in (None, 0) else str(value)  # 0: no matching concept
    return record.number if mapping.field == "number" else record.text


def _of_person(
    person: Any, column: Column, mapping: OmopMapping, last_visit: dt.date | None, faults: FaultList
) -> object:
    place = f"person {person.person_id}"
    if mapping.field in ("birth_date", "age"):
        # Month and day may be left out for privacy: the first, as for partial dates elsewhere.
        birth = None
        if person.year_of_birth is not None:
            try:
                birth = dt.date(person.year_of_birth, person.month_of_birth or 1, person.day_of_birth or 1)
            except (TypeError, ValueError):
                faults.add(None, column.name, f"{place}: the date of birth is no date")
        if mapping.field == "birth_date" or birth is None:
            return birth
        at = mapping.at or last_visit
        return None if at is None else completed_years(birth, at)
    concept = getattr(person, f"{mapping.field}_concept_id")
    value = None if concept in (None, 0) else str(concept)
    return translated(value, mapping.values, column.name, place, faults)


def _day_text(moment: object) -> str | None:
    """A date or time as ISO text; drivers give dates, SQLite gives text."""
    return str(moment)[:10] if moment is not None else None
