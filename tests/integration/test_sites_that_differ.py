"""A run over hospitals whose patients differ, through the product: each has a part of the release if it may."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from models.study import Study
from server import runs

STUDY = """
name = "unlike"
[privacy]
epsilon = 4.0
delta = 1e-5
[measure]
noise_multiplier = 1.2  # given, so that no test waits for the calibration
[warm_start]
components = 40
[federation]
quorum = 3
[table]
label = "ill"
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
bins = 8
[[table.columns]]
name = "stage"
kind = "ordinal"
categories = ["I", "II", "III", "IV"]
[[table.columns]]
name = "ill"
kind = "boolean"
"""
LABS = ("chol", "urea", "iron", "crp", "lactate", "sodium")
for _lab in LABS:
    STUDY += f"""
[[table.columns]]
name = "{_lab}"
kind = "integer"
minimum = 100
maximum = 399
bins = 6
missing = true
"""


def _patients(seed: int, *, mean_age: float, measured: tuple[str, ...], n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.normal(mean_age, 10, n).clip(0, 99).astype(int)
    severity = rng.random(n)
    labs = {}
    for lab in LABS:
        value = 100 + 300 * np.where(rng.random(n) < 0.6, severity, rng.random(n)) ** (50 / mean_age)
        labs[lab] = pd.array(value.astype(int).clip(100, 399), dtype="Int64")
        if lab not in measured:
            labs[lab][:] = pd.NA
    stage = rng.choice(
        ["I", "II", "III", "IV"], n, p=[0.1, 0.2, 0.3, 0.4] if mean_age > 50 else [0.4, 0.3, 0.2, 0.1]
    )
    return pd.DataFrame({"age": age, "stage": stage, "ill": rng.random(n) < age / 120, **labs})


UNLIKE = {
    "children": _patients(1, mean_age=15, measured=LABS[:2]),
    "city": _patients(2, mean_age=50, measured=LABS),
    "hospice": _patients(3, mean_age=85, measured=LABS[3:]),
}


def run_with(folder, tables, change=("", "")):
    """Whether the run said that each site has a part, and the study's generator."""
    lab = InProcessLab(folder, tables, epsilon=4.0)
    generator = lab.train(Study.from_toml(STUDY.replace(*change))).table
    (run,) = runs.list_runs(lab.store)
    said = [message.text for message in runs.run_messages(lab.store, run.id)]
    lab.store.close()
    return any("a part of the generator of its own" in text for text in said), generator


def test_hospitals_that_differ_have_a_part_each(tmp_path):
    told, generator = run_with(tmp_path, UNLIKE)
    assert told
    assert generator.num_components == 3 * 40
    ages = generator.one_way()[:8].detach()
    assert float(ages[:3].sum()) == pytest.approx(1 / 3, abs=0.1)  # the children are there


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("[federation]", "by_site = false\n[federation]"), "the study does not want it"),
        (("quorum = 3", 'quorum = 3\naggregation = "median"'), "a robust rule believes no site on its own"),
    ],
)
def test_one_mixture_for_all_where_sites_are_not_looked_at_alone(tmp_path, change, why):
    told, generator = run_with(tmp_path, UNLIKE, change)
    assert not told, why
    assert generator.num_components == 40


def test_one_population_is_fitted_together(tmp_path):
    together = pd.concat(UNLIKE.values()).sample(frac=1, random_state=0)
    tables = {name: together.iloc[place::3].reset_index(drop=True) for place, name in enumerate(UNLIKE)}
    told, generator = run_with(tmp_path, tables)
    assert not told
    assert generator.num_components == 40
