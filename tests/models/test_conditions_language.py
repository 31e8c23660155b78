"""What a condition may say, and what is said when it may not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boxes import NotFactorisableError, disjoint_boxes
from models.condition_reader import parse_condition
from models.conditions import AllOf, AnyOf, ConditionError, Levels, Negation, Records


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("age >= 60", {"column": "age", "op": ">=", "value": 60}),
        ("60 <= age", {"column": "age", "op": ">=", "value": 60}),
        ("sex == 'female'", {"column": "sex", "op": "==", "value": "female"}),
        ("stage >= 'mid'", {"column": "stage", "op": ">=", "value": "mid"}),
        ("`capital-gain` > -1.5", {"column": "capital-gain", "op": ">", "value": -1.5}),
        ("capital_gain is missing", None),
        ("`capital-gain` is missing", {"column": "capital-gain", "op": "is missing"}),
        ("sex is not missing", {"column": "sex", "op": "is not missing"}),
        ("admitted < '2020-03-01'", {"column": "admitted", "op": "<", "value": "2020-03-01"}),
        ("age in [20, 30]", {"column": "age", "op": "in", "value": [20, 30]}),
        ("stage not in ['low']", {"column": "stage", "op": "not in", "value": ["low"]}),
        (
            "not (age < 30 or smoker)",
            {
                "not": {
                    "any": [
                        {"column": "age", "op": "<", "value": 30},
                        {"column": "smoker", "op": "==", "value": True},
                    ]
                }
            },
        ),
        ("30 <= age < 40", {"all": [{"column": "age", "op": ">=", "value": 30}, "age < 40"]}),
    ],
)
def test_text_and_json_say_the_same(schema, text, data):
    if data is None:
        with pytest.raises(ConditionError, match="did you mean 'capital-gain'"):
            parse_condition(text, schema)
    else:
        assert parse_condition(text, schema) == parse_condition(data, schema)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("age >", "cannot be read"),
        ("", "cannot be read"),
        ("agee > 3", "did you mean 'age'"),
        ("sex == 'femal'", "did you mean 'female'"),
        ("sex < 'male'", "has no order"),
        ("age == 'old'", "holds numbers"),
        ("age == True", "holds numbers"),
        ("admitted > '1 May'", "holds dates"),
        ("admitted > 7", "holds dates"),
        ("smoker == 3", "true or false"),
        ("age ** 2 > 9", "no sum"),
        ("__import__('os').system('true')", "is no condition"),
        ("age > age.real", "is no value"),
        ("[x for x in age]", "is no condition"),
        ("sex == age", "cannot be compared"),
        ("3 > 2", "one side must be a column"),
        ("age is 3", "only 'missing'"),
        ("(" * 300 + "age > 3" + ")" * 300, "cannot be read"),
        ("not " * 900 + "smoker", "parts"),
        ("age > 3 and " * 500 + "age > 3", "characters"),
        ({"column": "age", "op": "~", "value": 3}, "is no comparison"),
        ({"column": "age", "op": ">"}, "fields column, op and value"),
        ({"all": []}, "at least one"),
        ({"column": "age", "op": "in", "value": 3}, "list of values"),
        ({"column": "age", "op": ">", "value": float("inf")}, "holds numbers"),
        ({"column": ["age"], "op": ">", "value": 3}, "there is no column"),
        ([1], "no condition"),
    ],
)
def test_what_cannot_be_read_is_explained(schema, source, message):
    with pytest.raises(ConditionError, match=message):
        parse_condition(source, schema)


def trees(columns=4, levels=3):
    leaf = st.builds(
        Levels, st.integers(0, columns - 1), st.frozensets(st.integers(0, levels - 1), max_size=levels)
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(Negation, inner),
            st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
            st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        ),
        max_leaves=8,
    )


@settings(max_examples=200, deadline=None)
@given(trees())
def test_boxes_cover_the_condition_once_and_nothing_else(condition):
    levels = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    records = Records(levels, {})
    try:
        boxes = disjoint_boxes(condition)
    except NotFactorisableError:
        return
    covered = np.zeros(len(levels), dtype=int)
    for box in boxes:
        parts = [part.holds(records) for conditions in box.values() for part in conditions]
        covered += np.logical_and.reduce([np.ones(len(levels), dtype=bool), *parts])
    np.testing.assert_array_equal(covered, condition.holds(records))


def test_a_comparison_of_columns_has_no_boxes(schema):
    with pytest.raises(NotFactorisableError):
        disjoint_boxes(parse_condition("diastolic < systolic", schema))
