"""A CSV file in chunks: cells stay text, so that the schema alone decides what they mean."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_file, fingerprint, stamp_of
from client.connectors.source import wanted_columns
from models.schema import StudySchema

MISSING_SPELLINGS = frozenset(("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?"))
_BLOCK_BYTES = 16 << 20
_SCAN_BYTES = 1 << 20
_BINARY_HEADS = (b"PK\x03\x04", b"PAR1", b"\x1f\x8b")
_TEXT = pa.dictionary(pa.int32(), pa.string())  # each block holds a distinct text once


class CsvFile:
    """Comma-separated UTF-8 text; the first line names the columns."""

    has_lines = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def stamp(self) -> str:
        """See `PatientSource.stamp`."""
        return stamp_of([self._path])

    def fingerprint(self, secret: bytes) -> str:
        """See `PatientSource.fingerprint`."""
        return fingerprint(existing_file(self._path), secret)

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """Blocks of the file, about 16 MiB of text each; see `PatientSource.chunks`.

        Raises:
            DataSourceError: absent, empty, not of that kind, or broken at a line that the message names.
        """
        names = self._header()
        wanted = wanted_columns(schema)
        # Where one is missing all are read, so that the message can say what there is.
        taken = [place for place, name in enumerate(names) if name in wanted or not set(wanted) <= set(names)]
        self._check_quotes()
        num_rows = 0
        try:
            for batch in self._batches(len(names), taken):
                num_rows += batch.num_rows
                frame = pd.concat([pd.Series(_texts(column)) for column in batch.columns], axis=1)
                frame.columns = [names[place] for place in taken]
                yield frame
        except pa.ArrowInvalid as error:
            raise DataSourceError(self._what_is_wrong(str(error))) from None
        if num_rows == 0:
            raise DataSourceError(
                f"{self._path.name} has a header and no patient; put one line per record below it"
            )

    def _header(self) -> list[str]:
        name = self._path.name
        with existing_file(self._path).open("rb") as file:
            head = file.read(65536)
        if not head.strip():
            raise DataSourceError(f"{name} is empty; the first line must name the columns")
        if b"\x00" in head or head.startswith(_BINARY_HEADS):
            raise DataSourceError(
                f"{name} is a binary file, not CSV; export it as comma-separated UTF-8 text"
            )
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as text:
                header = next(csv.reader(text, skipinitialspace=True))
        except UnicodeDecodeError:
            raise DataSourceError(self._bad_byte()) from None
        except csv.Error as error:
            raise DataSourceError(f"{name} has no header line that can be read: {error}") from None
        names = [column.strip() for column in header]
        if not any(names):
            raise DataSourceError(f"{name} has no header line; the first line must name the columns")
        if any("\n" in column for column in header):
            raise DataSourceError(f"{name}: a column's name holds a line break; write each name on one line")
        return names

    def _batches(self, num_columns: int, taken: list[int]) -> Iterator[pa.RecordBatch]:
        # Names may stand twice: the reader gets its own.
        keys = [str(place) for place in range(num_columns)]
        with arrow_csv.open_csv(
            self._path,
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, column_names=keys, skip_rows=1
            ),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(keys, _TEXT), include_columns=[keys[place] for place in taken]
            ),
        ) as reader:
            yield from reader

    def _check_quotes(self) -> None:
        """A quotation mark that is never closed would swallow all lines after it, without a word."""
        with self._path.open("rb") as file:
            num_quotes = sum(block.count(b'"') for block in iter(lambda: file.read(_SCAN_BYTES), b""))
        if num_quotes % 2:
            raise DataSourceError(
                f"{self._path.name} has an odd number of quotation marks, so that one is never closed; "
                'write a mark inside a quoted cell as ""'
            )

    def _what_is_wrong(self, message: str) -> str:
        if "UTF8" in message:
            return self._bad_byte()
        ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message)
        if ragged:
            line, expected, found = ragged.groups()
            return (
                f"{self._path.name} is not a table: line {line} has {found} cells, the header {expected}; "
                'put a cell that holds a comma between quotation marks ("")'
            )
        return f"{self._path.name} is not a table: {message.splitlines()[0]}"

    def _bad_byte(self) -> str:
        decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
        try:
            with self._path.open("rb") as file:
                while block := file.read(_SCAN_BYTES):
                    place += len(block)
                    decoder.decode(block)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            place += error.start - len(error.object)
        return f"{self._path.name} is not UTF-8 near byte {place}; export it as comma-separated UTF-8 text"


def _texts(column: pa.DictionaryArray) -> pd.Categorical:
    """Cells as text without spaces around it, missing spellings as missing."""
    texts = [str(text).strip() for text in column.dictionary.to_pylist()]
    present = dict.fromkeys(text for text in texts if text not in MISSING_SPELLINGS)
    kept = {text: code for code, text in enumerate(present)}
    codes = np.array([*(kept.get(text, -1) for text in texts), -1], dtype=np.int32)
    places = column.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return pd.Categorical.from_codes(codes[places], categories=pd.Index(list(kept), dtype=object))
