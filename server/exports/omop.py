"""OMOP CDM 5.4 tables as CSV, `omop/person.csv` and so on, with the columns in the CDM's order.

What a column becomes is its binding in the study (`server.exports.clinical`). Types of provenance are 0, "no matching
concept": no record system wrote these. A person whose year of birth the row does not say has none here, which a
strict loader refuses.

References:
    OHDSI Common Data Model 5.4, https://ohdsi.github.io/CommonDataModel/cdm54.html, and its DDL for the fields.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from server.exports import csv_file
from server.exports.clinical import LAST_DAY, ClinicalPatient, ClinicalPlan, Event
from server.exports.context import NOT_A_PERSON, ExportContext
from server.exports.values import Value

NOTE = f"columns become tables as the study binds them; days around {LAST_DAY} and ids are made up; " + (
    csv_file.NOTE
)
_TABLES = {
    "person": "person_id gender_concept_id year_of_birth month_of_birth day_of_birth birth_datetime race_concept_id "
    "ethnicity_concept_id location_id provider_id care_site_id person_source_value gender_source_value "
    "gender_source_concept_id race_source_value race_source_concept_id ethnicity_source_value "
    "ethnicity_source_concept_id",
    "observation_period": "observation_period_id person_id observation_period_start_date "
    "observation_period_end_date period_type_concept_id",
    "visit_occurrence": "visit_occurrence_id person_id visit_concept_id visit_start_date visit_start_datetime "
    "visit_end_date visit_end_datetime visit_type_concept_id provider_id care_site_id visit_source_value "
    "visit_source_concept_id admitted_from_concept_id admitted_from_source_value discharged_to_concept_id "
    "discharged_to_source_value preceding_visit_occurrence_id",
    "condition_occurrence": "condition_occurrence_id person_id condition_concept_id condition_start_date "
    "condition_start_datetime condition_end_date condition_end_datetime condition_type_concept_id "
    "condition_status_concept_id stop_reason provider_id visit_occurrence_id visit_detail_id "
    "condition_source_value condition_source_concept_id condition_status_source_value",
    "drug_exposure": "drug_exposure_id person_id drug_concept_id drug_exposure_start_date "
    "drug_exposure_start_datetime drug_exposure_end_date drug_exposure_end_datetime verbatim_end_date "
    "drug_type_concept_id stop_reason refills quantity days_supply sig route_concept_id lot_number provider_id "
    "visit_occurrence_id visit_detail_id drug_source_value drug_source_concept_id route_source_value "
    "dose_unit_source_value",
    "measurement": "measurement_id person_id measurement_concept_id measurement_date measurement_datetime "
    "measurement_time measurement_type_concept_id operator_concept_id value_as_number value_as_concept_id "
    "unit_concept_id range_low range_high provider_id visit_occurrence_id visit_detail_id "
    "measurement_source_value measurement_source_concept_id unit_source_value unit_source_concept_id "
    "value_source_value measurement_event_id meas_event_field_concept_id",
    "observation": "observation_id person_id observation_concept_id observation_date observation_datetime "
    "observation_type_concept_id value_as_number value_as_string value_as_concept_id qualifier_concept_id "
    "unit_concept_id provider_id visit_occurrence_id visit_detail_id observation_source_value "
    "observation_source_concept_id unit_source_value qualifier_source_value value_source_value "
    "observation_event_id obs_event_field_concept_id",
    "cdm_source": "cdm_source_name cdm_source_abbreviation cdm_holder source_description "
    "source_documentation_reference cdm_etl_reference source_release_date cdm_release_date cdm_version "
    "cdm_version_concept_id vocabulary_version",
}
FIELDS: Mapping[str, tuple[str, ...]] = {name: tuple(text.split()) for name, text in _TABLES.items()}
_STEMS = {
    "visit_occurrence": "visit",
    "condition_occurrence": "condition",
    "drug_exposure": "drug",
    "measurement": "measurement",
    "observation": "observation",
}
_CDM_5_4 = 756265
_NO_CONCEPT = 0
_SOURCE_VALUE_LENGTH = 50

Row = dict[str, Any]


def lacks_bindings(context: ExportContext) -> str | None:
    """Why OMOP cannot be given, if so."""
    if ClinicalPlan(context, "omop").is_empty:
        return (
            "no column of the study says which OMOP table it is (`omop = {...}` in the study's table); "
            "ask for csv, parquet or jsonl, or for columns that have such a binding"
        )
    return None


def left_out(context: ExportContext) -> Mapping[str, str]:
    """By column, why OMOP does not carry it."""
    return ClinicalPlan(context, "omop").left_out


class OmopWriter:
    """`omop/*.csv`."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self._context = context
        self._plan = ClinicalPlan(context, "omop")
        (folder / "omop").mkdir()
        self._files: dict[str, IO[str]] = {}
        self._tables: dict[str, csv.DictWriter[str]] = {}
        self._numbers = dict.fromkeys(_STEMS, 0)
        self._written = 0
        self.media_types: dict[str, str] = {}
        for name in FIELDS:  # all tables, so that a loader finds each
            path = f"omop/{name}.csv"
            self._files[name] = (folder / path).open("w", encoding="utf-8", newline="")
            self._tables[name] = csv.DictWriter(self._files[name], FIELDS[name], lineterminator="\n")
            self._tables[name].writeheader()
            self.media_types[path] = csv_file.MEDIA_TYPE
        self._tables["cdm_source"].writerow(_harmless(self._source()))

    def write(self, table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""
        for patient in self._plan.patients(table, first=self._written + 1):
            for name, row in self.rows(patient):
                self._tables[name].writerow(_harmless(row))
        self._written += len(table)

    def close(self) -> None:
        """See `FormatWriter`."""
        for file in self._files.values():
            file.close()

    def rows(self, patient: ClinicalPatient) -> list[tuple[str, Row]]:
        """A patient's rows, each with its table."""
        days = [event.day for event in patient.events] or [LAST_DAY]
        period = {
            "observation_period_id": patient.number,
            "person_id": patient.number,
            "observation_period_start_date": min(days),
            "observation_period_end_date": max([LAST_DAY, *map(_end_of, patient.events)]),
            "period_type_concept_id": _NO_CONCEPT,
        }
        found = [("person", self._person(patient)), ("observation_period", period)]
        visit = None
        for event in patient.events:
            self._numbers[event.kind] += 1
            row = _event_row(event, self._numbers[event.kind], patient.number)
            if event.kind == "visit_occurrence":
                visit = visit or row["visit_occurrence_id"]
            elif patient.visit is not None:
                row["visit_occurrence_id"] = visit
            found.append((event.kind, row))
        return found

    def _person(self, patient: ClinicalPatient) -> Row:
        row: Row = {
            "person_id": patient.number,
            "person_source_value": self._context.patient_name(patient.number),
            **{
                f"{name}_concept_id": _concept(patient.fields.get(name))
                for name in ("gender", "race", "ethnicity")
            },
        }
        if patient.born is not None:
            day, exact = patient.born
            row["year_of_birth"] = day.year
            if exact:
                row["month_of_birth"], row["day_of_birth"] = day.month, day.day
        return row

    def _source(self) -> Row:
        return {
            "cdm_source_name": f"fedtwin SYNTHETIC cohort {self._context.draw}",
            "cdm_source_abbreviation": "fedtwin-synthetic",
            "cdm_holder": "fedtwin",
            "source_description": f"{NOT_A_PERSON} Study {self._context.study_digest}, "
            f"release {self._context.release}.",
            "source_release_date": self._context.released_on,
            "cdm_release_date": self._context.released_on,
            "cdm_version": "5.4",
            "cdm_version_concept_id": _CDM_5_4,
            "vocabulary_version": "not stated",
        }


def _event_row(event: Event, number: int, person: int) -> Row:
    stem = _STEMS[event.kind]
    row: Row = {
        f"{event.kind}_id": number,
        "person_id": person,
        f"{stem}_concept_id": _concept(event.values["code"][1] if "code" in event.values else None)
        or (event.codes[0] if event.codes else _NO_CONCEPT),
        f"{stem}_type_concept_id": _NO_CONCEPT,
    }
    if event.kind in ("measurement", "observation"):
        row[f"{stem}_date"] = event.day
        for part, (column, value) in event.values.items():
            if part == "number":
                row["value_as_number"] = int(value) if isinstance(value, bool) else value
                units = column.omop.unit_concepts if column.omop is not None else ()
                row["unit_concept_id"] = units[0] if units else ""
                row["unit_source_value"] = getattr(column, "unit", "")[:_SOURCE_VALUE_LENGTH]
            elif part == "value_concept":
                row["value_as_concept_id"] = _concept(value)
            elif part == "text":
                row["value_as_string"] = value
    else:
        start = "drug_exposure" if event.kind == "drug_exposure" else stem
        row[f"{start}_start_date"] = event.day
        if event.kind != "condition_occurrence":
            row[f"{start}_end_date"] = _end_of(event)
    return row


def _end_of(event: Event) -> dt.date:
    days = event.values["days"][1] if "days" in event.values else 0
    assert isinstance(days, int | float)
    return event.day + dt.timedelta(days=int(days))


def _concept(value: Value) -> int:
    """A concept id, or 0 where there is none."""
    text = str(value)
    return int(text) if value is not None and text.isdigit() else _NO_CONCEPT


def _harmless(row: Row) -> Row:
    return {name: csv_file.harmless(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
