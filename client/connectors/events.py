"""Clinical records gathered into rows: what FHIR and OMOP sources have in common."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from models.faults import FaultList
from models.mapping import FhirMapping, OmopMapping, Take
from models.schema import Column, DateColumn

Row = Hashable  # a patient's or a visit's identifier


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record as it fills a column.

    Attributes:
        value: None where the record has none.
        time: seconds since 1970, for the order; None where it has no date.
        day: ISO date as the hospital wrote it.
        place: where it stands, for faults.
    """

    value: object
    time: float | None
    day: str | None
    place: str


class GatheredColumn:
    """One column while the records of all rows come by, in any order."""

    def __init__(self, column: Column, take: Take, values: dict[str, str], faults: FaultList) -> None:
        self._name = column.name
        self._is_date = isinstance(column, DateColumn)
        self._take = take
        self._values = values
        self._faults = faults
        self._kept: dict[Row, Any] = {}

    def add(self, row: Row, record: Record) -> None:
        """Take a record in."""
        take = self._take
        if take == "present":
            self._kept[row] = True
        elif take == "count":
            self._kept[row] = self._kept.get(row, 0) + 1
        elif take in ("first", "last"):
            self._add_in_time(row, record)
        elif record.value is not None:
            self._add_number(row, record)

    def value(self, row: Row) -> object:
        """What the row gets; None where it is missing."""
        if self._take == "present":
            return row in self._kept
        if self._take == "count":
            return self._kept.get(row, 0)
        kept = self._kept.get(row)
        if kept is None:
            return None
        if self._take in ("first", "last"):
            return kept[1]
        return kept[0] / kept[1] if self._take == "mean" else kept

    def finish(self) -> None:
        """Put what was chosen into the study's words, once all records were taken in."""
        if self._take in ("first", "last"):
            for row, (time, value, place) in self._kept.items():
                self._kept[row] = (
                    time,
                    translated(value, self._values, self._name, place, self._faults),
                    place,
                )

    def _add_in_time(self, row: Row, record: Record) -> None:
        value = record.day if self._is_date else record.value
        if value is None and record.time is not None:
            return  # a result that is absent; there may be others
        if record.time is None:
            self._faults.add(
                None,
                self._name,
                f"{record.place}: has no date that can be read, but take is {self._take!r}",
            )
            return
        kept = self._kept.get(row)
        if kept is None or (record.time >= kept[0] if self._take == "last" else record.time < kept[0]):
            self._kept[row] = (record.time, value, record.place)

    def _add_number(self, row: Row, record: Record) -> None:
        try:
            number = float(str(record.value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self._faults.add(None, self._name, f"{record.place}: {str(record.value)[:60]!r} is not a number")
            return
        kept = self._kept.get(row)
        if self._take == "mean":
            total, count = kept or (0.0, 0)
            self._kept[row] = (total + number, count + 1)
        elif kept is None:
            self._kept[row] = number
        else:
            self._kept[row] = (min if self._take == "lowest" else max)(kept, number)


def mappings_of(columns: Sequence[Column], kind: str) -> list[tuple[Column, FhirMapping | OmopMapping]]:
    """Each column's mapping for a kind of source.

    Raises:
        TableFaultsError: names the columns that have none.
    """
    faults = FaultList()
    found: list[tuple[Column, FhirMapping | OmopMapping]] = []
    for column in columns:
        mapping = column.fhir if kind == "fhir" else column.omop
        if mapping is None:
            faults.add(
                None,
                column.name,
                f"the study does not say what fills it from {kind}; it needs `{kind}` there",
            )
        else:
            found.append((column, mapping))
    faults.raise_if_any()
    return found


def translated(value: object, values: dict[str, str], column: str, place: str, faults: FaultList) -> object:
    """A value in the study's words; a fault where the study has no word for it.

    Args:
        value: one value, or the several codes that a record has for one thing.
        values: see `models.mapping`; empty: as it is.
        column, place: for the fault.
        faults: where it goes.
    """
    candidates = value if isinstance(value, tuple) else (value,)
    if not values or value is None:
        return candidates[0] if candidates else None
    for candidate in candidates:
        if str(candidate) in values:
            return values[str(candidate)]
    shown = str(candidates[0])[:60] if candidates else ""
    faults.add(None, column, f"{place}: {shown!r} is not among the mapping's values {sorted(values)[:12]}")
    return None


def time_of(text: str) -> float | None:
    """Seconds since 1970 of a date or a time; without month, day or zone the first and UTC. None: unreadable."""
    padded = (text + "-01-01")[:10] if len(text) in (4, 7) else text
    try:
        moment = dt.datetime.fromisoformat(padded)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return moment.timestamp()


def day_of(text: str) -> dt.date | None:
    """The day of a date or a time as written; without month or day the first. None: unreadable."""
    padded = (text + "-01-01")[:10] if len(text) in (4, 7) else text[:10]
    try:
        return dt.date.fromisoformat(padded)
    except ValueError:
        return None


def completed_years(birth: dt.date, at: dt.date) -> int:
    """Age in years on a day."""
    return at.year - birth.year - ((at.month, at.day) < (birth.month, birth.day))
