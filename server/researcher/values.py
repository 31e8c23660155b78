"""What the coordinator tells a researcher, as frozen values; see `server.api` for the fields' meaning."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from server.researcher.rendering import Listing, html_facts, html_table, text_facts
from server.unit_words import unit_words

T = TypeVar("T")
OPEN_STATES = frozenset({"queued", "running"})


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a release's data dictionary."""

    name: str
    kind: str
    title: str
    description: str
    unit: str | None
    missing: bool
    categories: tuple[str, ...] | None
    minimum: float | int | str | None
    maximum: float | int | str | None
    levels: int

    @property
    def values(self) -> str:
        """What it can hold, in words."""
        if self.categories is not None:
            told = ", ".join(self.categories)
        elif self.minimum is not None:
            told = f"{self.minimum} to {self.maximum} {unit_words(self.unit)}".rstrip()
        else:
            told = "true, false" if self.kind == "boolean" else ""
        return f"{told}; may be absent" if self.missing else told

    def row(self) -> Mapping[str, str]:
        """As a line of the dictionary."""
        meaning = ". ".join(dict.fromkeys(filter(None, (self.title, self.description))))
        return {"column": self.name, "kind": self.kind, "values": self.values, "meaning": meaning}


@dataclass(frozen=True, kw_only=True)
class SiteSpend:
    """What a patient of one site has given for the release: epsilon at delta, out of the cap; decimal text."""

    site: str
    spent_epsilon: str | None
    spent_delta: str | None
    cap_epsilon: str | None

    def row(self) -> Mapping[str, str]:
        """As a line of a table."""
        return {
            "site": self.site,
            "epsilon": self.spent_epsilon or "unknown",
            "cap": self.cap_epsilon or "",
            "delta": self.spent_delta or "",
        }


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files; `missing` says why a release cannot be had in it, None where it can."""

    name: str
    title: str
    missing: str | None
    columns_left_out: Mapping[str, str]

    def row(self) -> Mapping[str, str]:
        """As a line of a table."""
        return {"format": self.name, "what": self.title, "missing": self.missing or ""}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published generator, as the catalogue lists it."""

    digest: str
    state: str
    study: str
    title: str
    modality: str
    sites: tuple[str, ...]
    gate: str
    created_at: dt.datetime

    def row(self) -> Mapping[str, str]:
        """As a line of the catalogue."""
        return {
            "release": f"{self.digest[:19]}...",
            "study": self.study,
            "title": self.title,
            "sites": str(len(self.sites)),
            "state": self.state,
            "made": f"{self.created_at:%Y-%m-%d}",
        }

    def facts(self) -> dict[str, str]:
        """What there is to know at a glance."""
        return {
            "digest": self.digest,
            "study": self.study,
            "state": self.state,
            "sites": ", ".join(self.sites),
            "gate": self.gate,
            "made": f"{self.created_at:%Y-%m-%d %H:%M} UTC",
        }

    def __repr__(self) -> str:
        return text_facts(f"Release: {self.title}", self.facts())

    def _repr_html_(self) -> str:
        return html_facts(f"Release: {self.title}", self.facts())


@dataclass(frozen=True, kw_only=True)
class ReleaseDetails(Release):
    """A release with its data dictionary, its budgets and its limits of use.

    Attributes:
        budget: `epsilon` and `delta`: the study's cap per patient of one site.
        spends: what was spent at each site.
        limits_of_use: what it is not for.
    """

    description: str
    study_digest: str
    run: str
    round: int
    weights_digest: str
    budget: Mapping[str, float]
    spends: Listing[SiteSpend]
    columns: Listing[Column]
    label: str | None
    scores: Mapping[str, Any]
    formats: Listing[Format]
    limits_of_use: tuple[str, ...]
    reason: str
    ledger_index: int | None

    def facts(self) -> dict[str, str]:
        """What there is to know at a glance."""
        spent = ", ".join(f"{one.site} {one.spent_epsilon or 'unknown'}" for one in self.spends)
        return {
            **super().facts(),
            "budget": f"epsilon {self.budget['epsilon']:g} at delta {self.budget['delta']:g} per patient of a site",
            "spent": spent,
            "formats": ", ".join(one.name for one in self.formats if one.missing is None),
            "limits": " ".join(self.limits_of_use),
        }

    def __repr__(self) -> str:
        return f"{super().__repr__()}\n\n{self.columns!r}"

    def _repr_html_(self) -> str:
        return super()._repr_html_() + html_table([one.row() for one in self.columns])


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Synthetic pictures on one sheet; a notebook shows them. None is of a person.

    Attributes:
        png: the file, for `pathlib.Path.write_bytes`.
    """

    png: bytes

    def __repr__(self) -> str:
        return (
            f"Pictures({len(self.png):,} bytes of PNG; Path('pictures.png').write_bytes(....png) keeps them)"
        )

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True, kw_only=True)
class CohortFile:
    """A file of a completed cohort."""

    name: str
    num_bytes: int
    digest: str
    media_type: str


@dataclass(frozen=True, kw_only=True)
class CohortStatus:
    """A cohort as it stood when the coordinator was asked."""

    id: str
    state: str
    release: str
    num_patients: int
    seed: int
    conditions: tuple[Any, ...]
    columns: tuple[str, ...]
    formats: tuple[str, ...]
    percent: float
    patients_done: int
    eta_seconds: float | None
    reason: str
    files: tuple[CohortFile, ...]
    ledger_index: int | None
    created_at: dt.datetime
    expires_at: dt.datetime | None
    deleted_at: dt.datetime | None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be made."""
        return self.state in OPEN_STATES


def read_release(data: Mapping[str, Any]) -> Release:
    """A release as the catalogue tells it."""
    return _read(Release, data)


def read_details(data: Mapping[str, Any]) -> ReleaseDetails:
    """A release with everything about it."""
    return _read(
        ReleaseDetails,
        data,
        spends=Listing(_read(SiteSpend, one) for one in data["spends"]),
        columns=Listing(_read(Column, one) for one in data["columns"]),
        formats=Listing(_read(Format, one) for one in data["formats"]),
    )


def read_status(data: Mapping[str, Any]) -> CohortStatus:
    """A cohort's state."""
    return _read(CohortStatus, data, files=tuple(_read(CohortFile, one) for one in data["files"]))


def _read(kind: type[T], data: Mapping[str, Any], **known: Any) -> T:
    """The fields that we know of; what a newer coordinator says beyond them is left out."""
    values: dict[str, Any] = {}
    for one in fields(kind):  # type: ignore[arg-type]
        value = known.get(one.name, data[one.name])
        if one.name.endswith("_at") and isinstance(value, str):
            value = dt.datetime.fromisoformat(value)
        values[one.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
