"""JSON Lines: one object per patient, in UTF-8; days as ISO text, an absent value as null."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pandas as pd

from server.exports.context import ExportContext
from server.exports.values import column_values

MEDIA_TYPE = "application/jsonl; charset=utf-8"


class JsonLinesWriter:
    """`cohort.jsonl`."""

    def __init__(self, folder: Path, _context: ExportContext) -> None:
        self.media_types = {"cohort.jsonl": MEDIA_TYPE}
        self._file = (folder / "cohort.jsonl").open("w", encoding="utf-8", newline="")

    def write(self, table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""
        heads = [json.dumps(name, ensure_ascii=False) + ": " for name in table.columns]
        columns = [
            [head + cell for cell in _cells(table[name])]
            for head, name in zip(heads, table.columns, strict=True)
        ]
        self._file.writelines("{" + ", ".join(row) + "}\n" for row in zip(*columns, strict=True))

    def close(self) -> None:
        """See `FormatWriter`."""
        self._file.close()


def _cells(series: pd.Series) -> list[str]:
    """One column as JSON; each category is put into JSON once."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        names = [*(json.dumps(name, ensure_ascii=False) for name in series.cat.categories), "null"]
        return [names[code] for code in series.cat.codes.tolist()]
    return [json.dumps(value, default=dt.date.isoformat) for value in column_values(series)]
