"""A cohort's files: streamed, the same bytes for the same draw, harmless in a spreadsheet, all in one zip."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.decoding import decode_table
from models.schema import StudySchema
from server.exports.archive import ZipStream
from server.exports.context import ExportContext
from server.exports.csv_file import CsvWriter, harmless
from server.exports.formats import DICTIONARY, FORMATS
from server.exports.images import DicomWriter, PngWriter, png_bytes
from server.exports.json_lines import JsonLinesWriter
from server.exports.writer import CohortWriter

SCHEMA = StudySchema.model_validate(
    {
        "columns": [
            {
                "name": "=cmd",
                "kind": "categorical",
                "categories": ["=1+1", "@x", "-5", 'ok, "so"', "'=1+1", "ü"],
                "missing": True,
            },
            {"name": "change", "kind": "integer", "minimum": -9, "maximum": 9, "missing": True},
            {"name": "level", "kind": "continuous", "minimum": -1.0, "maximum": 1.0},
            {"name": "day", "kind": "date", "minimum": dt.date(2020, 1, 1), "maximum": dt.date(2020, 12, 31)},
            {"name": "ill", "kind": "boolean", "missing": True},
        ]
    }
)


def _context(**more) -> ExportContext:
    values = {
        "release": "sha256:" + "4f" * 32,
        "study": "heart",
        "study_title": "Heart",
        "study_digest": "sha256:" + "5e" * 32,
        "schema": SCHEMA,
        "columns": SCHEMA.names,
        "draw": "0123456789ab",
        "released_on": dt.date(2026, 3, 1),
    }
    return ExportContext(**{**values, **more})


def _table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, n) for size in SCHEMA.cardinalities], axis=1)
    return decode_table(torch.from_numpy(codes), SCHEMA, rng=rng)


def _images(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, 7, 5), dtype=np.uint8)


def test_no_text_in_a_csv_is_a_formula_and_negative_numbers_stay_numbers(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path, _context())
    table = _table()
    writer.write(table, None)
    writer.close()
    with (tmp_path / "cohort.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["'=cmd", "change", "level", "day", "ill"]
    for row in [header, *rows]:
        for cell in row:
            if cell[:1] in set("=+-@\t\r"):
                float(cell)  # whatever begins so is a plain number
    assert {row[0] for row in rows} == {"'=1+1", "'@x", "-5", 'ok, "so"', "''=1+1", "ü", ""}
    found = pd.read_csv(tmp_path / "cohort.csv")
    assert found["change"].min() == -9
    np.testing.assert_array_equal(found["level"], table["level"])


@given(st.text(st.characters(codec="utf-8"), max_size=6), st.text(max_size=6))
def test_taking_one_quote_away_gives_every_text_back(one: str, other: str) -> None:
    assert (harmless(one) == harmless(other)) == (one == other)
    assert harmless(one) in (one, "'" + one)
    if harmless(one)[:1] in set("=+-@\t\r\n＝＋－＠"):
        float(one)


def test_json_lines_hold_the_values_as_json(tmp_path: Path) -> None:
    table = _table()
    writer = JsonLinesWriter(tmp_path, _context())
    writer.write(table.iloc[:100], None)
    writer.write(table.iloc[100:], None)
    writer.close()
    found = [json.loads(line) for line in (tmp_path / "cohort.jsonl").read_text("utf-8").splitlines()]
    assert len(found) == len(table)
    for row, values in zip(found, table.itertuples(index=False), strict=True):
        assert list(row) == list(SCHEMA.names)
        category, change, level, day, ill = values
        assert row["=cmd"] == (None if pd.isna(category) else category)
        assert row["change"] == (None if pd.isna(change) else change)
        assert row["level"] == level
        assert row["day"] == str(day.date())
        assert row["ill"] is (None if pd.isna(ill) else bool(ill))


def _write(folder: Path, *, parts: int = 1, images: bool = True) -> dict[str, bytes]:
    formats = [FORMATS[name] for name in ("csv", "parquet", "jsonl", "png", "dicom")] + [DICTIONARY]
    if not images:
        formats = [one for one in formats if one.name not in ("png", "dicom")]
    with CohortWriter(folder, formats, _context(), packed=True, token="t") as writer:
        for part in range(parts):
            writer.write(_table(40, part), _images(40, 3, part) if images else None)
        files = writer.finish()
    found = {file.name: (folder / file.name).read_bytes() for file in files}
    assert {path.name for path in folder.iterdir()} == set(found)  # no draft is left
    return found


def test_the_same_draw_gives_the_same_bytes_in_every_format(tmp_path: Path, monkeypatch) -> None:
    first = _write(tmp_path / "a", parts=2)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert _write(tmp_path / "b", parts=2) == first
    assert set(first) == {
        "cohort.csv",
        "cohort.parquet",
        "cohort.jsonl",
        "images-png.zip",
        "images-dicom.zip",
        "dictionary.json",
        "cohort.zip",
    }


def test_the_zip_holds_everything_and_any_reader_opens_it(tmp_path: Path) -> None:
    files = _write(tmp_path / "a")
    with zipfile.ZipFile(io.BytesIO(files.pop("cohort.zip"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(files)
        for info in archive.infolist():
            assert archive.read(info) == files[info.filename]
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-t", str(tmp_path / "a" / "cohort.zip")],
        capture_output=True,
        text=True,
    )
    assert "Done testing" in listed.stdout


def test_a_zip_of_more_members_than_16_bits_count_keeps_them_out_of_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    archive = ZipStream(tmp_path / "x.zip")
    for number in range(70_000):
        archive.add(f"{number}.txt", b"x")
    archive.close()
    archive.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
    with zipfile.ZipFile(tmp_path / "x.zip") as found:
        assert len(found.namelist()) == 70_000
        assert found.read("69999.txt") == b"x"


def test_a_broken_cohort_leaves_nothing_behind(tmp_path: Path) -> None:
    formats = [FORMATS["csv"], FORMATS["png"], DICTIONARY]
    with (
        pytest.raises(ValueError, match="pictures are None; they must be uint8"),
        CohortWriter(tmp_path / "c", formats, _context(), token="t") as writer,
    ):
        writer.write(_table(5))
    assert list((tmp_path / "c").iterdir()) == []


def test_chosen_columns_are_all_that_any_file_holds(tmp_path: Path) -> None:
    context = _context(columns=("change", "day"))
    formats = [FORMATS[name] for name in ("csv", "parquet", "jsonl")] + [DICTIONARY]
    with CohortWriter(tmp_path, formats, context, token="t") as writer:
        writer.write(_table(5))
        writer.finish()
    assert (tmp_path / "cohort.csv").read_text().splitlines()[0] == "change,day"
    assert pq.read_schema(tmp_path / "cohort.parquet").names == ["change", "day"]
    told = json.loads((tmp_path / "dictionary.json").read_text())
    assert [column["name"] for column in told["columns"]] == ["change", "day"]
    assert told["synthetic"] is True
    assert told["columns"][1] == {
        "name": "day",
        "kind": "date",
        "title": "day",
        "may_be_absent": False,
        "minimum": "2020-01-01",
        "maximum": "2020-12-31",
        "bins": 24,
    }


def test_parquet_says_of_itself_and_of_each_column_what_it_is(tmp_path: Path) -> None:
    _write(tmp_path, images=False)
    schema = pq.read_schema(tmp_path / "cohort.parquet")
    assert schema.metadata[b"fedtwin.synthetic"] == b"true"
    assert b"no record is a person" in schema.metadata[b"fedtwin.note"]
    told = json.loads(schema.field("change").metadata[b"fedtwin.column"])
    assert (told["minimum"], told["maximum"]) == (-9, 9)


@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_hold_the_pixels_and_the_manifest_the_rows(tmp_path: Path, channels: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is in the images extra")
    pictures, table = _images(6, channels), _table(6)
    writer = PngWriter(tmp_path, _context(has_images=True))
    writer.write(table, pictures)
    writer.close()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images-png.zip"]
    with zipfile.ZipFile(tmp_path / "images-png.zip") as archive:
        rows = list(csv.reader(io.StringIO(archive.read("manifest.csv").decode())))
        assert rows[0][:2] == ["file", "'=cmd"]
        for row, picture in zip(rows[1:], pictures, strict=True):
            opened = image.open(io.BytesIO(archive.read(row[0])))
            assert "SYNTHETIC" in opened.text["Comment"]
            pixels = np.asarray(opened).reshape(7, 5, channels).transpose(2, 0, 1)
            np.testing.assert_array_equal(pixels, picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_dicom_files_are_flagged_synthetic_and_hold_the_pixels(tmp_path: Path, channels: int) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is in the images extra")
    pictures = _images(4, channels)
    writer = DicomWriter(tmp_path, _context(has_images=True))
    writer.write(_table(4), pictures)
    writer.close()
    uids = set()
    with zipfile.ZipFile(tmp_path / "images-dicom.zip") as archive:
        for name, picture in zip(archive.namelist(), pictures, strict=True):
            data = pydicom.dcmread(io.BytesIO(archive.read(name)))
            assert data["SyntheticData"].tag == 0x0008001C
            assert data.SyntheticData == "YES"
            assert str(data.PatientName).startswith("SYNTHETIC^PATIENT")
            assert data.PatientID == name.removesuffix(".dcm")
            np.testing.assert_array_equal(
                data.pixel_array.reshape(7, 5, channels).transpose(2, 0, 1), picture
            )
            assert "change" in json.loads(data.ImageComments)
            for uid in (data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID):
                assert uid.is_valid
                assert uid.startswith("2.25.")
                uids.add(uid)
    assert len(uids) == 12


def test_pictures_of_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    writer = PngWriter(tmp_path, _context())
    for wrong in (_images(3), _images(4)[:, 0], _images(4, 2), _images(4).astype(np.float32)):
        with pytest.raises(ValueError, match="pictures"):
            writer.write(_table(4), wrong)
    writer.close()
    assert png_bytes(_images(1)[0]).startswith(b"\x89PNG")
