"""The coordinator's tables. State lives here only; what they mean is in the module of the same name.

Text states are held to their lists by the database itself. Times are UTC. Epsilons are decimal strings, which
canonical JSON and every reader keep exactly. Large arrays are files named by their digest, never rows.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, ClassVar, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SiteState = Literal["enrolled", "suspended", "left"]
RunState = Literal["queued", "running", "stopping", "stopped", "completed", "failed"]
Outcome = Literal["accepted", "rejected", "refused", "failed"]
ReleaseState = Literal["candidate", "published", "withheld", "withdrawn"]
CohortState = Literal["queued", "running", "completed", "failed", "cancelled"]
Role = Literal["operator", "researcher", "auditor"]
InvitationState = Literal["open", "pending", "enrolled", "denied", "withdrawn"]

# SQLite numbers rows only in a column typed INTEGER.
RowNumber = BigInteger().with_variant(Integer, "sqlite")


class UtcTime(TypeDecorator[dt.datetime]):
    """A time in UTC: stored without a zone, read and written with one."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Convert to UTC; a time without a zone is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time is {value!r}, without a zone; give it in UTC")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Say that it is UTC."""
        return None if value is None else value.replace(tzinfo=dt.UTC)


class Base(DeclarativeBase):
    """All tables; constraints are named, so that migrations can change them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: Text,
        dt.datetime: UtcTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        bytes: LargeBinary,
    }


def _one_of(column: str, values: object) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in get_args(values))
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


class StudyRow(Base):
    """A registered study: its resolved (calibrated) definition, which never changes."""

    __tablename__ = "studies"
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    definition: Mapped[dict[str, Any]]
    created_by: Mapped[str]
    created_at: Mapped[dt.datetime]


class SiteRow(Base):
    """An enrolled site: its receipts key, its Flower node and its published policy."""

    __tablename__ = "sites"
    __table_args__ = (_one_of("state", SiteState),)
    name: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    receipt_key: Mapped[str] = mapped_column(unique=True)
    node_public_key: Mapped[str] = mapped_column(unique=True)
    node_id: Mapped[str | None] = mapped_column(unique=True)
    policy: Mapped[dict[str, Any]]
    policy_digest: Mapped[str]
    state: Mapped[SiteState] = mapped_column(Text)
    enrolled_at: Mapped[dt.datetime]
    changed_at: Mapped[dt.datetime]


class InvitationRow(Base):
    """An invitation and the card that answered it; of its secret there is a hash only. `card_digest`: of its keys."""

    __tablename__ = "invitations"
    __table_args__ = (_one_of("state", InvitationState), Index(None, "site", "created_at"))
    id: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str]
    secret_hash: Mapped[str]
    state: Mapped[InvitationState] = mapped_column(Text)
    wrong_secrets: Mapped[int] = mapped_column(default=0)
    card: Mapped[dict[str, Any] | None]
    card_digest: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str]
    decided_by: Mapped[str] = mapped_column(default="")
    created_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime]
    answered_at: Mapped[dt.datetime | None]
    decided_at: Mapped[dt.datetime | None]


class RunRow(Base):
    """One training execution of a study. `active` is 1 for at most one row, NULL for the others.

    `attempt` counts how often it was queued; `restarts` how often by itself since round `restarts_round`.
    """

    __tablename__ = "runs"
    __table_args__ = (
        _one_of("state", RunState),
        CheckConstraint("active IS NULL OR active = 1", name="active_one"),
        UniqueConstraint("active"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.name"))
    study_digest: Mapped[str]
    sites: Mapped[list[Any]]
    state: Mapped[RunState] = mapped_column(Text)
    active: Mapped[int | None]
    stop_requested: Mapped[bool] = mapped_column(default=False)
    phase: Mapped[str]
    round: Mapped[int] = mapped_column(default=0)
    rounds: Mapped[int]
    percent: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    flower_run_id: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=1)
    restarts: Mapped[int] = mapped_column(default=0)
    restarts_round: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(default="")
    started_by: Mapped[str]
    created_at: Mapped[dt.datetime]
    started_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]


class RunMessageRow(Base):
    """Something that happened in a run, in words for the operator."""

    __tablename__ = "run_messages"
    __table_args__ = (Index(None, "run", "id"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    at: Mapped[dt.datetime]
    level: Mapped[str]
    text: Mapped[str]


class RoundRow(Base):
    """A round that ended with its quorum; written once, in one transaction with its spends and entries."""

    __tablename__ = "rounds"
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str]
    base_digest: Mapped[str]
    next_base_digest: Mapped[str]
    arrays: Mapped[dict[str, Any]]
    scores: Mapped[dict[str, Any]]
    tree_size: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    recorded_at: Mapped[dt.datetime]


class SpendRow(Base):
    """What one site did and spent in one round. What is unknown counts as spent."""

    __tablename__ = "spends"
    __table_args__ = (_one_of("outcome", Outcome), Index(None, "site", "recorded_at"))
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    outcome: Mapped[Outcome] = mapped_column(Text)
    reason: Mapped[str]
    spent_epsilon: Mapped[str | None]
    spent_delta: Mapped[str | None]
    cap_epsilon: Mapped[str | None]
    receipt: Mapped[dict[str, Any] | None]
    entry: Mapped[int | None] = mapped_column(BigInteger)
    recorded_at: Mapped[dt.datetime]


class ReleaseRow(Base):
    """A generator offered for use, named by the digest of its weights and its study."""

    __tablename__ = "releases"
    __table_args__ = (_one_of("state", ReleaseState), UniqueConstraint("run", "round"))
    digest: Mapped[str] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.name"))
    study_digest: Mapped[str]
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    round: Mapped[int]
    weights_digest: Mapped[str]
    sites: Mapped[list[Any]]
    scores: Mapped[dict[str, Any]]
    state: Mapped[ReleaseState] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(default="")
    entry: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[dt.datetime]
    changed_at: Mapped[dt.datetime]


class CohortRow(Base):
    """A request for synthetic patients and the job that answers it."""

    __tablename__ = "cohorts"
    __table_args__ = (
        _one_of("state", CohortState),
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "owner", "created_at", "id"),
        Index(None, "state", "created_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    idempotency_key: Mapped[str | None]
    release: Mapped[str] = mapped_column(ForeignKey("releases.digest"))
    request: Mapped[dict[str, Any]]
    num_patients: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[CohortState] = mapped_column(Text)
    patients_done: Mapped[int] = mapped_column(BigInteger, default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    claim: Mapped[str | None]
    claimed_until: Mapped[dt.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(default="")
    files: Mapped[list[Any]]
    certificate: Mapped[dict[str, Any] | None]
    entry: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[dt.datetime]
    started_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]
    expires_at: Mapped[dt.datetime | None]
    deleted_at: Mapped[dt.datetime | None]
    removed_at: Mapped[dt.datetime | None]


class LedgerEntryRow(Base):
    """One leaf of the Merkle log: canonical JSON bytes, numbered from 0 without gaps."""

    __tablename__ = "ledger_entries"
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str]
    body: Mapped[bytes]
    appended_at: Mapped[dt.datetime]


class CheckpointRow(Base):
    """A signed tree head; witnesses' signatures are added to its note. `edge` is the tree's `CompactRange`."""

    __tablename__ = "checkpoints"
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[str]
    edge: Mapped[list[Any]]
    note: Mapped[str]
    signed_at: Mapped[dt.datetime]


class ApiKeyRow(Base):
    """An API key: its public prefix and the hash of its secret. `scopes` NULL: all that its role may do."""

    __tablename__ = "api_keys"
    __table_args__ = (_one_of("role", Role),)
    prefix: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[str]
    role: Mapped[Role] = mapped_column(Text)
    owner: Mapped[str]
    created_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]
    last_used_at: Mapped[dt.datetime | None]
    scopes: Mapped[list[Any] | None] = mapped_column(default=None)
    rows_per_day: Mapped[int | None] = mapped_column(BigInteger, default=None)
    replaced_by: Mapped[str | None] = mapped_column(default=None)


class AccessTokenRow(Base):
    """A short-lived token that a key was given in exchange for its secret; of the token there is a hash only."""

    __tablename__ = "access_tokens"
    __table_args__ = (Index(None, "expires_at"),)
    token_hash: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(ForeignKey("api_keys.prefix"))
    scopes: Mapped[list[Any] | None]
    created_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime]
