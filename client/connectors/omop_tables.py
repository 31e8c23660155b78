"""The event tables of an OMOP CDM 5.4 and what their columns are called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EventTable:
    """One table of records that belong to persons.

    Attributes:
        name: as in the CDM.
        columns: the CDM's names by ours; `id`, `person_id`, `visit`, `concept` and `start` are always there.
        has_values: whether a record has a value besides its concept.
    """

    name: str
    columns: Mapping[str, str]
    has_values: bool = False


_VALUES = {
    "number": "value_as_number",
    "value_concept": "value_as_concept_id",
    "unit": "unit_concept_id",
}


def _table(name: str, concept: str, start: str, has_values: bool = False, **more: str) -> EventTable:
    columns = {
        "id": f"{name}_id",
        "person_id": "person_id",
        "visit": "visit_occurrence_id",
        "concept": concept,
        "start": start,
        **(_VALUES if has_values else {}),
        **more,
    }
    return EventTable(name=name, columns=columns, has_values=has_values)


EVENT_TABLES = {
    table.name: table
    for table in (
        _table("visit_occurrence", "visit_concept_id", "visit_start_date", end="visit_end_date"),
        _table("condition_occurrence", "condition_concept_id", "condition_start_date"),
        _table("drug_exposure", "drug_concept_id", "drug_exposure_start_date"),
        _table("procedure_occurrence", "procedure_concept_id", "procedure_date"),
        _table("measurement", "measurement_concept_id", "measurement_date", has_values=True),
        _table(
            "observation",
            "observation_concept_id",
            "observation_date",
            has_values=True,
            text="value_as_string",
        ),
    )
}
