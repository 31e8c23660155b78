"""The demo's patients are real, one row each, and lie in three hospitals that differ."""

import stat
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.encoding import encode_table
from models.study import Study
from server.demo import data

STUDY = Path(data.__file__).with_name("study.toml")


@pytest.fixture(scope="module")
def survey() -> pd.DataFrame:
    pytest.importorskip("linearmodels", reason="the extra fedtwin[demo] is not installed")
    return data.load_survey()


@pytest.fixture(scope="module")
def patients(survey) -> pd.DataFrame:
    return data.prepare_patients(survey)


@pytest.fixture(scope="module")
def sites(patients) -> dict[str, pd.DataFrame]:
    return data.split_by_site(patients)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.from_toml(STUDY.read_text())


def test_every_patient_is_at_exactly_one_hospital(patients, sites):
    everyone = pd.concat(sites.values())["patient_id"]
    assert sorted(everyone) == sorted(patients["patient_id"])
    assert everyone.is_unique


def test_the_split_is_the_same_on_every_machine(patients, sites):
    shuffled = data.split_by_site(patients.sample(frac=1, random_state=3))
    for name, rows in sites.items():
        assert set(shuffled[name]["patient_id"]) == set(rows["patient_id"])


def test_each_hospital_has_a_fair_part_and_they_serve_different_people(sites):
    sizes = [len(rows) for rows in sites.values()]
    assert min(sizes) > 0.2 * sum(sizes)
    for left, right in combinations(sites.values(), 2):
        ages = np.abs(left["age"].mean() - right["age"].mean()) > 2
        cities = np.abs(left["metropolitan"].mean() - right["metropolitan"].mean()) > 0.3
        assert ages or cities


def test_every_hospitals_table_fits_the_study(sites, study):
    for rows in sites.values():
        encoded = encode_table(rows, study.table)
        assert encoded.num_patients == encoded.num_records == len(rows)


def test_a_file_written_and_read_back_encodes_to_the_same_codes(sites, study, tmp_path):
    files = data.write_sites(sites, {name: tmp_path / name for name in sites})
    for name, file in files.items():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        read = encode_table(pd.read_csv(file, dtype=str, keep_default_na=False), study.table)
        assert (read.codes == encode_table(sites[name], study.table).codes).all()


def test_no_couple_returns_a_year_older(survey):
    """The extract carries no person's number, so this is the evidence that its rows are different people.

    It pools years of a survey that asks people for two years. Husbands and wives stand next to each other and
    share their income to the cent. Were they in it twice, then a couple with the same years of education,
    ethnicity and place would be found again with both ages one higher, far more often than with both ages
    shifted apart, which cannot be one couple.
    """
    traits = survey[["educyr", "female", "hisp", "black", "msa"]].apply(tuple, axis=1).to_numpy()
    income, married, age = (survey[name].to_numpy() for name in ("income", "marry", "age"))
    at = np.flatnonzero((income[1:] == income[:-1]) & (married[1:] == 1) & (married[:-1] == 1))
    couples = pd.DataFrame(
        {"row": at, "one": traits[at], "other": traits[at + 1], "age": age[at], "age_other": age[at + 1]}
    )
    rare = couples[couples.groupby(["one", "other"])["row"].transform("size") <= 12]

    def again(years: int, years_other: int) -> int:
        moved = rare.assign(age=rare["age"] + years, age_other=rare["age_other"] + years_other)
        pairs = rare.merge(moved, on=["one", "other", "age", "age_other"])
        return int((pairs["row_x"] > pairs["row_y"] + 1).sum())

    impossible = [
        again(3, 1),
        again(3, 0),
        again(-3, 0),
        again(2, -2),
        again(-2, 2),
        again(0, 3),
        again(1, 3),
    ]
    print(f"couples {len(rare)}, found a year older {again(1, 1)}, by chance {np.mean(impossible):.1f}")
    assert len(rare) > 500
    assert again(1, 1) <= 0.02 * len(rare)


def test_the_constraint_that_cohorts_obey_is_true_of_the_survey(patients, study):
    assert study.table.constraints == ("private_insurance or not employer_insurance",)
    assert (patients["private_insurance"] | ~patients["employer_insurance"]).all()
