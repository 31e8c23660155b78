"""FHIR R4 resources to a table, by the mapping in the study: a row per patient or per visit.

Reads resources one at a time; what is held is what the mapped columns need.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

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
from client.connectors.fhir_files import PlacedResource, export_files, read_resources
from client.connectors.fhir_values import (
    codes_of,
    encounter_days,
    is_void,
    observed,
    patient_field,
    reference_id,
    start_of,
)
from client.connectors.files import fingerprint, fingerprint_of_folder, stamp_of
from client.connectors.source import rows_per_chunk, wanted_columns
from models.faults import FaultList
from models.mapping import FhirMapping
from models.schema import Column, StudySchema


class FhirExport:
    """A Bulk Data folder, or Bundles in a folder or archive."""

    has_lines = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def stamp(self) -> str:
        """See `PatientSource.stamp`."""
        return stamp_of(export_files(self._path) if self._path.exists() else [self._path])

    def fingerprint(self, secret: bytes) -> str:
        """See `PatientSource.fingerprint`."""
        files = export_files(self._path)
        if files == [self._path]:
            return fingerprint(self._path, secret)
        return fingerprint_of_folder(self._path, files, secret)

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """The rows, after all resources were read once; see `PatientSource.chunks`.

        Raises:
            DataSourceError: there is no export, or something in it is not FHIR.
            TableFaultsError: a resource does not fit the mapping; says file, line and column.
        """
        gathering = _Gathering(schema)
        for placed in read_resources(self._path, gathering.types):
            try:
                gathering.add(placed)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise DataSourceError(f"{placed.place} is not shaped as FHIR R4 says") from None
        rows = gathering.rows()
        if not rows:
            raise DataSourceError(f"{self._path.name} holds no {schema.rows}")
        size = rows_per_chunk(len(schema.columns))
        for start in range(0, len(rows), size):
            yield gathering.frame(rows[start : start + size])


class _Gathering:
    """Everything read so far, by row."""

    def __init__(self, schema: StudySchema) -> None:
        self._schema = schema
        self._by_visit = schema.rows == "visit"
        self._faults = FaultList()
        self._patients: dict[str, dict[str, Any]] = {}
        self._last_visit: dict[str, str] = {}
        self._visits: dict[str, tuple[str, str | None]] = {}  # encounter: whose, when it began
        self._unknown: dict[str, str] = {}  # patients who were spoken of before they were read, and where
        self._fields: list[tuple[Column, FhirMapping]] = []
        self._gathered: dict[str, GatheredColumn] = {}
        self._wanted: defaultdict[str, list[tuple[Column, FhirMapping]]] = defaultdict(list)
        for column, mapping in mappings_of(schema.columns, "fhir"):
            assert isinstance(mapping, FhirMapping)
            if mapping.take is None:
                self._fields.append((column, mapping))
            else:
                self._wanted[mapping.resource].append((column, mapping))
                self._gathered[column.name] = GatheredColumn(
                    column, mapping.take, mapping.values, self._faults
                )
        ages = any(mapping.field == "age" and mapping.at is None for _, mapping in self._fields)
        self.types = {"Patient", *self._wanted, *(["Encounter"] if ages or self._by_visit else [])}

    def add(self, placed: PlacedResource) -> None:
        resource, place = placed.resource, placed.place
        if resource["resourceType"] == "Patient":
            self._add_patient(placed)
            return
        if is_void(resource):
            return
        patient = reference_id(resource.get("subject") or resource.get("patient"), placed.names)
        if patient is None:
            self._faults.add(None, "", f"{place}: does not say which patient it belongs to")
            return
        if patient not in self._patients:
            self._unknown.setdefault(patient, place)
        visit = reference_id(resource.get("encounter"), placed.names)
        if resource["resourceType"] == "Encounter":
            visit = resource.get("id")
            self._add_visit(str(visit), patient, start_of(resource))
        row = visit if self._by_visit else patient
        if row is not None:
            for column, mapping in self._wanted[resource["resourceType"]]:
                self._add_to(column, mapping, row, placed)

    def _add_patient(self, placed: PlacedResource) -> None:
        resource, identifier = placed.resource, placed.resource.get("id")
        if not isinstance(identifier, str) or not identifier:
            self._faults.add(None, "", f"{placed.place}: the Patient has no id")
            return
        if identifier in self._patients:
            self._faults.add(None, "", f"{placed.place}: this Patient was read before; a patient stands once")
            return
        fields: dict[str, Any] = {}
        for column, mapping in self._fields:
            value = patient_field(resource, "birthDate" if mapping.field == "age" else mapping.field)
            if mapping.field == "age":
                fields[column.name] = day_of(str(value)) if value is not None else None
            else:
                fields[column.name] = translated(
                    value, mapping.values, column.name, placed.place, self._faults
                )
        self._patients[identifier] = fields

    def _add_visit(self, visit: str, patient: str, start: str | None) -> None:
        if self._by_visit:
            self._visits[visit] = (patient, start)
        if start is not None and start > self._last_visit.get(patient, ""):
            self._last_visit[patient] = start

    def _add_to(self, column: Column, mapping: FhirMapping, row: str, placed: PlacedResource) -> None:
        resource, place = placed.resource, placed.place
        codes = codes_of(resource)
        if codes is None:
            self._faults.add(
                None, column.name, f"{place}: names its medication by reference; only coded ones can be read"
            )
            return
        if mapping.codes and not set(mapping.codes) & set(codes):
            return
        value: object
        if mapping.resource == "Observation":
            value, problem = observed(resource, mapping.component, getattr(column, "unit", ""))
            if problem:
                self._faults.add(None, column.name, f"{place}: {problem}")
                return
        elif mapping.field == "days":
            value = encounter_days(resource)
        else:
            value = tuple(part for code in codes for part in (code.rpartition("|")[2], code))
        start = start_of(resource)
        self._gathered[column.name].add(
            row,
            Record(
                value=value,
                time=None if start is None else time_of(start),
                day=None if start is None else start[:10],
                place=place,
            ),
        )

    def rows(self) -> list[str]:
        """The rows' identifiers, once everything was read.

        Raises:
            TableFaultsError: what was found on the way.
        """
        for patient, place in self._unknown.items():
            if patient not in self._patients:
                self._faults.add(None, "", f"{place}: belongs to a patient who is not in this export")
        for gathered in self._gathered.values():
            gathered.finish()
        self._faults.raise_if_any()
        return list(self._visits if self._by_visit else self._patients)

    def frame(self, rows: list[str]) -> pd.DataFrame:
        """Some rows of the table."""
        whose = [self._visits[row][0] if self._by_visit else row for row in rows]
        columns: dict[str, list[object]] = {}
        for column in self._schema.columns:
            gathered = self._gathered.get(column.name)
            if gathered is not None:
                columns[column.name] = [gathered.value(row) for row in rows]
            else:
                columns[column.name] = [self._patients[patient][column.name] for patient in whose]
        for column, mapping in self._fields:
            if mapping.field == "age":
                columns[column.name] = [
                    self._age(columns[column.name][at], mapping.at, row, whose[at])
                    for at, row in enumerate(rows)
                ]
        if self._schema.patient_id is not None:
            columns[self._schema.patient_id] = list(whose)
        return pd.DataFrame(
            {name: pd.Series(columns[name], dtype=object) for name in wanted_columns(self._schema)}
        )

    def _age(self, birth: object, at: dt.date | None, row: str, patient: str) -> int | None:
        if at is None:
            start = self._visits[row][1] if self._by_visit else self._last_visit.get(patient)
            at = day_of(start) if start is not None else None
        return completed_years(birth, at) if isinstance(birth, dt.date) and at is not None else None
