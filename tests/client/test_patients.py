"""Loading patients: the same table in memory and on disk, one unit per patient, nothing left behind."""

from __future__ import annotations

import os
import stat

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import torch
from pydantic import TypeAdapter

from client.connectors import DataSourceError
from client.connectors.settings import DataSettings, SqlSource
from client.home import SiteHome
from client.patients import PatientDraws, PatientTables, load_patients
from models.encoding import TableEncoder, encode_table
from models.faults import TableFaultsError
from models.moments import MomentLayout
from models.schema import StudySchema
from models.study import PrivacySettings, Study
from privacy.noise import SystemNoise
from privacy.signing import SigningKey

torch.set_num_threads(1)


class FixedNoise:
    """Uniforms from a seed, so that a test can say what is drawn."""

    kind = "test"

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, n: int) -> torch.Tensor:
        return torch.rand(n, generator=self._generator, dtype=torch.float64)


def schema_with(**settings) -> StudySchema:
    return StudySchema.model_validate(
        {
            "columns": [
                {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99},
                {"name": "sex", "kind": "categorical", "categories": ["f", "m"], "missing": True},
            ],
            **settings,
        }
    )


def study(**settings) -> Study:
    budget = PrivacySettings(epsilon=1.0, delta=1e-5)
    return Study(name="made-up", privacy=budget, table=schema_with(**settings))


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "patient": [f"p{n}" for n in rng.integers(0, 300, 900)],
            "age": rng.integers(0, 100, 900),
            "sex": rng.choice(["f", "m", None], 900),
        }
    )


@pytest.fixture
def site(tmp_path, table) -> SiteHome:
    table.to_csv(tmp_path / "patients.csv", index=False)
    return SiteHome.create(
        tmp_path / "site",
        name="north",
        superlink_address="localhost:9000",
        ca_certificate=b"",
        coordinator_key=SigningKey.generate(name="lab").public.text,
        data_path=tmp_path / "patients.csv",
    )


def test_a_table_on_disk_is_the_table_in_memory(site, table):
    asked = study(patient_id="patient", max_records_per_patient=20)
    schema = asked.table
    expected = encode_table(table, schema)
    held = load_patients(site, asked)
    mapped = load_patients(site, asked, spill_bytes=100)
    for found in (held, mapped):
        assert found.codes.dtype == torch.uint8
        assert torch.equal(found.codes.long(), expected.codes)
        assert torch.equal(found.patient_offsets, expected.patient_offsets)
    layout = MomentLayout(schema.cardinalities)
    assert torch.allclose(layout.sum(mapped), layout.sum(expected), atol=1e-9)
    draws = [
        PatientDraws(table, schema.cardinalities, FixedNoise()).gather(torch.tensor([5, 0, 5]))
        for table in (expected, mapped)
    ]
    assert torch.equal(*draws)
    everybody = torch.arange(mapped.num_patients)
    assert mapped.one_record_each(everybody, torch.zeros(len(everybody))).dtype == torch.int64


def test_the_file_is_private_mapped_again_and_gone_when_the_data_changed(site, table):
    asked = study()
    load_patients(site, asked, spill_bytes=100)
    [file] = (site.state / "tables").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = file.stat().st_mtime_ns
    load_patients(site, asked, spill_bytes=100)
    assert [other.stat().st_mtime_ns for other in (site.state / "tables").iterdir()] == [written]
    table.head(500).to_csv(site.data.path, index=False)
    assert load_patients(site, asked, spill_bytes=100).num_records == 500
    [newer] = (site.state / "tables").iterdir()
    assert newer.name != file.name
    load_patients(site, study(label="sex"))
    assert list((site.state / "tables").iterdir()) == []


@pytest.mark.parametrize("end", [b"", b"\xff" * 8, (2**62).to_bytes(8, "little"), bytes(8)])
def test_a_file_that_is_not_whole_is_not_believed(site, end):
    asked = study()
    expected = load_patients(site, asked, spill_bytes=100).codes.clone()
    [file] = (site.state / "tables").iterdir()
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 8)
        opened.seek(0, os.SEEK_END)
        opened.write(end)
    assert torch.equal(load_patients(site, asked, spill_bytes=100).codes, expected)


def test_a_fault_leaves_no_file_and_a_crash_leftover_goes(site, table):
    table.loc[850, "age"] = 150
    table.to_csv(site.data.path, index=False)
    folder = site.state / "tables"
    folder.mkdir()
    (folder / "999999999-abc.draft").write_bytes(b"left by a crash")
    (folder / f"{os.getpid()}-abc.draft").write_bytes(b"in hand")
    with pytest.raises(TableFaultsError, match="row 852, column 'age'"):
        load_patients(site, study(), spill_bytes=100)
    assert [file.name for file in folder.iterdir()] == [f"{os.getpid()}-abc.draft"]


def test_too_many_records_are_refused_or_sampled_as_the_study_says(site, table):
    most = 2
    with pytest.raises(TableFaultsError, match="the study allows 2"):
        load_patients(site, study(patient_id="patient", max_records_per_patient=most))
    asked = study(patient_id="patient", max_records_per_patient=most, records_beyond="sample")
    sampled = load_patients(site, asked, noise=FixedNoise(1))
    counts = table.groupby("patient", sort=False).size()
    assert sampled.patient_offsets.diff().tolist() == counts.clip(upper=most).tolist()
    everything = load_patients(site, study(patient_id="patient", max_records_per_patient=20))
    for patient in range(0, sampled.num_patients, 37):
        one = torch.tensor([patient])
        kept, all_rows = sampled.select(one).codes.tolist(), everything.select(one).codes.tolist()
        assert all(all_rows.count(row) >= kept.count(row) for row in kept)
    other = load_patients(site, asked, noise=FixedNoise(2))
    assert not torch.equal(sampled.codes, other.codes)


def test_each_record_of_a_patient_is_kept_equally_often():
    frame = pd.DataFrame({"patient": ["a"] * 4 + ["b"], "age": [0, 25, 50, 75, 99], "sex": ["f"] * 5})
    schema = schema_with(patient_id="patient", max_records_per_patient=1, records_beyond="sample")
    noise, encoder = FixedNoise(3), TableEncoder(schema)
    ages = encoder.encode(frame)[:, 0]
    kept = [ages[encoder.group(lambda n: noise.uniform(n).numpy())[0][0]] for _ in range(2000)]
    shares = np.unique(kept, return_counts=True)[1] / 2000
    assert len(shares) == 4
    assert abs(shares - 0.25).max() < 0.05


def test_sampling_moves_the_moments_by_one_patient_at_most():
    """One patient with 50 records more or less, whatever is sampled of them, stays within the sensitivity."""
    rng = np.random.default_rng(5)
    schema = schema_with(patient_id="patient", max_records_per_patient=3, records_beyond="sample")
    others = pd.DataFrame({"patient": range(40), "age": rng.integers(0, 100, 40), "sex": "f"})
    one = pd.DataFrame({"patient": "x", "age": rng.integers(0, 100, 50), "sex": "m"})
    layout = MomentLayout(schema.cardinalities)
    noise = FixedNoise(4)
    without = layout.sum(encode_table(others, schema))
    for _ in range(20):
        both = encode_table(pd.concat([one, others]), schema, uniforms=lambda n: noise.uniform(n).numpy())
        assert float((layout.sum(both) - without).norm()) <= layout.sensitivity + 1e-9


def test_identifiers_that_differ_in_spaces_are_one_patient(site):
    site.data.path.write_text('patient,age,sex\np1,1,f\n"p1 ",2,f\n p1,3,m\n')
    asked = study(patient_id="patient", max_records_per_patient=3)
    assert load_patients(site, asked).num_patients == 1


def test_a_declared_patient_column_that_the_study_ignores_is_refused(site):
    data = site.data.model_copy(update={"patient_id": "patient"})
    object.__setattr__(site, "data", data)
    with pytest.raises(DataSourceError, match="rows of one patient would count as several"):
        load_patients(site, study())


def test_tables_are_read_again_only_when_the_data_changed(site, table):
    tables = PatientTables(site, SystemNoise())
    first = tables.load(study(), run="run-1")
    assert tables.load(study(), run="run-2") is first
    table.head(10).to_csv(site.data.path, index=False)
    second = tables.load(study(), run="run-2")
    assert second.table.num_records == 10
    assert second.fingerprint != first.fingerprint


def test_a_database_is_read_once_per_run_and_leaves_nothing_otherwise(site, table):
    file = site.path / "patients.db"
    engine = sa.create_engine(f"sqlite:///{file}")
    table.to_sql("patients", engine, index=False)
    settings = {"kind": "sql", "url": "sqlite:///patients.db", "query": "SELECT * FROM patients"}
    data = TypeAdapter(DataSettings).validate_python(settings).within(site.path)
    object.__setattr__(site, "data", data)
    tables = PatientTables(site, SystemNoise())
    first = tables.load(study(), run="run-1")
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM patients WHERE age > 50"))
    engine.dispose()
    assert tables.load(study(), run="run-1") is first
    second = tables.load(study(), run="run-2")
    assert second.table.num_records == (table["age"] <= 50).sum()
    assert second.fingerprint != first.fingerprint
    load_patients(site, study(), occasion="run-2", spill_bytes=100)
    assert len(list((site.state / "tables").iterdir())) == 1
    assert load_patients(site, study(), spill_bytes=100).num_records == second.table.num_records
    assert list((site.state / "tables").iterdir()) == []


def test_a_fault_in_a_database_names_the_patient(site, table):
    file = site.path / "patients.db"
    engine = sa.create_engine(f"sqlite:///{file}")
    table.assign(age=table["age"].where(table.index != 5, 150)).to_sql("patients", engine, index=False)
    engine.dispose()
    query = "SELECT patient, age, sex FROM patients"
    data = SqlSource(kind="sql", url=f"sqlite:///{file}", query=query, patient_id="patient")
    object.__setattr__(site, "data", data)
    with pytest.raises(
        TableFaultsError, match=f"column 'age': patient '{table['patient'][5]}': 150 lies outside"
    ):
        load_patients(site, study(patient_id="patient", max_records_per_patient=20))
