"""From a study whose constraints hold sums to the files of a cohort: every row is checked as a reader finds it."""

from __future__ import annotations

import csv
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from in_process import InProcessLab

from models.study import Study
from server import cohorts, jobs, releases, runs
from server.cohorts import CohortRequest

torch.set_num_threads(1)

STUDY = """
name = "bills"
[privacy]
epsilon = 5.0
delta = 1e-5
[warm_start]
components = 20
[table]
constraints = [
    "total is missing or total == fees + drugs",
    "discharged == admitted + nights",
    "fees - 2 * drugs >= -600",
]
columns = [
    {name = "fees", kind = "continuous", minimum = 0, maximum = 900, bins = 8, decimals = 2},
    {name = "drugs", kind = "continuous", minimum = 0, maximum = 900, decimals = 1, scale = "log", log_floor = 5},
    {name = "total", kind = "continuous", minimum = 0, maximum = 1800, bins = 8, decimals = 2, missing = true},
    {name = "nights", kind = "integer", minimum = 0, maximum = 14},
    {name = "admitted", kind = "date", minimum = "2024-01-01", maximum = "2024-12-31", bins = 12},
    {name = "discharged", kind = "date", minimum = "2024-01-01", maximum = "2025-01-31", bins = 12},
]
"""


def patients(n: int, seed: int) -> pd.DataFrame:
    source = np.random.default_rng(seed)
    nights = source.integers(0, 15, n)
    fees = np.round(source.uniform(0, 40, n) * (nights + 1), 2)
    drugs = np.round(np.minimum(source.gamma(2, 30, n), fees / 2 + 300), 1)
    admitted = pd.Timestamp("2024-01-01") + pd.to_timedelta(source.integers(0, 366, n), unit="D")
    return pd.DataFrame(
        {
            "fees": fees,
            "drugs": drugs,
            "total": np.where(source.random(n) < 0.2, np.nan, np.round(fees + drugs, 2)),
            "nights": nights,
            "admitted": admitted,
            "discharged": admitted + pd.to_timedelta(nights, unit="D"),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    lab = InProcessLab(
        tmp_path_factory.mktemp("lab"),
        {name: patients(1_500, seed) for seed, name in enumerate(["ash", "birch"])},
    )
    lab.train(Study.from_toml(STUDY))
    release = releases.release_of_run(lab.store, runs.list_runs(lab.store)[0].id)
    releases.publish_release(lab.store, release.digest)
    request = CohortRequest(
        release=release.digest,
        num_patients=8_000,
        seed=4,
        conditions=({"sum": {"fees": 1, "drugs": 1}, "op": ">", "value": 50}, "nights >= 1"),
        formats=("csv", "parquet"),
    )
    made = cohorts.create_cohort(lab.store, request, owner="key-1")
    assert jobs.make_next(lab.store)
    assert cohorts.get_cohort(lab.store, made.id).state == "completed"
    yield lab.store.cohorts / made.id
    lab.store.close()


def test_every_row_of_the_csv_file_meets_every_constraint_and_condition(folder: Path) -> None:
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8_000
    missing = 0
    for row in rows:
        fees, drugs = Decimal(row["fees"]), Decimal(row["drugs"])
        missing += not row["total"]
        assert not row["total"] or Decimal(row["total"]) == fees + drugs
        stay = dt.date.fromisoformat(row["discharged"][:10]) - dt.date.fromisoformat(row["admitted"][:10])
        assert stay.days == int(row["nights"]) >= 1
        assert fees - 2 * drugs >= -600
        assert fees + drugs > 50
    assert 0.1 < missing / len(rows) < 0.3  # as at the sites: 0.2


def test_the_parquet_file_has_the_same_numbers(folder: Path) -> None:
    table = pq.read_table(folder / "cohort.parquet").to_pandas()
    told = table[table.total.notna()]
    cents = [np.rint(told[name].astype(float) * 100) for name in ("fees", "drugs", "total")]
    assert (cents[2] == cents[0] + cents[1]).all()


def test_the_certificate_names_what_was_asked_and_the_dictionary_what_every_row_satisfies(
    folder: Path,
) -> None:
    dictionary = json.loads((folder / "dictionary.json").read_text())
    assert "discharged == admitted + nights" in json.dumps(dictionary)
    page = (folder / "certificate.html").read_text()
    assert "fees + drugs &gt; 50" in page
