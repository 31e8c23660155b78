"""Equalities among constraints: every row that is served meets them to the last digit that its file has."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.generator import MixtureGenerator
from models.sampling import CohortSampler, RareConditionError
from models.schema import StudySchema

MONEY = {"kind": "continuous", "minimum": 0, "maximum": 100, "bins": 8}
COLUMNS = [
    {"name": "fees", **MONEY, "decimals": 2, "missing": True},
    {"name": "drugs", **MONEY, "decimals": 1, "scale": "log", "log_floor": 1.0},
    {"name": "total", **MONEY, "maximum": 150, "decimals": 2, "missing": True},
    {"name": "grand", "kind": "continuous", "minimum": -20, "maximum": 400, "decimals": 3},
    {"name": "nights", "kind": "integer", "minimum": 0, "maximum": 30},
    {"name": "admitted", "kind": "date", "minimum": "2024-01-01", "maximum": "2024-12-31"},
    {"name": "discharged", "kind": "date", "minimum": "2023-06-01", "maximum": "2025-02-28"},
    {"name": "smoker", "kind": "boolean", "missing": True},
]


def schema_of(*constraints: str) -> StudySchema:
    return StudySchema.model_validate({"columns": COLUMNS, "constraints": constraints})


def generator_of(schema: StudySchema, seed: int = 3) -> MixtureGenerator:
    source = torch.Generator().manual_seed(seed)
    logits = 1.2 * torch.randn(12, sum(schema.cardinalities), generator=source)
    return MixtureGenerator(logits, torch.randn(12, generator=source), schema.cardinalities)


def take(schema: StudySchema, n: int, *conditions: str, seed: int = 1) -> pd.DataFrame:
    sampler = CohortSampler(generator_of(schema), schema, conditions)
    return pd.concat(sampler.chunks(n, seed=seed))


def cells(table: pd.DataFrame) -> list[dict[str, Decimal | None]]:
    """The numbers as a reader of the CSV file has them."""
    rows = csv.DictReader(io.StringIO(table.to_csv(index=False)))
    names = ("fees", "drugs", "total", "grand", "nights")
    return [{name: Decimal(row[name]) if row[name] else None for name in names} for row in rows]


def test_a_total_is_the_sum_of_its_parts_in_every_row_of_the_file() -> None:
    rows = cells(take(schema_of("total == fees + drugs"), 20_000))
    assert len(rows) == 20_000
    assert all(row["total"] == row["fees"] + row["drugs"] for row in rows)


def test_the_parts_stay_as_the_release_has_them() -> None:
    """Where no sum lies beyond the total's bounds, deriving it changes nothing else."""
    free, bound = schema_of(), schema_of("grand == total - 0.1 * fees")
    before = take(free, 40_000, "total is not missing", "fees is not missing")
    after = take(bound, 40_000)
    for name in ("fees", "drugs", "total", "nights"):
        spread = before[name].std() * (2 / 40_000) ** 0.5
        assert abs(before[name].mean() - after[name].mean()) < 5 * spread
    assert abs(before.smoker.isna().mean() - after.smoker.isna().mean()) < 0.01
    assert CohortSampler(generator_of(bound), bound).report.probability == pytest.approx(
        (before.total.notna()).mean()
        * CohortSampler(
            generator_of(free), free, ["total is not missing", "fees is not missing"]
        ).report.probability,
        rel=0.02,
    )


def test_an_equality_behind_or_binds_only_where_the_rest_does_not_hold() -> None:
    told = "total is missing or fees is missing or total == fees + drugs"
    free, bound = take(schema_of(), 20_000), take(schema_of(told), 20_000)
    rows = cells(bound)
    assert all(
        row["total"] is None or row["fees"] is None or row["total"] == row["fees"] + row["drugs"]
        for row in rows
    )
    assert 0.03 < free.total.isna().mean() < 0.97
    # Sums beyond the total's bounds are the only rows that are not served.
    assert abs(free.total.isna().mean() - bound.total.isna().mean()) < 0.05
    smokers = take(schema_of("not smoker or grand == fees"), 5_000)
    bound_rows = smokers[smokers.smoker.fillna(False)]
    assert (bound_rows.grand == bound_rows.fees).all()
    assert (smokers.grand != smokers.fees).mean() > 0.3


def test_equalities_follow_one_from_another_in_any_order() -> None:
    schema = schema_of(
        "grand == total + nights * 2.5", "total == fees + drugs", "discharged == admitted + nights"
    )
    table = take(schema, 5_000, "nights >= 2", "admitted > '2024-06-01'")
    for row in cells(table):
        assert row["total"] == row["fees"] + row["drugs"]
        assert row["grand"] == row["total"] + row["nights"] * Decimal("2.5")
    assert (table.discharged == table.admitted + pd.to_timedelta(table.nights, unit="D")).all()
    assert (table.nights >= 2).all()
    assert (table.admitted > "2024-06-01").all()


def test_conditions_on_a_derived_column_select_by_what_is_served() -> None:
    schema = schema_of("total == fees + drugs")
    everyone = take(schema, 60_000)
    condition = "total > 90.5 and fees < 60"
    group = take(schema, 20_000, condition)
    expected = everyone[(everyone.total > 90.5) & (everyone.fees < 60)]
    assert ((group.total > 90.5) & (group.fees < 60)).all()
    report = CohortSampler(generator_of(schema), schema, [condition]).report
    share = len(expected) / len(everyone)
    assert abs(report.probability - share) < 5 * (share / len(everyone)) ** 0.5
    for name in ("fees", "drugs", "total", "nights"):
        spread = expected[name].std() * (1 / len(expected) + 1 / len(group)) ** 0.5
        assert abs(expected[name].mean() - group[name].mean()) < 5 * spread


def test_an_equality_that_is_asked_for_selects_and_makes_nothing() -> None:
    schema = schema_of()
    with pytest.raises(RareConditionError):
        take(schema, 10, "total == fees + drugs")
    same_day = CohortSampler(generator_of(schema), schema, ["discharged - admitted == nights"]).report
    assert 1e-4 < same_day.probability < 0.02
    table = take(schema, 50, "discharged - admitted == nights")
    assert ((table.discharged - table.admitted).dt.days == table.nights).all()


def test_inequalities_of_sums_hold_in_every_row() -> None:
    told = "fees + drugs <= total + 20", "discharged - admitted >= 3", "3 * nights - drugs / 2 != 6"
    for row in cells(table := take(schema_of(*told), 5_000)):
        assert row["fees"] + row["drugs"] <= row["total"] + 20
        assert 3 * row["nights"] - row["drugs"] / 2 != 6
    assert ((table.discharged - table.admitted).dt.days >= 3).all()


def test_one_seed_gives_one_cohort_with_derived_columns_too() -> None:
    schema = schema_of("total == fees + drugs")
    pd.testing.assert_frame_equal(take(schema, 300, seed=5), take(schema, 300, seed=5))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    factors=st.tuples(*[st.sampled_from([-1, 0.5, 1, 2, 0.1])] * 2),
    constant=st.sampled_from([0, 5, -0.25, 60]),
    guard=st.sampled_from(["", "smoker or ", "fees is missing or "]),
    seed=st.integers(0, 1000),
)
def test_any_equality_is_met_by_all_or_refused(factors, constant, guard, seed) -> None:
    x, y = (Decimal(repr(one)) for one in factors)
    schema = schema_of(f"{guard}grand == {factors[0]!r} * fees + {factors[1]!r} * drugs + {constant}")
    try:
        sampler = CohortSampler(generator_of(schema, seed), schema)
    except RareConditionError:
        return
    table = pd.concat(sampler.chunks(200, seed=seed))
    for row, smoker in zip(cells(table), table.smoker.fillna(False), strict=True):
        free = (guard.startswith("smoker") and smoker) or (guard.startswith("fees") and row["fees"] is None)
        assert free or row["grand"] == x * row["fees"] + y * row["drugs"] + Decimal(repr(constant))


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (["fees + drugs == total + grand"], "does not say which column follows"),
        (["2 * total == fees + drugs"], "does not say which column follows"),
        (["fees + drugs == 100"], "does not say which column follows"),
        (["total == fees + drugs", "fees == total - drugs"], "go in a circle"),
        (["total == fees", "fees == drugs", "drugs == grand", "grand == total"], "go in a circle"),
        (["total == fees + drugs", "total == grand - fees"], "'total' follows from two equalities"),
        (["total == fees + drugs + 200"], "would lie between 200 and 400, by its own between 0 and 150"),
        (["admitted == discharged + 5000"], "days from its minimum"),
        (["total == fees + drugs or grand == fees"], "would have to choose"),
        (["not (smoker and total != fees + drugs)"], "would have to choose|write it plainly"),
        (["total == fees * drugs"], "constraint 'total == fees \\* drugs'.*is no sum"),
        (["total == feees + drugs"], "did you mean 'fees'"),
    ],
)
def test_equalities_that_cannot_be_served_make_no_schema(constraints, message) -> None:
    with pytest.raises(ValueError, match=message):
        schema_of(*constraints)


def test_guarded_equalities_may_share_a_column() -> None:
    schema = schema_of("smoker or grand == fees", "not smoker or grand == fees + drugs")
    table = take(schema, 2_000, "fees is not missing", "smoker is not missing")
    rows = cells(table)
    for row, smoker in zip(rows, table.smoker, strict=True):
        assert row["grand"] == row["fees"] + (row["drugs"] if smoker else 0)


def test_the_total_lies_in_the_level_that_the_encoder_gives_it() -> None:
    """A derived number is an ordinary value of its column: re-encoding changes nothing."""
    from models.encoding import encode_table

    schema = schema_of("total == fees + drugs")
    codes = encode_table(take(schema, 2_000), schema).codes.numpy()
    assert codes[:, 2].max() < schema.columns[2].num_values
    assert np.unique(codes[:, 2]).size > 3


def test_schemas_are_compared_by_what_they_say(schema) -> None:
    """Bins are worked out while constraints are read; two equal schemas have two equal arrays of them."""
    one, other = schema_of("total == fees + drugs"), schema_of("total == fees + drugs")
    assert one == other
    assert hash(one) == hash(other)
    assert one != schema_of("total == fees")
    assert one != schema
