"""A drawn table's cells as plain Python values: text, number, truth value, day, or None where one is absent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

Value = str | int | float | bool | object | None


def column_values(series: pd.Series) -> list[Value]:
    """One column, (N,); days as `datetime.date`."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        names = [*series.cat.categories, None]  # code -1 is the last
        return [names[code] for code in series.cat.codes.tolist()]
    if series.dtype.kind == "M":
        return [None if day is pd.NaT else day.date() for day in series]
    absent = series.isna().to_numpy()
    if absent.any():
        values: np.ndarray = series.to_numpy(dtype=object)  # plain numbers
        return [None if gone else value for value, gone in zip(values.tolist(), absent, strict=True)]
    return series.tolist()


def row_values(table: pd.DataFrame) -> Iterator[tuple[Value, ...]]:
    """The rows, in the table's order of columns."""
    return zip(*(column_values(table[name]) for name in table.columns), strict=True)
