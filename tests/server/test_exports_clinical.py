"""FHIR and OMOP exports: what a study's bindings read from a hospital's records is what they read from a cohort."""

from __future__ import annotations

import csv
import datetime as dt
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import torch

from client.connectors import open_source
from client.connectors.settings import FhirSource, OmopSource
from models.decoding import decode_table
from models.schema import StudySchema
from server.exports.clinical import ClinicalPlan
from server.exports.context import ExportContext
from server.exports.fhir import FhirWriter, lacks_bindings
from server.exports.formats import FORMATS
from server.exports.omop import FIELDS, OmopWriter

LOINC, SNOMED = "http://loinc.org|", "http://snomed.info/sct|"
PRESSURE, SYSTOLIC, DIASTOLIC = f"{LOINC}85354-9", f"{LOINC}8480-6", f"{LOINC}8462-4"


def _column(name: str, kind: str, fhir: dict | None, omop: dict | None, **more) -> dict:
    bounds = {"minimum": 0, "maximum": 90} if kind in ("integer", "continuous") else {}
    return {"name": name, "kind": kind, "fhir": fhir, "omop": omop, **bounds, **more}


def _of(place: str, take: str, *codes: object, **more) -> dict:
    of_omop = place.islower()
    return {
        "table" if of_omop else "resource": place,
        "take": take,
        "concepts" if of_omop else "codes": codes,
        **more,
    }


COLUMNS = [
    _column(
        "sex",
        "categorical",
        {"resource": "Patient", "field": "gender", "values": {"female": "w", "male": "m", "unknown": "m"}},
        {"table": "person", "field": "gender", "values": {"8532": "w", "8507": "m"}},
        categories=["w", "m"],
        missing=True,
    ),
    _column("age", "integer", {"resource": "Patient", "field": "age"}, {"table": "person", "field": "age"}),
    _column(
        "diabetes",
        "boolean",
        _of("Condition", "present", f"{SNOMED}44054006", f"{SNOMED}73211009"),
        _of("condition_occurrence", "present", 201826),
    ),
    _column(
        "systolic",
        "continuous",
        _of("Observation", "last", PRESSURE, component=SYSTOLIC),
        _of("measurement", "last", 3004249, field="number", unit_concepts=[8876]),
        unit="mm[Hg]",
        missing=True,
    ),
    _column(
        "diastolic",
        "continuous",
        _of("Observation", "last", PRESSURE, component=DIASTOLIC),
        _of("measurement", "last", 3012888, field="number", unit_concepts=[8876]),
        unit="mm[Hg]",
        missing=True,
    ),
    _column(
        "smoker",
        "categorical",
        _of("Observation", "first", f"{LOINC}72166-2", values={"449868002": "yes", "8517006": "no"}),
        _of("observation", "first", 4275495, field="concept", values={"4298794": "yes", "4144272": "no"}),
        categories=["yes", "no"],
        missing=True,
    ),
    _column("drugs", "integer", _of("MedicationRequest", "count"), _of("drug_exposure", "count"), bins=91),
    _column("visits", "integer", _of("Encounter", "count"), _of("visit_occurrence", "count"), minimum=1),
    _column(
        "stay",
        "integer",
        _of("Encounter", "last", field="days"),
        _of("visit_occurrence", "last", field="days"),
    ),
    _column(
        "diagnosed",
        "date",
        _of("Condition", "first", f"{SNOMED}38341003"),
        _of("condition_occurrence", "first", 316866),
        minimum="1990-01-01",
        maximum="2020-12-31",
        missing=True,
    ),
    _column("note", "categorical", None, None, categories=["=1+1", "b"]),
]


def _schema(columns: list[dict], **settings) -> StudySchema:
    # As a study file gives it: TOML and JSON know lists, the mapping's tuples come of them.
    return StudySchema.model_validate_json(
        json.dumps({"patient_id": "patient", "columns": columns, **settings})
    )


def _context(schema: StudySchema, **more) -> ExportContext:
    values = {
        "release": "sha256:" + "4f" * 32,
        "study": "heart",
        "study_title": "Heart",
        "study_digest": "sha256:" + "5e" * 32,
        "schema": schema,
        "columns": schema.names,
        "draw": "0123456789ab",
        "released_on": dt.date(2026, 3, 1),
    }
    return ExportContext(**{**values, **more})


def _table(schema: StudySchema, n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    codes = np.stack([rng.integers(0, size, n) for size in schema.cardinalities], axis=1)
    return decode_table(torch.from_numpy(codes), schema, rng=rng)


def _write(writer, table: pd.DataFrame, parts: int = 2) -> None:
    for part in np.array_split(np.arange(len(table)), parts):
        writer.write(table.iloc[part].reset_index(drop=True), None)
    writer.close()


def _read(source, schema: StudySchema) -> pd.DataFrame:
    return pd.concat(list(open_source(source).chunks(schema)), ignore_index=True)


def _same(found: pd.Series, drawn: pd.Series) -> None:
    for read, value in zip(found, drawn, strict=True):
        if pd.isna(value):
            assert read is None or pd.isna(read), found.name
        elif isinstance(value, pd.Timestamp):
            assert str(read)[:10] == str(value.date())
        elif isinstance(value, float):
            assert float(read) == pytest.approx(value), found.name
        else:
            assert read == value or str(read) == str(value), found.name


def _load_omop(folder: Path, url: str) -> None:
    """As a loader does: the CDM's tables with the files' columns, an empty field as NULL."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for file in sorted((folder / "omop").glob("*.csv")):
            pd.read_csv(file).to_sql(file.stem, connection, index=False)
        connection.execute(
            sa.text("CREATE TABLE concept_ancestor (ancestor_concept_id INT, descendant_concept_id INT)")
        )
    engine.dispose()


def test_a_site_reads_from_a_fhir_export_what_was_drawn(tmp_path: Path) -> None:
    schema = _schema(COLUMNS)
    table = _table(schema)
    _write(FhirWriter(tmp_path, _context(schema)), table)
    carried = _schema([column for column in COLUMNS if column["fhir"]])
    found = _read(FhirSource(kind="fhir", path=tmp_path / "fhir"), carried)
    assert len(found) == len(table)
    for name in carried.names:
        _same(found[name], table[name])


def test_a_site_reads_from_an_omop_export_what_was_drawn(tmp_path: Path) -> None:
    schema = _schema(COLUMNS)
    table = _table(schema)
    _write(OmopWriter(tmp_path, _context(schema)), table)
    url = f"sqlite:///{tmp_path / 'cdm.db'}"
    _load_omop(tmp_path, url)
    carried = _schema([column for column in COLUMNS if column["omop"]])
    found = _read(OmopSource(kind="omop", url=url), carried)
    for name in carried.names:
        _same(found[name], table[name])


VISIT_COLUMNS = [
    COLUMNS[1],
    _column(
        "type",
        "categorical",
        _of("Encounter", "last", values={"IMP": "in", "AMB": "out"}),
        _of("visit_occurrence", "last", values={"9201": "in", "9202": "out"}),
        categories=["in", "out"],
    ),
    COLUMNS[8],
    COLUMNS[2],
    COLUMNS[3],
]


def test_a_row_that_is_a_visit_becomes_one_patient_with_one_visit(tmp_path: Path) -> None:
    schema = _schema(VISIT_COLUMNS, rows="visit")
    table = _table(schema)
    _write(FhirWriter(tmp_path, _context(schema)), table)
    _write(OmopWriter(tmp_path, _context(schema)), table)
    url = f"sqlite:///{tmp_path / 'cdm.db'}"
    _load_omop(tmp_path, url)
    for source in (FhirSource(kind="fhir", path=tmp_path / "fhir"), OmopSource(kind="omop", url=url)):
        found = _read(source, schema)
        assert found["patient"].is_unique
        for name in schema.names:
            _same(found[name], table[name])


def test_every_resource_is_valid_fhir_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    pytest.importorskip("fhir.resources", reason="fhir.resources is in the dev extra")
    schema = _schema(COLUMNS)
    _write(FhirWriter(tmp_path, _context(schema)), _table(schema, 40))
    ids: set[tuple[str, str]] = set()
    referred: set[str] = set()
    for file in sorted((tmp_path / "fhir").iterdir()):
        model = _model(file.stem)
        for line in file.read_text().splitlines():
            resource = json.loads(line)
            model.model_validate_json(line)
            assert resource["meta"]["security"][0]["code"] == "HTEST"
            assert resource["meta"]["tag"][0]["code"] == "synthetic"
            assert (resource["resourceType"], resource["id"]) not in ids
            ids.add((resource["resourceType"], resource["id"]))
            if resource["resourceType"] == "Patient":
                assert resource["name"][0]["family"] == "Synthetic"
            else:
                referred.add(resource["subject"]["reference"].removeprefix("Patient/"))
    patients = {name for kind, name in ids if kind == "Patient"}
    assert len(patients) == 40
    assert referred <= patients
    assert {file.stem for file in (tmp_path / "fhir").iterdir()} == {
        "Patient",
        "Condition",
        "Observation",
        "MedicationRequest",
        "Encounter",
    }


def _model(kind: str):
    """The model of the R4 family; the package's own default is R5."""
    return getattr(import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)


def test_omop_tables_have_the_fields_of_the_cdm_and_refer_to_each_other(tmp_path: Path) -> None:
    schema = _schema(COLUMNS)
    _write(OmopWriter(tmp_path, _context(schema)), _table(schema, 50))
    tables = {}
    for name, fields in FIELDS.items():
        with (tmp_path / "omop" / f"{name}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            tables[name] = list(reader)
            assert tuple(reader.fieldnames or ()) == fields
    persons = {row["person_id"] for row in tables["person"]}
    assert len(persons) == 50
    assert all(row["person_source_value"].startswith("synthetic-") for row in tables["person"])
    (source,) = tables["cdm_source"]
    assert "SYNTHETIC" in source["cdm_source_name"]
    assert (source["cdm_version"], len(source["cdm_source_abbreviation"]) <= 25) == ("5.4", True)
    assert len(source["vocabulary_version"]) <= 20
    periods = {row["person_id"]: row for row in tables["observation_period"]}
    for name in ("visit_occurrence", "condition_occurrence", "drug_exposure", "measurement", "observation"):
        assert tables[name], name
        keys = [row[f"{name}_id"] for row in tables[name]]
        assert len(set(keys)) == len(keys)
        assert {row["person_id"] for row in tables[name]} <= persons
        start = next(field for field in FIELDS[name] if field.endswith("_date"))
        for row in tables[name]:
            period = periods[row["person_id"]]
            assert period["observation_period_start_date"] <= row[start]
            assert row[start] <= period["observation_period_end_date"]


def test_a_study_without_bindings_says_why_and_what_to_do() -> None:
    schema = _schema([_column("age", "integer", None, None)])
    for name in ("fhir", "omop"):
        reason = FORMATS[name].missing(_context(schema))
        assert reason is not None
        assert "no column of the study says" in reason
        assert "csv" in reason
    bound = _schema(COLUMNS)
    assert lacks_bindings(_context(bound)) is None
    assert lacks_bindings(_context(bound, columns=("note",))) is not None


def test_what_a_format_cannot_carry_is_named_with_the_reason() -> None:
    columns = [
        *COLUMNS,
        {**COLUMNS[0], "name": "sex again"},
        _column("highest", "continuous", _of("Observation", "highest", PRESSURE, component=SYSTOLIC), None),
        _column("operation", "boolean", _of("Procedure", "present", f"{SNOMED}1"), None),
    ]
    reasons = ClinicalPlan(_context(_schema(columns)), "fhir").left_out
    assert set(reasons) == {"note", "sex again", "highest", "operation"}
    assert "'sex' fills the patient's gender already" in reasons["sex again"]
    assert "takes last of the same records" in reasons["highest"]


def test_patients_of_two_draws_never_share_a_name(tmp_path: Path) -> None:
    schema = _schema(COLUMNS)
    names = []
    for draw in ("0123456789ab", "0123456789ac"):
        folder = tmp_path / draw
        folder.mkdir()
        _write(FhirWriter(folder, _context(schema, draw=draw)), _table(schema, 5))
        names.append({json.loads(line)["id"] for line in (folder / "fhir" / "Patient.ndjson").open()})
    assert not names[0] & names[1]
