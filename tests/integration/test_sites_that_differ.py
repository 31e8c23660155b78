"""A run over hospitals whose patients differ, through the product: each has a part of the release if it may."""

from __future__ import annotations

import tomllib

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from models.sampling import RareConditionError, sample_cohort
from models.study import Study, StudyError
from server import runs
from server.errors import ConflictError

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


def named_study(*names: str) -> Study:
    """The study whose release says of which of these sites a patient is."""
    text = STUDY.replace("[table]", '[table]\nsite = "hospital"')
    column = {"kind": "categorical", "name": "hospital", "categories": list(names)}
    definition = tomllib.loads(text)
    definition["table"]["columns"].append(column)
    return Study.from_dict(definition)


def test_a_release_may_say_of_which_hospital_a_patient_is_and_no_hospital_is_asked(tmp_path):
    study = named_study(*UNLIKE)
    lab = InProcessLab(tmp_path, UNLIKE, epsilon=4.0)
    generator = lab.train(study).table
    (run,) = runs.list_runs(lab.store)
    lab.store.close()
    assert run.state == "completed"
    assert "hospital" not in study.inputs
    everyone = next(iter(sample_cohort(generator, study.table, 3_000, seed=1)))
    assert set(everyone["hospital"]) == set(UNLIKE)
    for name, table in UNLIKE.items():
        (rows,) = sample_cohort(generator, study.table, 1_000, seed=1, conditions=[f"hospital == '{name}'"])
        assert set(rows["hospital"]) == {name}
        assert rows["age"].mean() == pytest.approx(table["age"].mean(), abs=12)
        for lab_value in LABS:
            missing = float(rows[lab_value].isna().mean())
            assert missing == pytest.approx(float(table[lab_value].isna().mean()), abs=0.15)


def test_only_the_hospitals_that_the_release_names_are_asked(tmp_path):
    lab = InProcessLab(tmp_path, UNLIKE, epsilon=4.0)
    study = named_study("children", "city", "elsewhere")
    with pytest.raises(
        ConflictError, match=r"quorum of 3 sites, of those that its column 'hospital' names.* 2 are"
    ):
        lab.train(study)
    smaller = study.model_copy(
        update={"name": "smaller", "federation": study.federation.model_copy(update={"quorum": 2})}
    )
    generator = lab.train(smaller).table
    run = runs.list_runs(lab.store)[0]
    lab.store.close()
    assert list(run.sites) == ["children", "city"]
    with pytest.raises(RareConditionError):
        sample_cohort(generator, smaller.table, 10, seed=1, conditions=["hospital == 'elsewhere'"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"measure": {"exchanges": 2}}, r"measure.exchanges is 2; with table.site"),
        ({"refine": {"rounds": 1}, "measure": {"budget_share": 0.5}}, r"refine.rounds is 1"),
        ({"warm_start": {"by_site": False}}, r"warm_start.by_site is False"),
        ({"federation": {"quorum": 3, "aggregation": "median"}}, r"federation.aggregation is 'median'"),
        ({"table": {"constraints": ["hospital == 'city' or age >= 1"]}}, r"speaks of 'hospital'"),
        ({"table": {"label": "hospital"}}, r"cannot be the label"),
        ({"table": {"site": "age"}}, r"must be the name of the last column, a categorical one"),
    ],
)
def test_what_does_not_go_with_a_column_of_sites_is_refused_in_words(change, says):
    definition = named_study(*UNLIKE).to_dict()
    for section, fields in change.items():
        definition[section] = {**definition[section], **fields}
    with pytest.raises(StudyError, match=says):
        Study.from_dict(definition)


def test_one_population_is_fitted_together(tmp_path):
    together = pd.concat(UNLIKE.values()).sample(frac=1, random_state=0)
    tables = {name: together.iloc[place::3].reset_index(drop=True) for place, name in enumerate(UNLIKE)}
    told, generator = run_with(tmp_path, tables)
    assert not told
    assert generator.num_components == 40
