"""The coordinator, as a researcher sees it: catalogue, previews, cohorts."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from server.api_client import PATIENCE_SECONDS, ApiClient
from server.coordinator_error import CoordinatorError
from server.researcher.cohort import Cohort
from server.researcher.rendering import Listing
from server.researcher.values import (
    Pictures,
    Release,
    ReleaseDetails,
    read_details,
    read_release,
    read_status,
)

if TYPE_CHECKING:
    import pandas as pd

Conditions = str | Sequence[str | Mapping[str, Any]] | None
PAGE = 200


class Coordinator:
    """A coordinator that a researcher has a key for.

    Args:
        url: its address, for example `https://coordinator.example.org`; FEDTWIN_URL where absent.
        key: the API key, `ftw_...`; FEDTWIN_KEY where absent, which keeps it out of the notebook.
        ca: PEM file with the coordinator's own authority; FEDTWIN_CA, or else the system's authorities.
        patience_seconds: so long it is asked again after a connection dropped.

    Raises:
        CoordinatorError: no address or key, or an address over which the key could be read.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        ca: Path | str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        authority = ca or os.environ.get("FEDTWIN_CA") or None
        self._api = ApiClient(
            _given("url", url, "FEDTWIN_URL"),
            _given("key", key, "FEDTWIN_KEY"),
            ca=None if authority is None else Path(authority),
            patience_seconds=patience_seconds,
        )

    def releases(
        self,
        search: str | None = None,
        *,
        study: str | None = None,
        modality: str | None = None,
        column: str | None = None,
        limit: int = 200,
    ) -> Listing[Release]:
        """What is published, newest first.

        Args:
            search: words that the study's texts or columns hold.
            study: only releases of the study of this name.
            modality: only of this modality, such as `table`.
            column: only with a column of this name.
            limit: how many at most.
        """
        asked = {"q": search, "study": study, "modality": modality, "column": column, "state": "published"}
        params = {name: value for name, value in asked.items() if value is not None}
        found = self._api.pages("/releases", limit=min(limit, PAGE), **params)
        return Listing(read_release(one) for one in itertools.islice(found, limit))

    def release(self, release: Release | str) -> ReleaseDetails:
        """A release with its data dictionary, budgets and limits of use.

        Args:
            release: one of `releases`, or its digest.

        Raises:
            CoordinatorError: there is none, or none that may be seen.
        """
        return read_details(self._api.get(_path(release)))

    def preview(
        self,
        release: Release | str,
        *,
        where: Conditions = None,
        columns: Sequence[str] = (),
        seed: int = 0,
    ) -> pd.DataFrame:
        """Twenty synthetic patients at once; costs no row of the quota.

        Args:
            release: one of `releases`, or its digest.
            where: a condition such as `age >= 60 and sex == 'female'`, or several that must all hold.
            columns: names of those wanted; none: all.
            seed: another seed, other patients.

        Returns:
            Their table; days are ISO text. `attrs` says `share_of_release`, which is the probability of a patient of
            the release to satisfy the conditions, and how it is known.

        Raises:
            CoordinatorError: a condition that cannot be read, or that too few patients satisfy.
        """
        import pandas as pd

        body = {"conditions": _conditions(where), "columns": list(columns), "seed": seed}
        told = self._api.post(f"{_path(release)}/preview", body, again=True).json()
        table = pd.DataFrame(told["rows"], columns=told["columns"])
        for name in ("synthetic", "release", "share_of_release", "share_is_exact", "effective_components"):
            table.attrs[name] = told[name]
        return table

    def pictures(
        self, release: Release | str, *, where: str | Sequence[str] | None = None, seed: int = 0
    ) -> Pictures:
        """Pictures of the first 24 synthetic patients on one sheet, which a notebook shows; costs nothing.

        Args:
            release: one of `releases`, or its digest.
            where: a condition such as `age >= 60 and sex == 'female'`, or several that must all hold.
            seed: another seed, other patients.

        Raises:
            CoordinatorError: the release has no pictures, or a condition cannot be read.
        """
        asked = {"where": _conditions(where), "seed": seed}
        return Pictures(png=self._api.content(f"{_path(release)}/pictures", **asked))

    def request(
        self,
        release: Release | str,
        num_patients: int,
        *,
        where: Conditions = None,
        seed: int | None = None,
        columns: Sequence[str] = (),
        formats: Sequence[str] = ("parquet",),
        name: str | None = None,
    ) -> Cohort:
        """Ask for synthetic patients; they are drawn at the coordinator. Costs no privacy budget.

        A connection that drops does not make two cohorts of one: the request has a name, and is repeated under it.

        Args:
            release: one of `releases`, or its digest.
            num_patients: 1 to 10 million.
            where: a condition such as `age >= 60 and sex == 'female'`, or several that must all hold.
            seed: the same request with the same seed gives the same bytes; None: one is drawn.
            columns: names of those wanted; none: all. They change no draw.
            formats: csv, parquet, jsonl, fhir, omop, png, dicom, zip; `table` and `arrow` need parquet.
            name: your own for this request, 1 to 128 printable characters: asked again under it, a later session gets
                the first cohort back. None: a fresh one.

        Raises:
            CoordinatorError: names the field and what is wrong with it, or the quota.
        """
        body: dict[str, Any] = {
            "release": _digest(release),
            "num_patients": num_patients,
            "conditions": _conditions(where),
            "columns": list(columns),
            "formats": list(formats),
        }
        if seed is not None:
            body["seed"] = seed
        headers = {"Idempotency-Key": name or uuid.uuid4().hex}
        return Cohort(self._api, read_status(self._api.post("/cohorts", body, headers=headers).json()))

    def cohort(self, cohort_id: str) -> Cohort:
        """A cohort that was asked for before.

        Raises:
            CoordinatorError: there is none of yours with that identifier.
        """
        return Cohort(self._api, read_status(self._api.get(f"/cohorts/{quote(cohort_id, safe='')}")))

    def cohorts(self, *, limit: int = 50) -> Listing[Cohort]:
        """Your cohorts, newest first.

        Args:
            limit: how many at most.
        """
        found = self._api.pages("/cohorts", limit=min(limit, PAGE))
        return Listing(Cohort(self._api, read_status(one)) for one in itertools.islice(found, limit))

    def __repr__(self) -> str:
        return f"Coordinator({self._api.url!r})"


def _given(name: str, value: str | None, variable: str) -> str:
    found = value or os.environ.get(variable)
    if not found:
        raise CoordinatorError(
            f"there is no {name}; give {name}=..., or set {variable}: the operator tells you what to write"
        )
    return found


def _digest(release: Release | str) -> str:
    return release if isinstance(release, str) else release.digest


def _path(release: Release | str) -> str:
    return f"/releases/{quote(_digest(release), safe=':')}"


def _conditions(where: Conditions) -> list[Any]:
    if where is None or where == "":
        return []
    return [where] if isinstance(where, str) else list(where)
