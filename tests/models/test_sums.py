"""Sums of columns: what they mean, to the last digit, and what is said of those that mean nothing."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.condition_reader import parse_condition
from models.conditions import ConditionError, Records
from models.schema import StudySchema
from models.sums import ORDERS

COLUMNS = [
    {"name": "a", "kind": "continuous", "minimum": -50, "maximum": 50, "decimals": 1},
    {"name": "b", "kind": "continuous", "minimum": 0, "maximum": 20, "decimals": 3, "missing": True},
    {"name": "the count", "kind": "integer", "minimum": -9, "maximum": 99, "missing": True},
    {"name": "admitted", "kind": "date", "minimum": "2020-01-01", "maximum": "2020-12-31"},
    {"name": "discharged", "kind": "date", "minimum": "2020-02-01", "maximum": "2021-12-31"},
    {"name": "ward", "kind": "categorical", "categories": ["A", "B"]},
    {"name": "smoker", "kind": "boolean"},
    {"name": "fine", "kind": "continuous", "minimum": 0, "maximum": 1e9, "decimals": 12},
    {"name": "coarse", "kind": "continuous", "minimum": 0, "maximum": 5, "decimals": 0},
]
SCHEMA = StudySchema.model_validate({"columns": COLUMNS})
ROWS = 400


def records(seed: int = 0) -> Records:
    source = np.random.default_rng(seed)
    levels = np.stack([source.integers(0, size, ROWS) for size in SCHEMA.cardinalities], 1)
    numbers = {
        0: np.round(source.uniform(-50, 50, ROWS), 1),
        1: np.round(source.uniform(0, 20, ROWS), 3),
        2: source.integers(-9, 100, ROWS).astype(float),
        3: source.integers(0, 366, ROWS).astype(float),
        4: source.integers(0, 700, ROWS).astype(float),
    }
    return Records(levels, numbers)


coefficients = st.one_of(st.integers(-5, 5).filter(bool), st.sampled_from([0.1, -0.25, 1.5, 0.333, 2.0]))


@settings(max_examples=100, deadline=None)
@given(
    a=coefficients,
    b=coefficients,
    count=coefficients,
    constant=st.sampled_from([-3, 0, 0.1, 7.25, 40]),
    relation=st.sampled_from(sorted(ORDERS)),
    seed=st.integers(0, 5),
)
def test_a_sum_holds_as_decimal_arithmetic_says(a, b, count, constant, relation, seed) -> None:
    told = records(seed)
    text = f"{a!r} * a + {constant} {relation} {-b!r} * b - `the count` * {count!r}"
    numbers = [[Decimal(repr(float(one))) for one in told.numbers[column]] for column in range(3)]
    wanted = [
        ORDERS[relation](
            Decimal(repr(a)) * x + Decimal(repr(constant)),
            -Decimal(repr(b)) * y - Decimal(repr(count)) * z,
        )
        for x, y, z in zip(*numbers, strict=True)
    ]
    present = (told.levels[:, 1] != 24) & (told.levels[:, 2] != SCHEMA.columns[2].num_values)
    np.testing.assert_array_equal(parse_condition(text, SCHEMA).holds(told), np.array(wanted) & present)
    data = {"sum": {"a": a, "b": b, "the count": count}, "op": relation, "value": -constant}
    assert parse_condition(data, SCHEMA) == parse_condition(text, SCHEMA)


def test_what_floats_get_wrong_is_right() -> None:
    told = Records(np.zeros((1, 9), dtype=int), {0: np.array([0.1]), 1: np.array([0.2])})
    assert 0.1 + 0.2 > 0.3
    assert parse_condition("a + b == 0.3", SCHEMA).holds(told).all()
    assert not parse_condition("a + b > 0.3", SCHEMA).holds(told).any()


def test_days_between_dates_are_counted_by_the_calendar() -> None:
    told = Records(np.zeros((1, 9), dtype=int), {3: np.array([30.0]), 4: np.array([9.0])})
    # 2020-01-31 and 2020-02-10.
    assert parse_condition("discharged - admitted == 10", SCHEMA).holds(told).all()
    assert parse_condition("discharged == admitted + 10", SCHEMA).holds(told).all()
    assert not parse_condition("discharged - admitted > 10", SCHEMA).holds(told).any()


def test_a_sum_with_a_missing_value_does_not_hold_and_its_negation_does() -> None:
    levels = np.zeros((1, 9), dtype=int)
    levels[0, 1] = SCHEMA.columns[1].num_values
    told = Records(levels, {0: np.array([1.0]), 1: np.array([1.0])})
    assert not parse_condition("a + b > 0", SCHEMA).holds(told).any()
    assert parse_condition("not a + b > 0", SCHEMA).holds(told).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a * b > 3", "'?a \\* b'? is no sum"),
        ("a / b > 3", "is no sum"),
        ("a / 0 > 3", "is no sum"),
        ("abs(a) + b > 3", "is no sum"),
        ("a + b > a.real", "is no sum"),
        ("a - a > 3", "no column is left"),
        ("2 + 3 > 4", "no column is left"),
        ("ward + a > 3", "column 'ward' is categorical; only numbers and dates"),
        ("a + smoker > 3", "column 'smoker' is boolean"),
        ("a + 'x' > 3", "'x' is no number"),
        ("a + True > 3", "there is no column 'True'|True is no number"),
        ("a + 1e999 > 3", "is no number"),
        ("a + c > 3", "there is no column 'c'"),
        ("admitted + discharged > 3", "do not add up to days"),
        ("admitted + 3 > a", "do not add up to days"),
        ("a + b in [3, 4]", "'in' does not compare sums"),
        ("a + b is missing", "'is' does not compare sums"),
        ("fine + a > 3", "more digits than a number holds"),
        ("coarse + a > 3", "bins without a number of 0 decimals"),
        ("a + 1e300 * b > 3", "too many digits to be exact"),
        ("a" + " + a" * 300 + " > 3", "more than 200 parts"),
        ({"sum": {}, "op": ">", "value": 3}, "needs an object"),
        ({"sum": ["a"], "op": ">", "value": 3}, "needs an object"),
        ({"sum": {"a": "1"}, "op": ">", "value": 3}, "'1' is no number"),
        ({"sum": {"a": 0}, "op": ">", "value": 3}, "no column is left"),
        ({"sum": {"a": 1, "b": 1}, "op": ">", "value": None}, "None is no number"),
        ({"sum": {"a": 1, "b": 1}, "op": "in", "value": 3}, "does not compare sums"),
        ({"sum": {"a": 1}, "op": ">"}, "fields column, op and value, or sum"),
    ],
)
def test_what_is_no_sum_is_explained(source, message) -> None:
    with pytest.raises(ConditionError, match=message):
        parse_condition(source, SCHEMA)
