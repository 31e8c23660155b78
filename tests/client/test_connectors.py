"""Reading a site's file: what is not a table is refused in words that its staff can act on."""

from __future__ import annotations

import pandas as pd
import pytest

from client.connectors import DataSourceError, fingerprint, kind_of, read_table


def _written(folder, content: bytes, name: str = "patients.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


def test_cells_of_a_csv_stay_text_and_missing_ones_are_missing(tmp_path):
    path = _written(tmp_path, b"age, sex\n041,f\n?,m\n,NA\n")
    frame = read_table(path, "csv")
    assert list(frame.columns) == ["age", "sex"]
    assert frame["age"].tolist()[0] == "041"
    assert frame.isna().sum().tolist() == [2, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n \n", "is empty"),
        (b"age,sex\n", "no patient"),
        (b"PK\x03\x04\x00\x00binary", "binary file"),
        (b"age,sex\n1,\xff\xfe\n", "not UTF-8"),
        (b"age,sex\n1,m\n2,f,3,4\n", "line 3"),
    ],
    ids=["empty", "blank", "header-only", "spreadsheet", "latin", "ragged"],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path, content, said):
    with pytest.raises(DataSourceError, match=said):
        read_table(_written(tmp_path, content), "csv")


def test_a_missing_file_names_the_setting_to_correct(tmp_path):
    with pytest.raises(DataSourceError, match="data.path"):
        read_table(tmp_path / "absent.csv", "csv")


def test_parquet_is_read_and_a_pretender_is_refused(tmp_path):
    frame = pd.DataFrame({"age": [41, 52], "sex": ["f", "m"]})
    frame.to_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "p.parquet", "parquet"), frame, check_dtype=False)
    with pytest.raises(DataSourceError, match="not Parquet"):
        read_table(_written(tmp_path, b"age\n1\n", "q.parquet"), "parquet")


def test_the_kind_comes_from_the_suffix(tmp_path):
    assert kind_of(tmp_path / "A.CSV") == "csv"
    assert kind_of(tmp_path / "a.parquet") == "parquet"
    with pytest.raises(DataSourceError, match=r"\.xlsx"):
        kind_of(tmp_path / "a.xlsx")


def test_a_fingerprint_is_equal_for_equal_data_and_says_nothing_without_the_secret(tmp_path):
    path = _written(tmp_path, b"age\n41\n")
    assert fingerprint(path, b"a" * 32) == fingerprint(path, b"a" * 32)
    assert fingerprint(path, b"a" * 32) != fingerprint(path, b"b" * 32)
    changed = _written(tmp_path, b"age\n42\n", "other.csv")
    assert fingerprint(path, b"a" * 32) != fingerprint(changed, b"a" * 32)
