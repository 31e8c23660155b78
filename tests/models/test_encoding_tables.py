"""Tables to codes and back."""

import datetime as dt
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoding import TableFaultsError, decode_table, encode_table, one_hot
from models.schema import StudySchema


def schema_of(*columns, **rest):
    return StudySchema.model_validate_json(json.dumps({"columns": columns, **rest}))


def random_codes(schema, n, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(d, (n,), generator=source) for d in schema.cardinalities], 1)


def faults_of(frame, schema):
    with pytest.raises(TableFaultsError) as caught:
        encode_table(frame, schema)
    return caught.value


def test_codes_survive_decoding_and_encoding(schema):
    codes = random_codes(schema, 20_000)
    frame = decode_table(codes, schema, rng=np.random.default_rng(0))
    assert torch.equal(encode_table(frame, schema).codes, codes)


def test_codes_survive_a_csv_file_read_as_text(schema, tmp_path):
    codes = random_codes(schema, 5_000)
    decode_table(codes, schema, rng=np.random.default_rng(0)).to_csv(tmp_path / "t.csv", index=False)
    read = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert torch.equal(encode_table(read, schema).codes, codes)


def test_codes_survive_a_parquet_file(schema, tmp_path):
    codes = random_codes(schema, 5_000)
    decode_table(codes, schema, rng=np.random.default_rng(0)).to_parquet(tmp_path / "t.parquet")
    assert torch.equal(encode_table(pd.read_parquet(tmp_path / "t.parquet"), schema).codes, codes)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["continuous", "integer"]),
    low=st.integers(-1000, 1000),
    span=st.integers(1, 5000),
    bins=st.integers(2, 60),
    log=st.booleans(),
    decimals=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_decoded_numbers_stay_in_their_bin_and_within_bounds(kind, low, span, bins, log, decimals, seed):
    column = {"kind": kind, "name": "x", "minimum": low, "maximum": low + span, "bins": bins}
    if kind == "continuous":
        column["decimals"] = decimals
    if log and low + span > 1:
        column |= {"scale": "log", "log_floor": 1.0}
    schema = schema_of(column)
    codes = random_codes(schema, 300, seed)
    frame = decode_table(codes, schema, rng=np.random.default_rng(seed))
    assert frame["x"].between(low, low + span).all()
    assert torch.equal(encode_table(frame, schema).codes, codes)


def test_a_smooth_density_is_rebuilt_better_than_by_uniform_bins():
    schema = schema_of({"kind": "continuous", "name": "x", "minimum": -4.0, "maximum": 4.0, "bins": 12})
    rng = np.random.default_rng(0)
    real = np.clip(rng.normal(size=200_000), -4, 4)
    codes = encode_table(pd.DataFrame({"x": real}), schema).codes
    smooth = decode_table(codes, schema, rng=rng)["x"].to_numpy()
    edges = schema.columns[0].edges
    uniform = edges[codes[:, 0]] + rng.random(len(real)) * np.diff(edges)[codes[:, 0]]
    fine = np.linspace(-4, 4, 97)

    def distance(values):
        return np.abs(np.histogram(values, fine)[0] - np.histogram(real, fine)[0]).sum() / len(real) / 2

    assert distance(smooth) < 0.5 * distance(uniform)


def test_each_fault_names_its_row_as_in_the_file_and_its_column(schema):
    frame = decode_table(random_codes(schema, 6), schema, rng=np.random.default_rng(0)).astype(object)
    frame.loc[0, "admitted"] = "2020-13-01"
    frame.loc[1, "sex"] = "femal"
    frame.loc[2, "age"] = 30.5
    frame.loc[3, "age"] = 200
    frame.loc[3, "capital-gain"] = "many"
    frame.loc[4, "stage"] = None
    error = faults_of(frame, schema)
    assert [(fault.row, fault.column) for fault in error.faults] == [
        (2, "admitted"),
        (3, "sex"),
        (4, "age"),
        (5, "age"),
        (5, "capital-gain"),
        (6, "stage"),
    ]
    assert "one of 'female', 'male'" in str(error)
    assert "not a whole number" in str(error)
    assert "200 lies outside 17 to 90" in str(error)


def test_a_value_beyond_the_bounds_is_clipped_where_the_study_says_so(schema):
    frame = decode_table(random_codes(schema, 2), schema, rng=np.random.default_rng(0))
    frame["systolic"] = [-5, 9_999]
    last = schema.columns[-1].cardinality - 1
    assert encode_table(frame, schema).codes[:, -1].tolist() == [0, last]


def test_missing_and_doubled_columns_are_named_with_a_hint(schema):
    frame = decode_table(random_codes(schema, 3), schema, rng=np.random.default_rng(0))
    frame = frame.rename(columns={"age": "Age "})
    frame.insert(0, "sex", frame["sex"], allow_duplicates=True)
    error = faults_of(frame, schema)
    assert {fault.column for fault in error.faults} == {"sex", "age"}
    assert "did you mean 'Age '" in str(error)


def test_an_empty_table_is_a_fault(schema):
    frame = decode_table(random_codes(schema, 3), schema, rng=np.random.default_rng(0)).iloc[:0]
    assert "no rows" in str(faults_of(frame, schema))


def test_many_faults_are_counted_and_the_first_hundred_shown(schema):
    frame = decode_table(random_codes(schema, 5_000), schema, rng=np.random.default_rng(0))
    frame["age"] = 500
    error = faults_of(frame, schema)
    assert error.num_faults == 5_000
    assert len(error.faults) == 100
    assert "and 4900 more" in str(error)


@pytest.mark.parametrize("spelling", ["1", "TRUE", "yes", True, 1, 1.0, "t"])
def test_true_is_read_in_its_usual_spellings(spelling):
    schema = schema_of({"kind": "boolean", "name": "b", "missing": True})
    frame = pd.DataFrame({"b": pd.Series([spelling, None], dtype=object)})
    assert encode_table(frame, schema).codes[:, 0].tolist() == [1, 2]


def test_named_numbers_match_their_category_whatever_type_the_file_gave_them():
    schema = schema_of({"kind": "categorical", "name": "ward", "categories": ["1", "2"], "missing": True})
    for values in ([1, 2, 1], [1.0, 2.0, np.nan], ["1", " 2", ""]):
        codes = encode_table(pd.DataFrame({"ward": values}), schema).codes[:, 0].tolist()
        assert codes[:2] == [0, 1]


def test_dates_are_read_as_text_dates_and_timestamps():
    schema = schema_of({"kind": "date", "name": "d", "minimum": "2020-01-01", "maximum": "2020-01-24"})
    for values in (["2020-01-03"], [dt.date(2020, 1, 3)], [pd.Timestamp("2020-01-03 17:30")]):
        assert encode_table(pd.DataFrame({"d": values}), schema).codes[0, 0] == 2


def test_records_of_one_patient_lie_together_and_count_as_one():
    schema = schema_of({"kind": "boolean", "name": "b"}, patient_id="id", max_records_per_patient=2)
    frame = pd.DataFrame({"id": ["p", "q", "p", "r"], "b": [1, 0, 0, 1]})
    table = encode_table(frame, schema)
    assert table.patient_offsets.tolist() == [0, 2, 3, 4]
    assert table.codes[:, 0].tolist() == [1, 0, 0, 1]
    assert table.select(torch.tensor([2, 0])).codes[:, 0].tolist() == [1, 1, 0]
    picked = table.one_record_each(torch.tensor([0, 0, 1]), torch.tensor([0.1, 0.9, 0.5]))
    assert picked[:, 0].tolist() == [1, 0, 0]


def test_a_patient_without_a_name_is_a_fault():
    schema = schema_of({"kind": "boolean", "name": "b"}, patient_id="id", max_records_per_patient=1)
    error = faults_of(pd.DataFrame({"id": ["p", None, "q", " "], "b": [1, 0, 0, 1]}), schema)
    assert [(fault.row, fault.column) for fault in error.faults] == [(3, "id"), (5, "id")]


def test_a_patient_with_too_many_records_is_a_fault():
    schema = schema_of({"kind": "boolean", "name": "b"}, patient_id="id", max_records_per_patient=1)
    error = faults_of(pd.DataFrame({"id": ["p", "q", " p "], "b": [1, 0, 0]}), schema)
    assert [(fault.row, fault.column) for fault in error.faults] == [(4, "id")]
    assert "2 records; the study allows 1" in str(error)


def test_half_a_million_rows_are_encoded_within_seconds(schema):
    codes = random_codes(schema, 500_000)
    frame = decode_table(codes, schema, rng=np.random.default_rng(0))
    start = time.perf_counter()
    encode_table(frame, schema)
    assert time.perf_counter() - start < 5


def test_one_hot_records_have_one_place_in_every_column(schema):
    codes = random_codes(schema, 50)
    hot = one_hot(codes, schema.cardinalities)
    parts = hot.split(schema.cardinalities, 1)
    assert all(torch.equal(part.argmax(1), codes[:, k]) for k, part in enumerate(parts))
    assert torch.equal(hot.sum(1), torch.full((50,), float(len(schema.columns))))
