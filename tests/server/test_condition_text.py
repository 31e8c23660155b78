"""A condition as text is the same condition, however it came."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.condition_reader import parse_condition, parse_conditions
from models.conditions import Records
from models.schema import StudySchema
from models.study import Study
from server.condition_text import condition_text, where_text

WARDS = ["it's", 'a "b"', "a`b`c", "true", "ü\n", "plain"]
STUDY = {
    "name": "odd",
    "privacy": {"epsilon": 1.0, "delta": 1e-5},
    "refine": {"rounds": 0},
    "table": {
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "missing": True},
            {"name": "capital-gain", "kind": "continuous", "minimum": -1, "maximum": 1, "bins": 4},
            {"name": "true", "kind": "boolean"},
            {"name": "is", "kind": "categorical", "categories": WARDS},
            {"name": "day", "kind": "date", "minimum": "2020-01-01", "maximum": "2021-01-01", "bins": 4},
        ]
    },
}
numbers = st.one_of(st.integers(-5, 100), st.floats(-2, 2, allow_nan=False))
comparisons = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
single = st.one_of(
    st.builds(lambda op, v: {"column": "age", "op": op, "value": v}, comparisons, numbers),
    st.builds(lambda op, v: {"column": "capital-gain", "op": op, "value": v}, comparisons, numbers),
    st.builds(lambda v: {"column": "true", "op": "==", "value": v}, st.booleans()),
    st.builds(
        lambda op, v: {"column": "is", "op": op, "value": v},
        st.sampled_from(["in", "not in"]),
        st.lists(st.sampled_from(WARDS), min_size=1, max_size=3),
    ),
    st.builds(lambda v: {"column": "is", "op": "==", "value": v}, st.sampled_from(WARDS)),
    st.builds(lambda v: {"column": "day", "op": ">=", "value": v.isoformat()}, st.dates()),
    st.sampled_from(
        [
            {"column": "age", "op": "is missing"},
            {"column": "capital-gain", "op": "is not missing"},
            "age > 3 or `true`",
            "not `true`",
            "20 <= age < 30",
            "age < `capital-gain`",
            "age - 40 * `capital-gain` > 3.5",
            "2 * age == `capital-gain`",
        ]
    ),
    st.builds(
        lambda op, a, b, v: {"sum": {"age": a, "capital-gain": b}, "op": op, "value": v},
        comparisons,
        st.integers(-3, 3).filter(bool),
        st.sampled_from([-20, -0.5, 0.25, 1, 30]),
        st.sampled_from([-10, 0, 0.125, 7, 44]),
    ),
)
conditions = st.recursive(
    single,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def schema() -> StudySchema:
    return Study.from_dict(STUDY).table


@pytest.fixture(scope="module")
def records(schema: StudySchema) -> Records:
    source = np.random.default_rng(0)
    levels = np.stack([source.integers(0, size, 500) for size in schema.cardinalities], axis=1)
    return Records(
        levels,
        {0: levels[:, 0].astype(float), 1: np.round(source.uniform(-1, 1, 500), 6), 4: levels[:, 4] * 90.0},
    )


@given(condition=conditions)
def test_the_text_holds_for_the_same_records(schema, records, condition) -> None:
    text = condition_text(condition)
    assert (
        parse_condition(text, schema).holds(records) == parse_condition(condition, schema).holds(records)
    ).all(), (json.dumps(condition), text)


@given(several=st.lists(conditions, min_size=1, max_size=3))
def test_several_become_one_that_all_of_them_make(schema, records, several) -> None:
    each = np.logical_and.reduce([one.holds(records) for one in parse_conditions(several, schema)])
    assert (parse_condition(where_text(several), schema).holds(records) == each).all()


def test_a_plain_condition_stays_as_it_was_written() -> None:
    assert where_text(()) == ""
    assert where_text(["age >= 60 and sex == 'female'"]) == "age >= 60 and sex == 'female'"
    assert (
        condition_text({"sum": {"fees": 1, "true": -0.5}, "op": "<", "value": 3}) == "fees - 0.5 * `true` < 3"
    )
    assert where_text([{"column": "age", "op": ">=", "value": 80}, "married"]) == "(age >= 80) and (married)"
