"""CSV: UTF-8, comma-separated, one header line; an absent value is an empty field.

A text that a spreadsheet would take for a formula gets a `'` in front, and so does such a text that begins with `'`
already, so that taking one `'` away gives every text back. Numbers and days are never touched, nor is a text that
is a plain number, such as `-5`.

References:
    OWASP, CSV Injection (cells that begin with = + - @, tab, carriage return or line feed, or a full-width form).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from server.exports.context import ExportContext

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
NOTE = "a text that begins like a formula (= + - @, tab, line end) has a ' in front; plain numbers have none"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def harmless(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula.

    >>> harmless("=1+1"), harmless("-5"), harmless("'=x"), harmless("<=50K")
    ("'=1+1", '-5', "''=x", '<=50K')
    """
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return "'" + text
    return text


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with harmless names of columns and categories; cells that are no text stay as they are."""
    columns = {}
    for name in table.columns:
        series = table[name]
        if isinstance(series.dtype, pd.CategoricalDtype):
            series = series.cat.rename_categories([harmless(str(one)) for one in series.cat.categories])
        columns[harmless(name)] = series
    return pd.DataFrame(columns, copy=False)


class CsvWriter:
    """`cohort.csv`."""

    def __init__(self, folder: Path, _context: ExportContext) -> None:
        self.media_types = {"cohort.csv": MEDIA_TYPE}
        self._file = (folder / "cohort.csv").open("w", encoding="utf-8", newline="")
        self._started = False

    def write(self, table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""
        without_formulas(table).to_csv(self._file, index=False, header=not self._started, lineterminator="\n")
        self._started = True

    def close(self) -> None:
        """See `FormatWriter`."""
        self._file.close()
