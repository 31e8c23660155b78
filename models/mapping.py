"""Which clinical records fill a column: FHIR resources or OMOP tables, named in the study, read by each site.

Data only: what a column means is public and the same at every site; how a site gets at it is the site's.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from models.frozen import Frozen

Take = Literal["present", "count", "first", "last", "lowest", "highest", "mean"]


def _day(value: object) -> object:
    """A day as JSON and TOML strings have it; TOML has dates of its own too."""
    if isinstance(value, str):
        return dt.date.fromisoformat(value)
    return value


Day = Annotated[dt.date, BeforeValidator(_day)]


class _Mapping(Frozen):
    """What both kinds have.

    Attributes:
        take: what becomes of a row's records: whether there is one (`present`), how many (`count`), or of their
            values the `first` or `last` in time, the `lowest`, `highest` or `mean`. In a date column `first` and
            `last` give the day of the record. Without any record `present` is false and `count` 0, the others
            are missing.
        values: translates what the records say to the column's categories; where given, anything else is a fault.
        at: the day that an age is taken at; without it the start of the visit in a table of visits, else the
            start of the patient's last visit.
    """

    take: Take | None = None
    values: dict[str, str] = Field(default_factory=dict)
    at: Day | None = None

    def _check(self, *, of_patient: bool, field: str, known: tuple[str, ...], where: str) -> None:
        if field not in known:
            raise ValueError(f"{where} has no field {field!r}; choose one of {list(known)}")
        if of_patient and self.take is not None:
            raise ValueError(f"take is {self.take!r}, but {where} is one per patient; leave take out")
        if not of_patient and self.take is None:
            raise ValueError(f"{where} may be many per patient; say which to take, such as take = 'last'")
        if self.values and self.take not in (None, "first", "last"):
            raise ValueError(
                f"values translates what the first or last record says, not take = {self.take!r}"
            )
        if self.at is not None and field != "age":
            raise ValueError(f"at is for field 'age' only, not for {field!r}")


class FhirMapping(_Mapping):
    """A column from FHIR R4 resources.

    Attributes:
        resource: the type of resource. Those entered in error, refuted or cancelled are left out.
        field: of a Patient `gender`, `birthDate`, `age` (completed years), `deceased` or `maritalStatus`; of an
            Encounter `days` (its length); else empty: an Observation's value, an Encounter's class, another's code.
        codes: `system|code`, any of which the resource must have (an Encounter: in `class` or `type`); where
            empty any resource will do.
        component: for an Observation with components, the `system|code` of the component with the value.
    """

    resource: Literal[
        "Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "Procedure", "Immunization"
    ]
    field: str = ""
    codes: tuple[Annotated[str, Field(pattern=r"^[^|\s]+\|[^|\s]+$")], ...] = ()
    component: str = Field(default="", pattern=r"^([^|\s]+\|[^|\s]+)?$")

    @model_validator(mode="after")
    def _fits(self) -> FhirMapping:
        fields = {
            "Patient": ("gender", "birthDate", "age", "deceased", "maritalStatus"),
            "Encounter": ("", "days"),
        }.get(self.resource, ("",))
        of_patient = self.resource == "Patient"
        self._check(of_patient=of_patient, field=self.field, known=fields, where=self.resource)
        if of_patient and self.codes:
            raise ValueError("codes are for resources other than Patient")
        if self.component and self.resource != "Observation":
            raise ValueError(f"component is for Observation only, not for {self.resource}")
        return self


class OmopMapping(_Mapping):
    """A column from the tables of an OMOP CDM 5.4 database.

    Attributes:
        table: the table.
        field: of a person `gender`, `race`, `ethnicity` (concept ids, to be translated by `values`), `birth_date`
            or `age` (completed years); of a visit_occurrence `concept` or `days` (its length); of a measurement or
            observation `number`, `concept` or (observation) `text`; elsewhere `concept`.
        concepts: standard concept ids, any of which the record must have; where empty any record will do.
        descendants: whether what lies below them in concept_ancestor counts too.
        unit_concepts: units that a measurement's or observation's number must be in; another is a fault.
    """

    table: Literal[
        "person",
        "visit_occurrence",
        "condition_occurrence",
        "drug_exposure",
        "procedure_occurrence",
        "measurement",
        "observation",
    ]
    field: str = "concept"
    concepts: tuple[int, ...] = ()
    descendants: bool = False
    unit_concepts: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> OmopMapping:
        fields = {
            "person": ("gender", "race", "ethnicity", "birth_date", "age"),
            "visit_occurrence": ("concept", "days"),
            "measurement": ("number", "concept"),
            "observation": ("number", "concept", "text"),
        }.get(self.table, ("concept",))
        of_patient = self.table == "person"
        self._check(of_patient=of_patient, field=self.field, known=fields, where=self.table)
        if of_patient and (self.concepts or self.descendants):
            raise ValueError("concepts are for tables other than person")
        if self.descendants and not self.concepts:
            raise ValueError("descendants needs concepts to descend from")
        if self.unit_concepts and self.field != "number":
            raise ValueError("unit_concepts is for field 'number' only")
        return self
