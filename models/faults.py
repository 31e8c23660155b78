"""What is wrong with a table: rows, columns and problems, for the hospital's own eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_FAULTS = 100
FIRST_DATA_ROW = 2  # the header is line 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a table. # Sensitive: never sent, never logged.

    Attributes:
        row: line in the CSV file (the header is 1, the first record 2); None for the whole column.
        column: its name; empty for the whole table.
        problem: what is wrong and what to do.
    """

    row: int | None
    column: str
    problem: str

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column!r}"] if self.column else []
        return (", ".join(place) + ": " if place else "") + self.problem


class TableFaultsError(ValueError):
    """A table that does not fit its schema. # Sensitive: shown at the site only.

    Attributes:
        faults: the first `MAX_FAULTS`, by row.
        num_faults: how many there are in all.
    """

    def __init__(self, faults: list[Fault], num_faults: int) -> None:
        self.faults = faults
        self.num_faults = num_faults
        more = num_faults - len(faults)
        lines = [f"  {fault}" for fault in faults] + ([f"  and {more} more"] if more > 0 else [])
        noun = "fault" if num_faults == 1 else "faults"
        super().__init__(f"the table has {num_faults} {noun}:\n" + "\n".join(lines))


class FaultList:
    """Collects faults; keeps at most `MAX_FAULTS` of each column and counts all.

    Attributes:
        first_row: the position in the whole table of row 0 of what is looked at, for a table that comes in chunks.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._kept: Counter[str] = Counter()
        self._count = 0
        self.first_row = 0

    def add(self, row: int | None, column: str, problem: str) -> None:
        """Add one fault; `row` as in the file."""
        self._count += 1
        self._kept[column] += 1
        if self._kept[column] <= MAX_FAULTS:
            self._faults.append(Fault(row, column, problem))

    def add_rows(self, column: str, wrong: np.ndarray, describe: Callable[[int], str]) -> None:
        """Add a fault for each True of `wrong` (R,); `describe` gets the position from 0."""
        rows = np.flatnonzero(wrong)
        self._count += len(rows)
        shown = rows[: max(0, MAX_FAULTS - self._kept[column])]
        self._kept[column] += len(shown)
        self._faults += [
            Fault(int(row) + self.first_row + FIRST_DATA_ROW, column, describe(int(row))) for row in shown
        ]

    def __bool__(self) -> bool:
        return self._count > 0

    def raise_if_any(self) -> None:
        """Raise TableFaultsError when something was added."""
        if self:
            ordered = sorted(self._faults, key=lambda fault: fault.row or 0)
            raise TableFaultsError(ordered[:MAX_FAULTS], self._count)
