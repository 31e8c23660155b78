"""FHIR R4 as NDJSON, one file per type of resource, as Bulk Data has it: `fhir/Patient.ndjson` and so on.

What a column becomes is its binding in the study (`server.exports.clinical`). Every resource carries the security
label HTEST (test health data), the tag `synthetic`, and a patient is called "Synthetic".

References:
    HL7 FHIR R4 (4.0.1). HL7 v3 ActReason, HTEST. HL7 Bulk Data Access 2.0, NDJSON.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from models.schema import BooleanColumn, Column
from server.exports.clinical import VISITS, ClinicalPatient, ClinicalPlan, Event
from server.exports.context import ExportContext
from server.exports.values import Value

MEDIA_TYPE = "application/fhir+ndjson"
NOTE = "columns become resources as the study binds them; days around 2000-01-01 and ids are made up"
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_META = {
    "security": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
            "code": "HTEST",
            "display": "test health data",
        }
    ],
    "tag": [{"system": "urn:fedtwin:tag", "code": "synthetic", "display": "no person"}],
}
_GENDERS = frozenset({"male", "female", "other", "unknown"})
_MARITAL = "http://terminology.hl7.org/CodeSystem/v3-MaritalStatus"
_UNITS = "http://unitsofmeasure.org"
_PARTS = frozenset({"value", "code", "days", "day"})

Resource = dict[str, Any]


def lacks_bindings(context: ExportContext) -> str | None:
    """Why FHIR cannot be given, if so."""
    if ClinicalPlan(context, "fhir").is_empty:
        return (
            "no column of the study says which FHIR resource it is (`fhir = {...}` in the study's table); "
            "ask for csv, parquet or jsonl, or for columns that have such a binding"
        )
    return None


def left_out(context: ExportContext) -> Mapping[str, str]:
    """By column, why FHIR does not carry it."""
    return ClinicalPlan(context, "fhir").left_out


class FhirWriter:
    """`fhir/*.ndjson`."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self._context = context
        self._plan = ClinicalPlan(context, "fhir")
        (folder / "fhir").mkdir()
        self._files: dict[str, IO[str]] = {}
        self.media_types: dict[str, str] = {}
        for kind in ("Patient", *self._plan.kinds):
            name = f"fhir/{kind}.ndjson"
            self._files[kind] = (folder / name).open("w", encoding="utf-8", newline="")
            self.media_types[name] = MEDIA_TYPE
        self._written = 0

    def write(self, table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""
        lines: dict[str, list[str]] = {kind: [] for kind in self._files}
        for patient in self._plan.patients(table, first=self._written + 1):
            for resource in self.resources(patient):
                lines[resource["resourceType"]].append(_line(resource))
        for kind, found in lines.items():
            self._files[kind].writelines(found)
        self._written += len(table)

    def close(self) -> None:
        """See `FormatWriter`."""
        for file in self._files.values():
            file.close()

    def resources(self, patient: ClinicalPatient) -> list[Resource]:
        """A patient's resources, the Patient first."""
        name = self._context.patient_name(patient.number)
        subject = {"reference": f"Patient/{name}"}
        found = [_patient(name, patient)]
        visit = None
        for number, event in enumerate(patient.events, start=1):
            one: Resource = {"resourceType": event.kind, "id": f"{name}-{number}", "meta": _META}
            _FILL[event.kind](one, event)
            one["subject"] = subject
            if event.kind in VISITS:
                visit = visit or one["id"]
            elif patient.visit is not None and visit is not None:
                one["encounter"] = {"reference": f"Encounter/{visit}"}
            found.append(one)
        return found


def _line(resource: Resource) -> str:
    return json.dumps(resource, ensure_ascii=False, separators=(",", ":")) + "\n"


def _patient(name: str, patient: ClinicalPatient) -> Resource:
    fields = patient.fields
    resource: Resource = {
        "resourceType": "Patient",
        "id": name,
        "meta": _META,
        "name": [{"use": "anonymous", "family": "Synthetic", "given": [f"Patient {patient.number}"]}],
    }
    if fields.get("gender") in _GENDERS:
        resource["gender"] = fields["gender"]
    if patient.born is not None:
        day, exact = patient.born
        resource["birthDate"] = day.isoformat() if exact else f"{day.year:04d}"
    if "deceased" in fields:
        resource["deceasedBoolean"] = str(fields["deceased"]).lower() in ("true", "1")
    if "maritalStatus" in fields:
        resource["maritalStatus"] = _concept(_coding(str(fields["maritalStatus"]), (), _MARITAL))
    return resource


def _encounter(resource: Resource, event: Event) -> None:
    resource["status"] = "finished"
    code = event.values.get("code")
    codings = [_coding(str(code[1]), event.codes, _ACT_CODE)] if code else [*map(_split, event.codes[:1])]
    act = next((one for one in codings if one.get("system") == _ACT_CODE), None)
    resource["class"] = act or {"system": _ACT_CODE, "code": "AMB"}
    if codings and act is None:
        resource["type"] = [{"coding": codings}]
    start = dt.datetime.combine(event.day, dt.time(), dt.UTC)
    period = {"start": start.isoformat().replace("+00:00", "Z")}
    if "days" in event.values:
        days = event.values["days"][1]
        assert isinstance(days, int | float)
        period["end"] = (start + dt.timedelta(days=days)).isoformat().replace("+00:00", "Z")
    resource["period"] = period


def _condition(resource: Resource, event: Event) -> None:
    resource["clinicalStatus"] = _concept(
        {"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}
    )
    resource["verificationStatus"] = _concept(
        {"system": "http://terminology.hl7.org/CodeSystem/condition-ver-status", "code": "confirmed"}
    )
    resource["code"] = _code_of(event)
    resource["onsetDateTime"] = event.day.isoformat()


def _observation(resource: Resource, event: Event) -> None:
    resource["status"] = "final"
    resource["code"] = _code_of(event)
    resource["effectiveDateTime"] = event.day.isoformat()
    components = []
    for part, (column, value) in event.values.items():
        if part == "value":
            resource.update(_value(column, value))
        elif part not in _PARTS:
            components.append({"code": _concept(_split(part)), **_value(column, value)})
    if components:
        resource["component"] = components
    elif "value" not in event.values:
        resource["dataAbsentReason"] = _concept(
            {"system": "http://terminology.hl7.org/CodeSystem/data-absent-reason", "code": "unknown"}
        )


def _medication(resource: Resource, event: Event) -> None:
    resource["status"] = "completed"
    resource["intent"] = "order"
    resource["medicationCodeableConcept"] = _code_of(event)
    resource["authoredOn"] = event.day.isoformat()


_FILL = {
    "Encounter": _encounter,
    "Condition": _condition,
    "Observation": _observation,
    "MedicationRequest": _medication,
}


def _code_of(event: Event) -> Resource:
    """What the resource is about: the row's own code, else the binding's first."""
    if "code" in event.values:
        return _concept(_coding(str(event.values["code"][1]), event.codes, ""))
    if event.codes:
        return _concept(_split(str(event.codes[0])))
    return {"text": "not said by the release"}


def _value(column: Column, value: Value) -> Resource:
    """`value[x]` by the column's kind."""
    if isinstance(column, BooleanColumn):
        return {"valueBoolean": value}
    if isinstance(value, int | float):
        unit = getattr(column, "unit", "")
        if not unit:
            return {"valueQuantity": {"value": value}}
        return {"valueQuantity": {"value": value, "unit": unit, "system": _UNITS, "code": unit}}
    if column.fhir is not None and column.fhir.values:
        return {"valueCodeableConcept": _concept(_coding(str(value), (), ""))}
    return {"valueString": str(value)}


def _coding(word: str, codes: tuple[object, ...], system: str) -> Resource:
    """A coding for `system|code`, or for a code alone, whose system is looked for among `codes`."""
    if "|" in word:
        return _split(word)
    full = next((str(one) for one in codes if str(one).rpartition("|")[2] == word), None)
    if full is not None:
        return _split(full)
    return {"system": system, "code": word} if system else {"code": word}


def _split(code: object) -> Resource:
    system, _, rest = str(code).rpartition("|")
    return {"system": system, "code": rest}


def _concept(coding: Resource) -> Resource:
    return {"coding": [coding]}
