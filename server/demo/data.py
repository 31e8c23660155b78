"""The demo's patients: a real survey extract, split into three hospitals that differ.

Source: the Medical Expenditure Panel Survey extract that ships inside `linearmodels`
(`linearmodels.datasets.meps`): 10,391 Americans of 65 and over who bought prescription drugs, public-use
data of the Agency for Healthcare Research and Quality, as used in Cameron and Trivedi, Microeconometrics
Using Stata, chapter 6. One row is one person.

Why not `statsmodels.datasets.randhie`: its rows are person-YEARS without a person's number, so up to five
rows are one person and nobody can say which. The privacy unit here is a patient, and a guarantee per row
would not be one per patient. docs/decisions/0002-demo-data.md has the check that this extract repeats nobody.

The split is deterministic and invented: the survey has no hospitals. It makes parts that differ, as those
of real hospitals do, so that no site alone sees the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

SITES = ("lakeside", "hillcrest", "northgate")
SPLIT_KEY = 2026  # of the invented split only; nothing on the DP path has a seed


def load_survey() -> pd.DataFrame:
    """The extract as it ships, shape (10391, 29).

    Raises:
        ModuleNotFoundError: linearmodels is absent; it comes with the extra `fedtwin[demo]`.
    """
    from linearmodels.datasets import meps

    return meps.load()


def prepare_patients(survey: pd.DataFrame) -> pd.DataFrame:
    """Name the survey's columns and levels as `study.toml` does; nothing is computed from several rows.

    An income of 0 or less (a loss) stays as it is; the study clips it to its public bounds. Where a person
    is both black and hispanic the category says so. `patient_id` is made up; the study never learns it.

    Args:
        survey: as `load_survey` returns it, shape (P, 29).

    Returns:
        One row per person, shape (P, 15), in the survey's order.
    """
    black, hispanic = survey["black"] == 1, survey["hisp"] == 1
    health = _first_true(
        {
            "poor": survey["poor"],
            "fair": survey["fair"],
            "good": survey["good"],
            "very_good": survey["vegood"],
        },
        otherwise="excellent",
    )
    income_group = _first_true(
        {"poor": survey["poverty"], "low": survey["lowincome"], "middle": survey["midincome"]},
        otherwise="high",
    )
    return pd.DataFrame(
        {
            "patient_id": [f"P{row:05d}" for row in range(1, len(survey) + 1)],
            "age": survey["age"].astype(int),
            "sex": np.where(survey["female"] == 1, "female", "male"),
            "ethnicity": np.select(
                [black & hispanic, black, hispanic], ["black_hispanic", "black", "hispanic"], default="other"
            ),
            "education_years": survey["educyr"].astype(int),
            "married": survey["marry"] == 1,
            "metropolitan": survey["msa"] == 1,
            "income_group": income_group,
            "income_thousands": survey["income"].round(3),
            "private_insurance": survey["private"] == 1,
            "employer_insurance": survey["hi_empunion"] == 1,
            "health": health,
            "chronic_conditions": survey["totchr"].astype(int),
            "priority_condition": survey["priolist"] == 1,
            "drug_expenditure": survey["drugexp"].astype(int),
        }
    )


def split_by_site(patients: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Give every patient to exactly one of three hospitals that serve different people.

    lakeside is a city hospital with younger patients, hillcrest rural, northgate sees the old and the sick.

    Args:
        patients: as `prepare_patients` returns it.

    Returns:
        Site name to its rows; disjoint, together all, the same on every machine.
    """
    age = (patients["age"] - 75) / 7
    sick = patients["chronic_conditions"] - 2 + (patients["health"].isin(["poor", "fair"])).astype(float)
    city = patients["metropolitan"].astype(float)
    affinity = np.stack(
        [1.2 * city - 0.8 * age - 0.3 * sick, 2.4 - 3.0 * city, 0.9 * age + 0.7 * sick], axis=1
    )
    draw = np.array([_unit_interval(patient) for patient in patients["patient_id"]])
    odds = np.exp(affinity)  # (P, 3)
    site = (draw[:, None] > np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)[:, :2]).sum(axis=1)
    return {name: patients[site == index].reset_index(drop=True) for index, name in enumerate(SITES)}


def write_sites(patients: Mapping[str, pd.DataFrame], folders: Mapping[str, Path]) -> dict[str, Path]:
    """Write each hospital's `patients.csv` into its own folder, readable by its owner only.

    Returns:
        Site name to the file.
    """
    files = {}
    for name, rows in patients.items():
        files[name] = folders[name] / "patients.csv"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(files[name], index=False)
        files[name].chmod(0o600)
    return files


def _first_true(flags: Mapping[str, pd.Series], *, otherwise: str) -> np.ndarray:
    return np.select([flag == 1 for flag in flags.values()], list(flags), default=otherwise)


def _unit_interval(patient: str) -> float:
    digest = hashlib.sha256(f"{SPLIT_KEY}:{patient}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
