"""Cohorts: every row satisfies the conditions, and they are distributed as the release says."""

import time

import numpy as np
import pandas as pd
import pytest

from models.conditions import ConditionError
from models.generator import MixtureGenerator
from models.sampling import CHUNK_PATIENTS, CohortSampler, RareConditionError, sample_cohort

CASES = {
    "age >= 60 and sex == 'female'": lambda x: (x.age >= 60) & (x.sex == "female"),
    "40 <= age < 61 and (smoker or stage in ['high'])": lambda x: (
        (x.age >= 40) & (x.age < 61) & (x.smoker.fillna(False) | (x.stage == "high"))
    ),
    "not (age > 63 or sex is missing or `capital-gain` is missing)": lambda x: (
        ~((x.age > 63) | x.sex.isna() | x["capital-gain"].isna())
    ),
    "admitted < '2020-03-05' or (age == 33 and stage != 'low')": lambda x: (
        (x.admitted < pd.Timestamp("2020-03-05")) | ((x.age == 33) & (x.stage != "low"))
    ),
    "diastolic < systolic and `capital-gain` > 150.5": lambda x: (
        (x.diastolic < x.systolic) & (x["capital-gain"] > 150.5).fillna(False)
    ),
}


def take(generator, schema, n, *conditions, seed=1, **rest):
    return pd.concat(sample_cohort(generator, schema, n, seed=seed, conditions=conditions, **rest))


@pytest.fixture(scope="module")
def population(generator, schema):
    return take(generator, schema, 300_000)


@pytest.mark.parametrize("condition", CASES)
def test_conditioned_patients_are_those_of_the_release_that_satisfy_it(
    generator, schema, population, condition
):
    holds = CASES[condition]
    cohort = take(generator, schema, 40_000, condition)
    assert len(cohort) == 40_000
    assert holds(cohort).astype(bool).all()
    expected = population[holds(population).astype(bool)]
    report = CohortSampler(generator, schema, [condition]).report
    share = len(expected) / len(population)
    assert abs(report.probability - share) < 5 * (share / len(population)) ** 0.5
    for column in ("age", "systolic", "diastolic"):
        spread = expected[column].std() * (1 / len(expected) + 1 / len(cohort)) ** 0.5
        assert abs(cohort[column].mean() - expected[column].mean()) < 5 * spread
    for column in ("sex", "stage", "smoker"):
        levels = [
            frame[column].value_counts(normalize=True, dropna=False).sort_index()
            for frame in (cohort, expected)
        ]
        assert (levels[0] - levels[1]).abs().max() < 0.02


def test_conditions_in_a_list_must_all_hold(generator, schema):
    cohort = take(generator, schema, 500, "age > 50", {"column": "stage", "op": "==", "value": "low"})
    assert (cohort.age > 50).all()
    assert (cohort.stage == "low").all()


def test_one_seed_gives_one_cohort(generator, schema):
    first, second, other = (take(generator, schema, 200, "age > 50", seed=seed) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)


def test_a_large_cohort_comes_in_bounded_chunks(generator, schema):
    chunks = list(sample_cohort(generator, schema, CHUNK_PATIENTS + 5, seed=0))
    assert [len(chunk) for chunk in chunks] == [CHUNK_PATIENTS, 5]


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None])
def test_a_number_of_patients_that_makes_no_sense_is_refused(generator, schema, number):
    with pytest.raises(ValueError, match="num_patients"):
        sample_cohort(generator, schema, number, seed=0)


def test_a_condition_that_never_holds_is_refused_at_once(generator, schema):
    with pytest.raises(RareConditionError, match="no patient of this release"):
        sample_cohort(generator, schema, 10, seed=0, conditions=["age > 90"])


@pytest.mark.parametrize("condition", ["age == 33 and systolic == 70 and admitted == '2020-02-03'"])
def test_a_condition_too_rare_to_honour_is_refused_with_its_rarity(generator, schema, condition):
    with pytest.raises(RareConditionError, match="1 patient in") as caught:
        sample_cohort(generator, schema, 10, seed=0, conditions=[condition])
    assert 0 < caught.value.probability < 1e-4


def test_a_rare_condition_can_be_asked_for_knowingly(generator, schema):
    condition = "age == 33 and systolic == 70 and stage == 'low'"
    cohort = take(generator, schema, 20, condition, min_probability=1e-12)
    assert (cohort.age == 33).all()
    assert (cohort.systolic == 70).all()


def test_a_condition_that_cannot_be_read_is_refused(generator, schema):
    with pytest.raises(ConditionError):
        sample_cohort(generator, schema, 10, seed=0, conditions=["height > 3"])
    with pytest.raises(ConditionError, match="list"):
        sample_cohort(generator, schema, 10, seed=0, conditions="age > 3")


def test_a_generator_of_another_schema_is_refused(generator, schema):
    other = MixtureGenerator(
        generator.logits[:, :-1], generator.component_logits, (*generator.cardinalities[:-1], 23)
    )
    with pytest.raises(ValueError, match="another schema"):
        sample_cohort(other, schema, 10, seed=0)


def test_two_hundred_thousand_patients_take_seconds(generator, schema, tmp_path):
    start = time.perf_counter()
    take(generator, schema, 200_000).to_parquet(tmp_path / "cohort.parquet")
    assert time.perf_counter() - start < 6


def test_missing_values_come_as_missing(population, generator):
    share = population.sex.isna().mean()
    assert np.isclose(share, generator.one_way()[2].item(), atol=0.005)


def test_constraints_of_the_schema_hold_for_every_patient_served(generator, schema):
    bound = schema.model_copy(
        update={"constraints": ("diastolic < systolic", "not smoker or stage != 'low'")}
    )
    cohort = take(generator, bound, 5_000, "age > 40")
    assert (cohort.diastolic < cohort.systolic).all()
    assert not (cohort.smoker.fillna(False) & (cohort.stage == "low")).any()
    assert (cohort.age > 40).all()
    free = CohortSampler(generator, schema, ["age > 40", *bound.constraints]).report.probability
    possible = CohortSampler(generator, schema, bound.constraints).report.probability
    given = CohortSampler(generator, bound, ["age > 40"]).report.probability
    assert np.isclose(given, free / possible, rtol=0.02)


def test_a_constraint_that_cannot_be_read_makes_no_schema(schema):
    with pytest.raises(ValueError, match="there is no column 'height'"):
        type(schema).model_validate({**schema.model_dump(), "constraints": ("height > 3",)})
