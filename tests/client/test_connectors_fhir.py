"""FHIR as a source: the mapping's words become columns, faults name file and line, real exports are read."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from client.connectors import DataSourceError, open_source
from client.connectors.settings import FhirSource
from models.encoding import encode_table
from models.faults import TableFaultsError
from models.schema import StudySchema

LOINC, SNOMED = "http://loinc.org|", "http://snomed.info/sct|"


def of_patient(field: str, **more) -> dict:
    return {"resource": "Patient", "field": field, **more}


def of(resource: str, take: str, *codes: str, **more) -> dict:
    return {"resource": resource, "take": take, "codes": list(codes), **more}


def number(name: str, fhir: dict, **more) -> dict:
    return {
        "name": name,
        "kind": "continuous",
        "minimum": 0,
        "maximum": 1000,
        "missing": True,
        "fhir": fhir,
        **more,
    }


def schema(*columns: dict, **settings) -> StudySchema:
    return StudySchema.model_validate({"patient_id": "patient", "columns": list(columns), **settings})


def observation(patient: str, day: str | None, code: str, value: float | None, **more) -> dict:
    found = {
        "resourceType": "Observation",
        "status": "final",
        "subject": {"reference": f"Patient/{patient}"},
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        **({} if day is None else {"effectiveDateTime": day}),
        **({} if value is None else {"valueQuantity": {"value": value, "unit": "mg/dL", "code": "mg/dL"}}),
    }
    return {**found, **more}


PATIENTS = [
    {"resourceType": "Patient", "id": "a", "gender": "female", "birthDate": "1980-06-15"},
    {
        "resourceType": "Patient",
        "id": "b",
        "gender": "male",
        "birthDate": "1975",
        "deceasedDateTime": "2021-01-01",
    },
]
RESULTS = [
    observation("a", "2020-03-01", "1", 110),
    observation("a", "2020-03-02T01:00:00+05:00", "1", 120),  # the first of March, 20:00 UTC
    observation("a", "2020-03-01T23:00:00Z", "1", 130),
    observation("a", "2020-04-01", "1", None),
    observation("a", "2020-05-01", "1", 999, status="entered-in-error"),
    observation("a", "2020-05-01", "2", 7),
    observation("b", "2020", "1", 90),
]
ENCOUNTERS = [
    {
        "resourceType": "Encounter",
        "id": f"e{n}",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": kind},
        "subject": {"reference": f"http://ehr.example/fhir/Patient/{patient}/_history/2"},
        "period": {"start": start, "end": end},
    }
    for n, (patient, kind, start, end) in enumerate(
        [
            ("a", "AMB", "2020-06-14", "2020-06-14"),
            ("a", "IMP", "2020-06-15", "2020-06-20"),
            ("b", "AMB", "2021", "2021"),
        ]
    )
]


def export(folder: Path, **files: list[dict]) -> Path:
    for name, resources in {
        "Patient": PATIENTS,
        "Observation": RESULTS,
        "Encounter": ENCOUNTERS,
        **files,
    }.items():
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return folder


def read(path: Path, study: StudySchema) -> pd.DataFrame:
    return pd.concat(open_source(FhirSource(kind="fhir", path=path)).chunks(study), ignore_index=True)


def test_each_take_says_what_its_name_says(tmp_path):
    takes = ["first", "last", "lowest", "highest", "mean", "count", "present"]
    study = schema(*(number(take, of("Observation", take, LOINC + "1")) for take in takes))
    found = read(export(tmp_path), study)
    assert found["patient"].tolist() == ["a", "b"]
    assert found.loc[0, takes].tolist() == [110, 130, 110, 130, 120, 4, True]
    assert found.loc[1, takes].tolist() == [90, 90, 90, 90, 90, 1, True]


def test_without_a_record_counts_are_zero_and_values_missing(tmp_path):
    takes = ["first", "mean", "count", "present"]
    study = schema(*(number(take, of("Observation", take, LOINC + "2")) for take in takes))
    assert read(export(tmp_path), study).loc[1, takes].tolist() == [None, None, 0, False]


def test_patients_ages_and_dates(tmp_path):
    study = schema(
        {"name": "sex", "kind": "categorical", "categories": ["f", "m"],
         "fhir": of_patient("gender", values={"female": "f", "male": "m"})},
        number("then", of_patient("age", at="2020-06-14")),
        number("seen", of_patient("age")),
        {"name": "died", "kind": "boolean", "fhir": of_patient("deceased")},
        {"name": "day", "kind": "date", "minimum": "2000-01-01", "maximum": "2030-01-01",
         "fhir": of("Encounter", "last")},
        {"name": "kind", "kind": "categorical", "categories": ["AMB", "IMP"], "fhir": of("Encounter", "last")},
        number("days", of("Encounter", "highest", field="days")),
    )  # fmt: skip
    found = read(export(tmp_path), study).drop(columns="patient")
    assert found.loc[0].tolist() == ["f", 39, 40, False, "2020-06-15", "IMP", 5]
    assert found.loc[1].tolist() == ["m", 45, 46, True, "2021", "AMB", 0]


def test_a_table_of_visits_has_a_row_for_each_and_keeps_whose_it_is(tmp_path):
    within = {"encounter": {"reference": "Encounter/e1"}}
    results = [*RESULTS, observation("a", "2020-06-16", "1", 55, **within)]
    study = schema(
        number("result", of("Observation", "last", LOINC + "1")),
        number("age", of_patient("age")),
        rows="visit",
        max_records_per_patient=2,
    )
    found = read(export(tmp_path, Observation=results), study)
    assert found["patient"].tolist() == ["a", "a", "b"]
    assert found["result"].tolist() == [None, 55, None]
    assert found["age"].tolist() == [39, 40, 46]
    assert encode_table(found, study).num_patients == 2


BAD = {
    "unit": (
        observation("a", "2020", "1", 5, valueQuantity={"value": 5, "code": "mmol/L"}),
        "the unit is 'mmol/L'",
    ),
    "undated": (observation("a", None, "1", 5), "has no date"),
    "stranger": (observation("z", "2020", "1", 5), "a patient who is not in this export"),
    "nobody": (observation("a", "2020", "1", 5, subject={"display": "A"}), "which patient"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named_by_file_and_line(tmp_path, bad, said):
    study = schema(number("result", of("Observation", "last", LOINC + "1"), unit="mg/dL"))
    with pytest.raises(TableFaultsError, match=rf"Observation\.ndjson line 8: .*{said}"):
        read(export(tmp_path, Observation=[*RESULTS, bad]), study)


def test_a_code_that_the_study_has_no_word_for_is_a_fault(tmp_path):
    study = schema(
        {
            "name": "sex",
            "kind": "categorical",
            "categories": ["f"],
            "fhir": of_patient("gender", values={"female": "f"}),
        }
    )
    with pytest.raises(TableFaultsError, match=r"column 'sex': Patient.ndjson line 2: 'male' is not among"):
        read(export(tmp_path), study)


def test_a_patient_who_stands_twice_and_a_column_without_mapping_are_refused(tmp_path):
    study = schema(number("result", of("Observation", "last", LOINC + "1")))
    with pytest.raises(TableFaultsError, match="line 3: this Patient was read before"):
        read(export(tmp_path, Patient=[*PATIENTS, PATIENTS[0]]), study)
    unmapped = schema({"name": "plain", "kind": "boolean"})
    with pytest.raises(
        TableFaultsError, match="column 'plain': the study does not say what fills it from fhir"
    ):
        read(tmp_path, unmapped)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is no FHIR resource"),
        ('{"resourceType": "Observation", "subject": {"reference": "Patient/a"}, "component": 5, "code": 3,'
         ' "effectiveDateTime": "2020"}', "shaped as FHIR"),
    ],
)  # fmt: skip
def test_what_is_not_fhir_is_refused(tmp_path, line, said):
    export(tmp_path)
    (tmp_path / "Observation.ndjson").write_text(line + "\n")
    study = schema(number("result", of("Observation", "last", component=LOINC + "1")))
    with pytest.raises(DataSourceError, match=said):
        read(tmp_path, study)


def test_a_folder_without_an_export_or_without_patients_is_refused(tmp_path):
    study = schema(number("result", of("Observation", "last", LOINC + "1")))
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataSourceError, match="folder"):
            read(path, study)
    (tmp_path / "Observation.ndjson").write_text("")
    with pytest.raises(DataSourceError, match=r"no Patient\.ndjson"):
        read(tmp_path, study)
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(DataSourceError, match="tar archive"):
        read(tmp_path / "x.tar.gz", study)


def test_stamp_and_fingerprint_change_with_any_file(tmp_path):
    source = open_source(FhirSource(kind="fhir", path=export(tmp_path)))
    before = source.stamp(), source.fingerprint(b"s" * 32)
    with gzip.open(tmp_path / "Condition.ndjson.gz", "wt") as file:
        file.write("{}\n")
    after = source.stamp(), source.fingerprint(b"s" * 32)
    assert before[0] != after[0]
    assert before[1] != after[1]


REAL = schema(
    {"name": "sex", "kind": "categorical", "categories": ["female", "male"], "fhir": of_patient("gender")},
    {"name": "age", "kind": "integer", "minimum": 0, "maximum": 120, "fhir": of_patient("age", at="2022-05-01")},
    {"name": "died", "kind": "boolean", "fhir": of_patient("deceased")},
    number("hba1c", of("Observation", "last", LOINC + "4548-4"), unit="%"),
    number("systolic", of("Observation", "mean", LOINC + "55284-4", component=LOINC + "8480-6"), unit="mm[Hg]"),
    {"name": "smoker", "kind": "categorical", "categories": ["never", "former", "current"], "missing": True,
     "fhir": of("Observation", "last", LOINC + "72166-2",
                values={"266919005": "never", "8517006": "former", "449868002": "current"})},
    {"name": "prediabetes", "kind": "boolean", "fhir": of("Condition", "present", SNOMED + "15777000")},
    number("visits", of("Encounter", "count")),
    number("drugs", of("MedicationRequest", "count")),
)  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Twenty real Synthea patients as Bundles in an archive, and their entries."""
    folder = os.environ.get("FEDTWIN_DATA")
    found = sorted(Path(folder, "synthea_fhir").glob("*.tar.gz")) if folder else []
    if not found:
        pytest.skip("FEDTWIN_DATA/synthea_fhir is absent")
    path, entries = tmp_path_factory.mktemp("synthea") / "some.tar.gz", []
    with tarfile.open(found[0]) as everything, tarfile.open(path, "w:gz") as some:
        for member in everything:
            data = everything.extractfile(member)
            if data is None or not member.name.endswith(".json") or len(some.getmembers()) == 20:
                continue
            content = data.read()
            some.addfile(member, io.BytesIO(content))
            entries += json.loads(content)["entry"]
    return path, entries


def test_real_bundles_and_the_same_as_bulk_data_give_one_table(bundles, tmp_path):
    path, entries = bundles
    from_bundles = read(path, REAL)
    by_type = defaultdict(list)
    for entry in entries:
        by_type[entry["resource"]["resourceType"]].append(entry["resource"])
    for name, resources in by_type.items():
        with gzip.open(tmp_path / f"{name}.000.ndjson.gz", "wt") as file:
            file.writelines(json.dumps(resource) + "\n" for resource in resources)
    pd.testing.assert_frame_equal(read(tmp_path, REAL), from_bundles)
    assert len(from_bundles) == len(by_type["Patient"]) >= 18
    assert from_bundles["visits"].sum() == len(by_type["Encounter"])
    assert from_bundles["hba1c"].notna().any()
    assert from_bundles["systolic"].between(80, 220).all()
    assert encode_table(from_bundles, REAL).num_patients == len(from_bundles)


def test_real_visits_belong_to_their_patients(bundles):
    path, entries = bundles
    study = schema(
        number("systolic", of("Observation", "last", LOINC + "55284-4", component=LOINC + "8480-6")),
        number("ill", of("Condition", "count")),
        rows="visit",
        max_records_per_patient=500,
    )
    found = read(path, study)
    table = encode_table(found, study)
    assert table.num_records == sum(entry["resource"]["resourceType"] == "Encounter" for entry in entries)
    assert table.num_patients < table.num_records
    assert found["ill"].sum() == sum(entry["resource"]["resourceType"] == "Condition" for entry in entries)
