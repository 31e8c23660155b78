"""The schema of a study's table: every column with public bounds, so that nothing is learnt from patients.

A column becomes a number of levels (its cardinality). Which levels there are is written here, by
whoever defines the study, from public knowledge; a missing value is a level of its own.
"""

from __future__ import annotations

import datetime as dt
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from models.frozen import Frozen
from models.mapping import FhirMapping, OmopMapping

MAX_CARDINALITY = 4096


class _Column(Frozen):
    """What all columns have.

    Attributes:
        name: as in the site's table.
        title: for people; the name where absent.
        missing: whether a value may be absent; then absence is the last level.
        fhir, omop: how a site whose data are FHIR resources or an OMOP database fills the column.
    """

    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f,]+$")
    title: str = ""
    description: str = ""
    missing: bool = False
    fhir: FhirMapping | None = None
    omop: OmopMapping | None = None

    @property
    def num_values(self) -> int:
        """Levels without the one for missing values."""
        raise NotImplementedError

    @property
    def cardinality(self) -> int:
        """All levels, the one for missing values included."""
        return self.num_values + int(self.missing)


class CategoricalColumn(_Column):
    """One of a public list of names, without an order."""

    kind: Literal["categorical"]
    categories: tuple[str, ...] = Field(min_length=1, max_length=MAX_CARDINALITY)

    @property
    def num_values(self) -> int:
        """How many categories there are."""
        return len(self.categories)

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalColumn:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"column {self.name!r}: a category stands twice in {list(self.categories)}")
        return self


class OrdinalColumn(_Column):
    """One of a public list of names, from low to high."""

    kind: Literal["ordinal"]
    categories: tuple[str, ...] = Field(min_length=1, max_length=MAX_CARDINALITY)

    @property
    def num_values(self) -> int:
        """How many categories there are."""
        return len(self.categories)

    @model_validator(mode="after")
    def _distinct(self) -> OrdinalColumn:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"column {self.name!r}: a category stands twice in {list(self.categories)}")
        return self


class BooleanColumn(_Column):
    """True or false; level 0 is false."""

    kind: Literal["boolean"]

    @property
    def num_values(self) -> int:
        """Two."""
        return 2


class _GridColumn(_Column):
    """A quantity on a public grid of bins.

    Attributes:
        unit: UCUM code where there is one, for people and exports.
        bins: at most this many bins; an integer column never has more bins than integers.
        scale: `linear` (bins of equal width) or `log` (for skewed columns: one bin from the minimum to
            `log_floor`, then bins of equal ratio).
        log_floor: where the logarithmic grid starts, above 0.
        outside: what a value beyond the bounds is: a fault of the table, or clipped to the bound.
    """

    unit: str = ""
    bins: int = Field(default=24, ge=1, le=MAX_CARDINALITY)
    scale: Literal["linear", "log"] = "linear"
    log_floor: float | None = None
    outside: Literal["refuse", "clip"] = "refuse"

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value as numbers; the highest belongs to the last bin."""
        raise NotImplementedError

    @cached_property
    def edges(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Edges of the bins, ascending, shape (num_values + 1,); a bin holds its left edge."""
        low, high = self.bounds
        if self.scale == "linear":
            return np.linspace(low, high, self.bins + 1)
        floor = float(self.log_floor or 0)
        if low >= floor:
            return np.geomspace(low, high, self.bins + 1)
        return np.concatenate([[low], np.geomspace(floor, high, self.bins)])

    @property
    def num_values(self) -> int:
        """How many bins there are."""
        return len(self.edges) - 1

    def _check_grid(self) -> None:
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"column {self.name!r}: minimum {low} must lie below maximum {high}")
        if self.scale == "log":
            if self.log_floor is None or not 0 < self.log_floor < high:
                raise ValueError(
                    f"column {self.name!r}: scale 'log' needs a log_floor above 0 and below the maximum {high}, "
                    f"not {self.log_floor}"
                )
            if self.bins < 2:
                raise ValueError(f"column {self.name!r}: scale 'log' needs at least 2 bins, not {self.bins}")
        elif self.log_floor is not None:
            raise ValueError(f"column {self.name!r}: log_floor is for scale = 'log' only")


class ContinuousColumn(_GridColumn):
    """A real quantity between public bounds."""

    kind: Literal["continuous"]
    minimum: float
    maximum: float
    decimals: int = Field(default=6, ge=0, le=12)

    @property
    def bounds(self) -> tuple[float, float]:
        """Minimum and maximum."""
        return self.minimum, self.maximum

    @model_validator(mode="after")
    def _grid(self) -> ContinuousColumn:
        self._check_grid()
        return self


class IntegerColumn(_GridColumn):
    """A whole number between public bounds, both included."""

    kind: Literal["integer"]
    minimum: int
    maximum: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Minimum and one past the maximum, so that bins of whole numbers have equal widths."""
        return float(self.minimum), float(self.maximum + 1)

    @cached_property
    def edges(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Edges on whole numbers, ascending, shape (num_values + 1,); a bin holds its left edge."""
        return np.unique(np.ceil(super().edges))

    @model_validator(mode="after")
    def _grid(self) -> IntegerColumn:
        self._check_grid()
        return self


class DateColumn(_GridColumn):
    """A calendar day between public bounds, both included; numbers are days since the minimum."""

    kind: Literal["date"]
    minimum: dt.date
    maximum: dt.date
    scale: Literal["linear"] = "linear"

    @property
    def bounds(self) -> tuple[float, float]:
        """0 and one past the last day."""
        return 0.0, float((self.maximum - self.minimum).days + 1)

    @cached_property
    def edges(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Edges on whole days, ascending, shape (num_values + 1,); a bin holds its left edge."""
        return np.unique(np.ceil(super().edges))

    @model_validator(mode="after")
    def _grid(self) -> DateColumn:
        self._check_grid()
        return self


GridColumn = ContinuousColumn | IntegerColumn | DateColumn
Column = Annotated[
    CategoricalColumn | OrdinalColumn | BooleanColumn | ContinuousColumn | IntegerColumn | DateColumn,
    Field(discriminator="kind"),
]


class StudySchema(Frozen):
    """The table of a study.

    Attributes:
        columns: in the order that releases and cohorts have them.
        label: the column that downstream tasks predict, if one is declared.
        patient_id: the column that names the patient; rows with one id are one patient. Where absent,
            the site vouches that every row is another patient. The id itself is never learnt.
        rows: what a row is where a site derives the table from FHIR or OMOP: a patient, or a visit.
        max_records_per_patient: how many rows one patient may have.
        records_beyond: what more rows are: a fault of the site's table, or `sample`: a random subset of that
            many is kept, drawn at the site for each patient on its own.
        site: the column that says which site a patient is of, if the release is to have it: the last one, categorical,
            its categories the sites' names. No site has it in its table: whose patients they are is known anyway.
        constraints: conditions such as `diastolic < systolic` (see `models.conditions`) that every patient served
            satisfies; public knowledge, not taken from the data. Of an equality, `total == fees + drugs`, the column
            that stands alone follows from the others (`models.derivations`).

    Privacy: neither bound nor subset changes what one patient may add to a release: in the measurement a
        patient's records share one unit of weight, and a training step sees one of them. The bound says how many
        records share, and is what a mechanism that adds records up has to multiply its sensitivity by.
    """

    columns: tuple[Column, ...] = Field(min_length=1)
    label: str | None = None
    patient_id: str | None = None
    rows: Literal["patient", "visit"] = "patient"
    max_records_per_patient: int = Field(default=1, ge=1)
    records_beyond: Literal["refuse", "sample"] = "refuse"
    constraints: tuple[str, ...] = Field(default=(), max_length=50)
    site: str | None = None

    @cached_property
    def measured(self) -> StudySchema:
        """What the sites have in their tables: all columns but `site`."""
        if self.site is None:
            return self
        return self.model_copy(update={"columns": self.columns[:-1], "site": None})

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites that the release tells apart; none where it has no such column."""
        last = self.columns[-1]
        return last.categories if self.site is not None and isinstance(last, CategoricalColumn) else ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """The columns' numbers of levels, in order; their sum is the one-hot width D."""
        return tuple(column.cardinality for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"there is no column {name!r}; the schema has {list(self.names)}")

    @model_validator(mode="after")
    def _names(self) -> StudySchema:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"columns stand twice: {twice}")
        if self.label is not None and self.label not in self.names:
            raise ValueError(f"label {self.label!r} is no column; the columns are {list(self.names)}")
        if self.patient_id is not None and self.patient_id in self.names:
            raise ValueError(
                f"patient_id {self.patient_id!r} is listed as a column; an identifier is never learnt: take it out"
            )
        if self.max_records_per_patient > 1 and self.patient_id is None:
            raise ValueError(
                "max_records_per_patient above 1 needs patient_id: which rows are one patient's?"
            )
        if self.rows == "visit" and self.patient_id is None:
            raise ValueError("rows = 'visit' needs patient_id: a patient's visits are one unit")
        if self.records_beyond == "sample" and self.patient_id is None:
            raise ValueError("records_beyond = 'sample' needs patient_id: which rows are one patient's?")
        return self

    @model_validator(mode="after")
    def _site(self) -> StudySchema:
        if self.site is None:
            return self
        last = self.columns[-1]
        if last.name != self.site or not isinstance(last, CategoricalColumn) or len(self.columns) < 2:
            raise ValueError(
                f"site is {self.site!r}; it must be the name of the last column, a categorical one whose categories "
                "are the sites' names, after at least one other column"
            )
        if last.missing or last.fhir is not None or last.omop is not None or self.label == self.site:
            raise ValueError(
                f"site is {self.site!r}; that column is in no site's table: it has no missing values, no mapping to "
                "FHIR or OMOP, and cannot be the label"
            )
        return self

    @model_validator(mode="after")
    def _constraints(self) -> StudySchema:
        from models.condition_reader import parse_condition  # conditions speak of schemas
        from models.conditions import ConditionError, columns_of
        from models.derivations import derivations_of

        parsed = []
        for constraint in self.constraints:
            try:
                parsed.append(parse_condition(constraint, self))
                derivations_of(parsed[-1:], self)
            except ConditionError as error:
                raise ValueError(f"constraint {constraint!r}: {error}") from error
        derivations_of(parsed, self)
        if self.site is not None and any(len(self.columns) - 1 in columns_of(one) for one in parsed):
            raise ValueError(
                f"a constraint speaks of {self.site!r}, the column of sites; it can only speak of others"
            )
        return self
