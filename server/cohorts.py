"""Cohorts: requests for synthetic patients, and what became of them. `server.cohort_queue` is the workers' side."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.condition_reader import parse_conditions
from models.conditions import ConditionError
from models.schema import StudySchema
from privacy.canonical import CanonicalError, digest
from server.errors import ConflictError, InvalidError, NotFoundError
from server.newest_first import Seen, newest_first
from server.releases import get_release
from server.row_quotas import quota_in, require_rows
from server.store import Store
from server.studies import get_study
from server.tables import CohortRow, CohortState

MAX_PATIENTS = 10_000_000
MAX_SEED = 2**53 - 1
MAX_CONDITIONS = 100
Format = Literal["csv", "parquet", "jsonl", "fhir", "omop", "png", "dicom", "zip"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = ("csv", "parquet")
OPEN_STATES = ("queued", "running")
# As it is told: the files of a completed cohort are removed after a while, or before that by its owner.
ToldState = CohortState | Literal["expired", "deleted"]
# It was made; its certificate is there, whether its files still are or not.
MADE_STATES = ("completed", "expired", "deleted")

log = logging.getLogger("fedtwin.cohorts")


@dataclass(frozen=True, kw_only=True)
class CohortRequest:
    """What a researcher asks for.

    Attributes:
        release: digest.
        num_patients: 1 to 10 million.
        seed: the same release, seed, number and conditions give the same bytes; None: one is drawn.
        conditions: all must hold; texts or objects as `models.conditions` reads them.
        columns: names of those wanted, in the schema's order; none: all. They change no draw.
        formats: of `FORMATS`, at least one other than `zip`, which packs the others' files.
    """

    release: str
    num_patients: int
    seed: int | None = None
    conditions: tuple[str | Mapping[str, Any], ...] = ()
    columns: tuple[str, ...] = ()
    formats: tuple[Format, ...] = DEFAULT_FORMATS

    def __post_init__(self) -> None:
        if not 1 <= self.num_patients <= MAX_PATIENTS:
            raise InvalidError(
                "num_patients",
                f"num_patients is {self.num_patients}; it must lie between 1 and {MAX_PATIENTS:,}",
            )
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidError("seed", f"seed is {self.seed}; it must lie between 0 and {MAX_SEED}")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise InvalidError(
                "formats", f"formats is {list(self.formats)}; name at least one of {list(FORMATS)}"
            )
        if set(self.formats) == {"zip"}:
            raise InvalidError(
                "formats", "formats is ['zip']; it packs the files of other formats: name at least one more"
            )
        if len(self.conditions) > MAX_CONDITIONS:
            raise InvalidError(
                "conditions",
                f"there are {len(self.conditions)} conditions; at most {MAX_CONDITIONS} are taken",
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "release": self.release,
            "num_patients": self.num_patients,
            "seed": self.seed,
            "conditions": list(self.conditions),
            "columns": list(self.columns),
            "formats": sorted(set(self.formats)),
        }

    @property
    def conditions_digest(self) -> str:
        """What the ledger says of the conditions."""
        return digest(list(self.conditions))


@dataclass(frozen=True, kw_only=True)
class CohortFile:
    """A file of a finished cohort."""

    name: str
    num_bytes: int
    sha256: str
    media_type: str


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A cohort as it stands. `request.seed` is always there: one was drawn if none was asked for.

    Attributes:
        expires_at: when the files of a completed cohort are removed; its certificate and ledger entry stay.
        deleted_at: when its owner removed them before that.
    """

    id: str
    owner: str
    request: CohortRequest
    state: ToldState
    patients_done: int
    cancel_requested: bool
    reason: str
    files: tuple[CohortFile, ...]
    certificate: Mapping[str, Any] | None
    entry: int | None
    attempts: int
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    expires_at: dt.datetime | None
    deleted_at: dt.datetime | None

    @property
    def percent(self) -> float:
        """0 to 100; 100 only when everything is written."""
        if self.state in MADE_STATES:
            return 100.0
        return min(99.0, 100.0 * self.patients_done / self.request.num_patients)

    def eta_seconds(self, now: dt.datetime) -> float | None:
        """Seconds until a running cohort is completed, by how fast it went so far."""
        if self.state != "running" or not self.patients_done or self.started_at is None:
            return None
        elapsed = max(0.0, (now - self.started_at).total_seconds())
        return round(elapsed * (self.request.num_patients - self.patients_done) / self.patients_done, 1)


def create_cohort(
    store: Store,
    request: CohortRequest,
    *,
    owner: str,
    idempotency_key: str | None = None,
    rows_per_day: int | None = None,
) -> Cohort:
    """Queue a cohort; the same idempotency key of the same owner gives back the first one.

    Args:
        rows_per_day: the owner's quota where it is not the usual one (`Allowances.rows_per_day`).

    Raises:
        NotFoundError: no such release.
        ConflictError: the release is not published.
        InvalidError: a condition that cannot be read, an unknown column, a format that this release cannot be given
            in, or the idempotency key stands for another request.
        QuotaExceededError: more patients than the owner may still ask for today.
    """
    from server.exports.context import ExportContext  # exports speak of requests
    from server.exports.formats import chosen_formats

    release = get_release(store, request.release)
    if release.state != "published":
        raise ConflictError(
            f"release {release.digest} is {release.state}; cohorts are drawn from published ones"
        )
    study = get_study(store, release.study).study
    request = replace(request, columns=_in_order(request.columns, study.table))
    asked = request.to_dict()
    try:
        parse_conditions(request.conditions, study.table)
        digest(asked)
    except (ConditionError, CanonicalError) as error:
        raise InvalidError("conditions", str(error)) from error
    chosen_formats(request.formats, ExportContext.of(release, study, request))
    with store.database.write() as session:
        store.database.lock(session, "cohorts")
        if idempotency_key is not None:
            query = select(CohortRow).where(
                CohortRow.owner == owner, CohortRow.idempotency_key == idempotency_key
            )
            known = session.scalars(query).first()
            if known is not None:
                if known.request["asked"] != asked:
                    raise InvalidError(
                        "Idempotency-Key",
                        f"this Idempotency-Key stands for another request, cohort {known.id}",
                    )
                return cohort_of(store, known)
        require_rows(quota_in(store, session, owner, rows_per_day=rows_per_day), request.num_patients)
        row = CohortRow(
            id=f"cohort-{secrets.token_hex(6)}",
            owner=owner,
            idempotency_key=idempotency_key,
            release=release.digest,
            request={
                "asked": asked,
                "seed": secrets.randbelow(MAX_SEED) if request.seed is None else request.seed,
            },
            num_patients=request.num_patients,
            state="queued",
            files=[],
            created_at=store.clock(),
        )
        session.add(row)
        session.flush()
        return cohort_of(store, row)


def get_cohort(store: Store, cohort_id: str) -> Cohort:
    """The cohort of that id.

    Raises:
        NotFoundError: there is none.
    """
    with store.database.read() as session:
        return cohort_of(store, row_of(session, cohort_id))


def list_cohorts(
    store: Store, *, owner: str | None, limit: int = 50, before: Seen | None = None
) -> list[Cohort]:
    """Cohorts of one owner (None: of all), newest first; `before` is (created_at, id) of the last one seen."""
    query = newest_first(select(CohortRow), CohortRow.created_at, CohortRow.id, limit=limit, before=before)
    if owner is not None:
        query = query.where(CohortRow.owner == owner)
    with store.database.read() as session:
        return [cohort_of(store, row) for row in session.scalars(query)]


def cancel_cohort(store: Store, cohort_id: str) -> Cohort:
    """Cancel a cohort that is not finished; a running one ends at its next step. Again is harmless.

    Raises:
        NotFoundError: there is none.
        ConflictError: it is finished.
    """
    with store.database.write() as session:
        row = row_of(session, cohort_id, lock=True)
        if row.state == "cancelled":
            return cohort_of(store, row)
        if row.state not in OPEN_STATES:
            state = cohort_of(store, row).state
            more = "; its owner can delete its files" if state == "completed" else ""
            raise ConflictError(
                f"cohort {cohort_id!r} is {state}; only a queued or running one can be cancelled{more}"
            )
        _cancel_in(store, row)
        return cohort_of(store, row)


def delete_cohort(store: Store, cohort_id: str) -> Cohort:
    """Give a cohort up, whatever its state: cancel it if it is not finished, remove the files of one that is.

    The record stays, with its certificate and its ledger entry. Again is harmless.

    Raises:
        NotFoundError: there is none.
    """
    with store.database.write() as session:
        row = row_of(session, cohort_id, lock=True)
        if row.state in OPEN_STATES:
            _cancel_in(store, row)
        elif cohort_of(store, row).state == "completed":
            row.deleted_at = store.clock()
        cohort = cohort_of(store, row)
    if cohort.state == "deleted":
        clear_files(store, cohort_id)
    return cohort


def clear_files(store: Store, cohort_id: str) -> bool:
    """Remove a cohort's folder and note it; False, to be tried again, where the file system does not let go."""
    folder = store.cohorts / cohort_id
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.error("the files of cohort %s cannot be removed", cohort_id)
        return False
    with store.database.write() as session:
        row = row_of(session, cohort_id, lock=True)
        row.removed_at = row.removed_at or store.clock()
    return True


def _in_order(columns: tuple[str, ...], schema: StudySchema) -> tuple[str, ...]:
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise InvalidError(
            "columns", f"there is no column {unknown[0]!r}; the columns are {list(schema.names)}"
        )
    return tuple(name for name in schema.names if name in columns)


def _cancel_in(store: Store, row: CohortRow) -> None:
    row.cancel_requested = True
    end_in(store, row, "cancelled", "cancelled on request")


def end_in(store: Store, row: CohortRow, state: CohortState, reason: str) -> None:
    """End a job, inside the caller's transaction."""
    row.state, row.reason, row.ended_at = state, reason, store.clock()
    row.claim = row.claimed_until = None


def row_of(session: Session, cohort_id: str, *, lock: bool = False) -> CohortRow:
    """The row of that id.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(CohortRow, cohort_id, with_for_update=lock or None)
    if row is None:
        raise NotFoundError("cohort", cohort_id)
    return row


def cohort_of(store: Store, row: CohortRow) -> Cohort:
    """The row as a value."""
    asked = row.request["asked"]
    return Cohort(
        id=row.id,
        owner=row.owner,
        request=CohortRequest(
            release=row.release,
            num_patients=row.num_patients,
            seed=row.request["seed"],
            conditions=tuple(asked["conditions"]),
            columns=tuple(asked["columns"]),
            formats=tuple(asked["formats"]),
        ),
        state=_told_state(store, row),
        patients_done=row.patients_done,
        cancel_requested=row.cancel_requested,
        reason=row.reason,
        files=tuple(CohortFile(**one) for one in row.files),
        certificate=row.certificate,
        entry=row.entry,
        attempts=row.attempts,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        expires_at=row.expires_at,
        deleted_at=row.deleted_at,
    )


def _told_state(store: Store, row: CohortRow) -> ToldState:
    if row.state != "completed":
        return row.state
    if row.deleted_at is not None:
        return "deleted"
    over = row.expires_at is not None and row.expires_at <= store.clock()
    return "expired" if over or row.removed_at is not None else "completed"
