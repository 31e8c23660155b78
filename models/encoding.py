"""Tables to codes: each column's values become levels of the public schema; nothing is fitted to the data.

The faults that are found name rows, columns and values: they are for the hospital's own screen and never
leave the site.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from models.decoding import decode_table
from models.faults import MAX_FAULTS, Fault, FaultList, TableFaultsError
from models.schema import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    DateColumn,
    GridColumn,
    IntegerColumn,
    OrdinalColumn,
    StudySchema,
)
from models.table import EncodedTable, one_hot

__all__ = [
    "MAX_FAULTS",
    "EncodedTable",
    "Fault",
    "TableFaultsError",
    "decode_table",
    "encode_table",
    "one_hot",
]

_TRUE = ("1", "true", "yes", "y", "t", "1.0")
_FALSE = ("0", "false", "no", "n", "f", "0.0")


def encode_table(frame: pd.DataFrame, schema: StudySchema) -> EncodedTable:
    """Encode a site's table.

    Privacy: reads patients' rows. What is returned and what is raised stay at the site.

    Args:
        frame: one row per record, typed or all text; columns beyond the schema's are ignored.
        schema: what each column may hold.

    Returns:
        Codes with each patient's records beside each other, in order of first appearance.

    Raises:
        TableFaultsError: every fault with its row as in a CSV file (the header is line 1) and its column.
    """
    faults = FaultList()
    _check_columns(frame, schema, faults)
    faults.raise_if_any()
    codes = np.empty((len(frame), len(schema.columns)), dtype=np.int64)
    for position, column in enumerate(schema.columns):
        codes[:, position] = _encode_column(frame[column.name], column, faults)
    order, offsets = _group_patients(frame, schema, faults)
    faults.raise_if_any()
    grouped = torch.from_numpy(codes if order is None else codes[order])
    return EncodedTable(codes=grouped, patient_offsets=torch.from_numpy(offsets))


def _check_columns(frame: pd.DataFrame, schema: StudySchema, faults: FaultList) -> None:
    wanted = [*schema.names, *([] if schema.patient_id is None else [schema.patient_id])]
    present = list(frame.columns)
    for name in wanted:
        times = present.count(name)
        if times == 0:
            near = [str(other) for other in present if str(other).strip().lower() == name.lower()]
            hint = f"; did you mean {near[0]!r}?" if near else f"; the table has {[str(n) for n in present]}"
            faults.add(None, name, f"the column is missing{hint}")
        elif times > 1:
            faults.add(None, name, f"the column stands {times} times; keep one")
    if len(frame) == 0:
        faults.add(None, "", "the table has no rows")


def _group_patients(
    frame: pd.DataFrame, schema: StudySchema, faults: FaultList
) -> tuple[np.ndarray | None, np.ndarray]:
    """The order that puts each patient's rows together (None: as they are), and offsets (P + 1,)."""
    if schema.patient_id is None:
        return None, np.arange(len(frame) + 1, dtype=np.int64)
    name = schema.patient_id
    ids = frame[name]
    blank = ids.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(ids.dtype):
        blank = blank | (ids.astype("string").str.strip() == "").fillna(False).to_numpy(dtype=bool)
    faults.add_rows(name, blank, lambda _: "the patient's identifier is missing")
    patients, _ = pd.factorize(ids)
    counts = np.bincount(patients[patients >= 0])
    most = schema.max_records_per_patient
    if counts.size and counts.max() > most:
        rank = pd.Series(patients).groupby(patients).cumcount().to_numpy()
        first_beyond = (rank == most) & (patients >= 0)
        faults.add_rows(
            name,
            first_beyond,
            lambda row: (
                f"this patient has {counts[patients[row]]} records; the study allows {most} "
                "(max_records_per_patient): choose among them before the study"
            ),
        )
    order = np.argsort(patients, kind="stable")
    return order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _encode_column(series: pd.Series, column: Column, faults: FaultList) -> np.ndarray:
    """Levels, shape (R,); a value at fault gets level 0 and a fault."""
    if isinstance(column, CategoricalColumn | OrdinalColumn | BooleanColumn):
        return _encode_named(series, column, faults)
    return _encode_grid(series, column, faults)


def _encode_named(
    series: pd.Series, column: CategoricalColumn | OrdinalColumn | BooleanColumn, faults: FaultList
) -> np.ndarray:
    # Distinct values are few: look each up once.
    indices, distinct = pd.factorize(series)
    texts = [_as_text(value) for value in distinct]
    if isinstance(column, BooleanColumn):
        levels = {**dict.fromkeys(_FALSE, 0), **dict.fromkeys(_TRUE, 1)}
        found = [-1 if text == "" else levels.get(text.lower(), -2) for text in texts]
        wanted = "true or false (also 1/0, yes/no)"
    else:
        levels = {name: level for level, name in enumerate(column.categories)}
        found = [levels.get(text, -1 if text == "" else -2) for text in texts]
        shown = ", ".join(map(repr, column.categories[:12]))
        wanted = f"one of {shown}" + (" ..." if len(column.categories) > 12 else "")
    codes = np.array([*found, -1], dtype=np.int64)[indices]  # index -1 of factorize: missing
    faults.add_rows(
        column.name, codes == -2, lambda row: f"{_show(series.iloc[row])} is unknown; it must be {wanted}"
    )
    return _place_missing(codes, codes == -1, column, faults)


def _encode_grid(series: pd.Series, column: GridColumn, faults: FaultList) -> np.ndarray:
    numbers, missing = _as_days(series, column) if isinstance(column, DateColumn) else _as_numbers(series)
    whole = isinstance(column, IntegerColumn)
    wanted = "a date such as 2024-02-29" if isinstance(column, DateColumn) else "a number"
    unread = np.isnan(numbers) & ~missing
    faults.add_rows(column.name, unread, lambda row: f"{_show(series.iloc[row])} is not {wanted}")
    broken = np.zeros(len(numbers), dtype=bool)
    with np.errstate(invalid="ignore"):
        if whole:
            broken = (numbers != np.floor(numbers)) & np.isfinite(numbers)
            faults.add_rows(
                column.name, broken, lambda row: f"{_show(series.iloc[row])} is not a whole number"
            )
        low, high = column.bounds
        top = high if column.kind == "continuous" else high - 1
        beyond = ((numbers < low) | (numbers > top)) & ~broken
        if column.outside == "clip":
            beyond &= np.isinf(numbers)
        faults.add_rows(
            column.name,
            beyond,
            lambda row: (
                f"{_show(series.iloc[row])} lies outside {column.minimum} to {column.maximum}; correct it, "
                "or let the study say outside = 'clip'"
            ),
        )
    codes = np.searchsorted(column.edges, np.nan_to_num(numbers, nan=low), side="right") - 1
    codes = np.clip(codes, 0, column.num_values - 1).astype(np.int64)
    return _place_missing(codes, missing, column, faults)


def _place_missing(codes: np.ndarray, missing: np.ndarray, column: Column, faults: FaultList) -> np.ndarray:
    if not column.missing:
        faults.add_rows(
            column.name,
            missing,
            lambda _: "the value is missing; fill it, or let the study say missing = true",
        )
    return np.where(missing, column.num_values if column.missing else 0, np.maximum(codes, 0))


def _as_numbers(series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, NaN where there is none, and which values are absent; both shape (R,)."""
    if pd.api.types.is_numeric_dtype(series.dtype):
        missing = series.isna().to_numpy()
        return series.to_numpy(dtype=np.float64, na_value=np.nan), missing
    indices, distinct = pd.factorize(series)
    texts = [_as_text(value) for value in distinct]
    read = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    numbers = np.append(read, np.nan)[indices]
    return numbers, np.array([*(text == "" for text in texts), True], dtype=bool)[indices]


def _as_days(series: pd.Series, column: DateColumn) -> tuple[np.ndarray, np.ndarray]:
    """Days since the column's minimum, NaN where there is none, and which are absent; both shape (R,)."""
    indices, distinct = pd.factorize(series)
    texts = [_as_text(value) for value in distinct]
    # A date without its zone: the day as written at the hospital.
    days = pd.to_datetime(
        pd.Series([text[:10] for text in texts], dtype=object), errors="coerce", format="%Y-%m-%d"
    )
    since = (days - pd.Timestamp(column.minimum)).dt.days.to_numpy(dtype=np.float64)
    numbers = np.append(since, np.nan)[indices]
    return numbers, np.array([*(text == "" for text in texts), True], dtype=bool)[indices]


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
