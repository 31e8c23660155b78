"""What every file of a cohort may say about where it comes from; nothing that differs between two equal draws."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

from models.schema import Column, StudySchema
from models.study import Study
from privacy.canonical import digest
from server.cohorts import CohortRequest
from server.releases import Release

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:fedtwin:synthetic")
NOT_A_PERSON = "SYNTHETIC: drawn from a differentially private model; no record is a person."


@dataclass(frozen=True, kw_only=True)
class ExportContext:
    """Where a draw comes from.

    Attributes:
        release: digest.
        study: name.
        study_title: for people.
        study_digest: of its definition.
        schema: of its table.
        columns: names of those that were asked for, in the schema's order.
        draw: 12 hexadecimal digits, the same for the same release, seed, number and conditions; part of every
            patient's name, so that patients of two draws can lie in one database.
        released_on: day on which the release was made.
        has_images: whether a picture comes with every patient.
    """

    release: str
    study: str
    study_title: str
    study_digest: str
    schema: StudySchema
    columns: tuple[str, ...]
    draw: str
    released_on: dt.date
    has_images: bool = False

    @classmethod
    def of(cls, release: Release, study: Study, request: CohortRequest) -> ExportContext:
        """The context of a request; `request.seed` is drawn already."""
        draw = digest(
            {
                "release": release.digest,
                "seed": request.seed,
                "num_patients": request.num_patients,
                "conditions": list(request.conditions),
            }
        )
        return cls(
            release=release.digest,
            study=study.name,
            study_title=study.title or study.name,
            study_digest=release.study_digest,
            schema=study.table,
            columns=request.columns or study.table.names,
            draw=draw.partition(":")[2][:12],
            released_on=release.created_at.date(),
            has_images=study.modality != "table",
        )

    @property
    def chosen(self) -> tuple[Column, ...]:
        """The columns that were asked for."""
        return tuple(column for column in self.schema.columns if column.name in self.columns)

    def patient_name(self, number: int) -> str:
        """The name of the patient of that number (from 1) in this draw; letters, digits and hyphens."""
        return f"synthetic-{self.draw}-{number:07d}"

    def uuid(self, *parts: object) -> uuid.UUID:
        """A UUID that the draw and `parts` determine."""
        return uuid.uuid5(_NAMESPACE, "/".join([self.draw, *map(str, parts)]))
