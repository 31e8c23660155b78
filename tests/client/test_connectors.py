"""Reading a site's file: what is not a table is refused in words that its staff can act on."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client.connectors import DataSourceError, fingerprint, kind_of, open_source
from client.connectors import csv_file as csv_module
from client.connectors.settings import TableFile
from models.encoding import TableEncoder
from models.faults import TableFaultsError
from models.schema import StudySchema

SCHEMA = StudySchema.model_validate(
    {
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "missing": True},
            {"name": "sex", "kind": "categorical", "categories": ["f", "m"], "missing": True},
        ]
    }
)


def _written(folder, content: bytes, name: str = "patients.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


def _read(path, schema=SCHEMA):
    return pd.concat(open_source(TableFile(kind=kind_of(path), path=path)).chunks(schema), ignore_index=True)


def test_cells_of_a_csv_stay_text_and_missing_ones_are_missing(tmp_path):
    frame = _read(_written(tmp_path, b"\xef\xbb\xbfage, sex ,more\n041,f,1\n?, m,2\n,NA,3\n"))
    assert list(frame.columns) == ["age", "sex"]
    assert frame["age"].tolist()[0] == "041"
    assert frame["sex"].tolist()[1] == "m"
    assert frame.isna().sum().tolist() == [2, 1]


def test_a_quoted_cell_may_hold_commas_marks_and_line_breaks(tmp_path):
    frame = _read(_written(tmp_path, b'age,sex\r\n"4,1","a ""b""\nc"\r\n'))
    assert frame.loc[0].tolist() == ["4,1", 'a "b"\nc']


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n \n", "is empty"),
        (b"\nage,sex\n1,m\n", "no header line"),
        (b"age,sex\n", "no patient"),
        (b"PK\x03\x04\x00\x00binary", "binary file"),
        (b"age,sex\n1,\xff\xfe\n", "not UTF-8 near byte 10"),
        (b"age\xff,sex\n1,m\n", "not UTF-8 near byte 3"),
        (b"age,sex\n1,m\n2,f,3,4\n", "line 3 has 4 cells"),
        (b"age,sex\n1,m\n2\n", "line 3 has 1 cells"),
        (b'age,sex\n1,"m\n2,f\n', "never closed"),
    ],
    ids=[
        "empty",
        "blank",
        "blank-header",
        "header-only",
        "spreadsheet",
        "latin",
        "latin-header",
        "ragged",
        "short",
        "open-quote",
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path, content, said):
    with pytest.raises(DataSourceError, match=said):
        _read(_written(tmp_path, content))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_file_names_the_setting_to_correct(tmp_path, suffix):
    with pytest.raises(DataSourceError, match=r"data\.path"):
        _read(tmp_path / f"absent.{suffix}")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_is_said_with_the_columns_that_there_are(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    frame = pd.DataFrame({"Age": [41], "sex": ["f"]})
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    with pytest.raises(TableFaultsError, match=r"column 'age': the column is missing; did you mean 'Age'"):
        TableEncoder(SCHEMA).encode(_read(path))


def test_a_column_that_stands_twice_is_no_guess(tmp_path):
    with pytest.raises(TableFaultsError, match="column 'age': the column stands 2 times"):
        TableEncoder(SCHEMA).encode(_read(_written(tmp_path, b"age,sex,age\n1,f,2\n")))


def test_the_row_of_a_fault_is_the_line_of_the_file_in_whatever_block_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_module, "_BLOCK_BYTES", 256)
    lines = ["age,sex", *(f"{n % 99},f" for n in range(1000))]
    lines[777] = "12,x"
    encoder = TableEncoder(SCHEMA)
    source = open_source(TableFile(kind="csv", path=_written(tmp_path, "\n".join(lines).encode())))
    assert sum(len(encoder.encode(frame)) for frame in source.chunks(SCHEMA)) == 1000
    with pytest.raises(TableFaultsError) as caught:
        encoder.group()
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(778, "sex")]


def test_parquet_is_read_and_a_pretender_is_refused(tmp_path):
    frame = pd.DataFrame({"age": [41, 52], "sex": ["f", "m"]})
    frame.to_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(_read(tmp_path / "p.parquet"), frame, check_dtype=False)
    with pytest.raises(DataSourceError, match="not Parquet"):
        _read(_written(tmp_path, b"age\n1\n", "q.parquet"))
    frame.head(0).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataSourceError, match="no patient"):
        _read(tmp_path / "r.parquet")


def test_large_numbers_as_identifiers_stay_exact_beside_missing_ones(tmp_path):
    ids = pa.array([2**60, 2**60 + 1, None], pa.int64())
    pq.write_table(pa.table({"age": [1, 2, 3], "sex": ["f"] * 3, "id": ids}), tmp_path / "p.parquet")
    frame = _read(tmp_path / "p.parquet", SCHEMA.model_copy(update={"patient_id": "id"}))
    assert frame["id"].tolist()[:2] == [str(2**60), str(2**60 + 1)]


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
