"""Tables to codes: each column's values become levels of the public schema; nothing is fitted to the data.

The faults that are found name rows, columns and values: they are for the hospital's own screen and never
leave the site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    "TableEncoder",
    "TableFaultsError",
    "codes_of",
    "decode_table",
    "encode_table",
    "one_hot",
]

_TRUE = ("1", "true", "yes", "y", "t", "1.0")
_FALSE = ("0", "false", "no", "n", "f", "0.0")


Uniforms = Callable[[int], np.ndarray]  # n independent uniforms in [0, 1), float64 (n,)


class TableEncoder:
    """Encodes a table that comes in chunks of rows, so that it need not fit into memory.

    Privacy: reads patients' rows. What is returned and what is raised stay at the site.

    Args:
        schema: what each column may hold.
    """

    def __init__(self, schema: StudySchema) -> None:
        self._schema = schema
        self._faults = FaultList()
        self._ids: list[pd.Series] = []
        self._num_rows = 0

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """The next rows' levels, (R, K) int64. Faults are kept for `group`; a value at fault gets level 0.

        Args:
            frame: one row per record, typed or all text; columns beyond the schema's are ignored.

        Raises:
            TableFaultsError: a column is missing or stands twice.
        """
        self._faults.first_row = self._num_rows
        columns = FaultList()
        _check_columns(frame, self._schema, columns)
        columns.raise_if_any()
        codes = np.empty((len(frame), len(self._schema.columns)), dtype=np.int64)
        for position, column in enumerate(self._schema.columns):
            codes[:, position] = _encode_column(frame[column.name], column, self._faults)
        if self._schema.patient_id is not None:
            self._ids.append(self._identifiers(frame[self._schema.patient_id]))
        self._num_rows += len(frame)
        return codes

    def group(self, uniforms: Uniforms | None = None) -> tuple[np.ndarray | None, np.ndarray]:
        """Which rows are whose, once all are encoded.

        Privacy: with `records_beyond = "sample"` a patient with too many records keeps a random subset. Which
            one depends on nothing but that patient's records and own uniforms, so no other patient's part in
            any sum changes, and one patient stays one unit.

        Args:
            uniforms: draws for `records_beyond = "sample"`, one for each row whatever the rows hold.

        Returns:
            order: rows so that each patient's lie together, in order of first appearance (None: as they are).
            offsets: (P + 1,) int64, where each patient's rows begin in that order.

        Raises:
            TableFaultsError: every fault with its row as in a CSV file (the header is line 1) and its column.
        """
        if self._num_rows == 0:
            self._faults.add(None, "", "the table has no rows")
        self._faults.raise_if_any()
        if self._schema.patient_id is None:
            return None, np.arange(self._num_rows + 1, dtype=np.int64)
        patients, _ = pd.factorize(pd.concat(self._ids, ignore_index=True))
        counts = np.bincount(patients)
        most = self._schema.max_records_per_patient
        if counts.max() > most:
            if self._schema.records_beyond == "refuse":
                self._refuse_beyond(patients, counts)
            if uniforms is None:
                raise ValueError("records_beyond is 'sample': give uniforms to choose the records by")
            order = _some_of_each(patients, counts, most, uniforms(self._num_rows))
            counts = np.minimum(counts, most)
        else:
            order = np.argsort(patients, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        in_place = len(order) == self._num_rows and bool((np.diff(patients) >= 0).all())
        return None if in_place else order, offsets

    def _identifiers(self, ids: pd.Series) -> pd.Series:
        """Identifiers as they are compared: text without spaces around it, so that no patient counts as two."""
        blank = ids.isna().to_numpy()
        if not pd.api.types.is_integer_dtype(ids.dtype):
            distinct, names = pd.factorize(ids)
            texts = pd.array([_as_text(name) for name in names], dtype="string")
            ids = pd.Series(texts.take(distinct, allow_fill=True))
            blank = blank | (ids == "").fillna(False).to_numpy(dtype=bool)
        self._faults.add_rows(
            str(self._schema.patient_id), blank, lambda _: "the patient's identifier is missing"
        )
        return ids.astype("string").reset_index(drop=True)

    def _refuse_beyond(self, patients: np.ndarray, counts: np.ndarray) -> None:
        most = self._schema.max_records_per_patient
        rank = pd.Series(patients).groupby(patients).cumcount().to_numpy()
        self._faults.first_row = 0
        self._faults.add_rows(
            str(self._schema.patient_id),
            rank == most,
            lambda row: (
                f"this patient has {counts[patients[row]]} records; the study allows {most} "
                "(max_records_per_patient): choose among them before the study, "
                "or let it say records_beyond = 'sample'"
            ),
        )
        self._faults.raise_if_any()


def encode_table(
    frame: pd.DataFrame, schema: StudySchema, *, uniforms: Uniforms | None = None
) -> EncodedTable:
    """Encode a site's table that is in memory as a whole.

    Privacy: reads patients' rows. What is returned and what is raised stay at the site.

    Args:
        frame: one row per record, typed or all text; columns beyond the schema's are ignored.
        schema: what each column may hold.
        uniforms: see `TableEncoder.group`.

    Returns:
        Codes with each patient's records beside each other, in order of first appearance.

    Raises:
        TableFaultsError: every fault with its row as in a CSV file (the header is line 1) and its column.
    """
    encoder = TableEncoder(schema)
    codes = encoder.encode(frame)
    order, offsets = encoder.group(uniforms)
    grouped = torch.from_numpy(codes if order is None else codes[order])
    return EncodedTable(codes=grouped, patient_offsets=torch.from_numpy(offsets))


def codes_of(frame: pd.DataFrame, schema: StudySchema, names: Sequence[str]) -> np.ndarray:
    """The levels of some columns: (R, len(names)) int64.

    Raises:
        TableFaultsError: a value that the schema does not know.
    """
    columns = {column.name: column for column in schema.columns}
    faults = FaultList()
    codes = [_encode_column(frame[name], columns[name], faults) for name in names]
    faults.raise_if_any()
    return np.stack(codes, axis=1)


def _some_of_each(patients: np.ndarray, counts: np.ndarray, most: int, uniforms: np.ndarray) -> np.ndarray:
    """Rows of each patient, at most `most`, the ones with the smallest uniforms, in the table's order."""
    by_chance = np.lexsort((uniforms, patients))
    rank = np.arange(len(patients)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.sort(by_chance[rank < most])
    return kept[np.argsort(patients[kept], kind="stable")]


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
