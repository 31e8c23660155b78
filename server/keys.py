"""API keys: `ftw_<prefix>_<secret>`, one role each, kept as a hash, scoped, expiring, rotated, revocable.

The secret has 256 bits from the operating system, so a plain SHA-256 of it is as good as a slow hash; it is
shown once, when it is made. What a key makes belongs to its owner, so that a key can be replaced by another.
A key can be exchanged for a token, `ftt_<secret>`, that is good for minutes (`server.access_tokens`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import Row, bindparam, func, select

from server.errors import ConflictError, InvalidError, NotFoundError
from server.newest_first import Seen, newest_first
from server.store import Store
from server.tables import ApiKeyRow, LedgerEntryRow, Role

DEFAULT_LIFETIME = dt.timedelta(days=365)
DEFAULT_OVERLAP = dt.timedelta(days=7)
AREAS = ("studies", "sites", "joining", "runs", "releases", "cohorts", "ledger", "keys")
# `read` looks, `write` changes; no scope gives more than the role does.
SCOPES = tuple(f"{area}:{act}" for area in AREAS for act in ("read", "write"))
# `last_used_at` is as fine as this, so that reading does not turn into a write per request.
USE_RESOLUTION = dt.timedelta(minutes=1)
_FORM = re.compile(r"ftw_([a-z0-9]{10})_([A-Za-z0-9_-]{43})")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_FIND = select(
    ApiKeyRow.__table__,
    select(func.coalesce(func.max(LedgerEntryRow.index) + 1, 0)).scalar_subquery().label("ledger_size"),
).where(ApiKeyRow.prefix == bindparam("wanted"))
_NO_HASH = hashlib.sha256(b"no key has this secret").hexdigest()


class KeyRefusedError(Exception):
    """A key that is not, or no longer, good; the message says no more than its holder may know."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        prefix: the public part, by which it is listed and revoked.
        owner: whom it was made for; cohorts belong to owners.
        scopes: of `SCOPES`; None: all that its role may do.
        rows_per_day: synthetic patients that may be asked for with it on one day; None: what the settings say.
        replaced_by: the prefix of the key that took its place.
        is_token: whether a short-lived token stands for it, which must not turn into a key.
        ledger_size: entries of the ledger when the key was looked up, by the same query; None: not counted.
    """

    prefix: str
    role: Role
    owner: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None
    scopes: tuple[str, ...] | None = None
    rows_per_day: int | None = None
    replaced_by: str | None = None
    is_token: bool = False
    ledger_size: int | None = None

    def allows(self, scope: str) -> bool:
        """Whether the key's scopes hold this one; what its role may do is another question."""
        return self.scopes is None or scope in self.scopes


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key at the only moment at which its text is known."""

    text: str
    key: ApiKey


def create_key(
    store: Store,
    *,
    role: Role,
    owner: str,
    lifetime: dt.timedelta | None = DEFAULT_LIFETIME,
    scopes: Sequence[str] | None = None,
    rows_per_day: int | None = None,
) -> NewKey:
    """Make a key.

    Args:
        owner: name of a person or team, 1 to 128 printable characters.
        lifetime: None for a key that does not expire.
        scopes: of `SCOPES`; None: all that the role may do.
        rows_per_day: see `ApiKey`.

    Raises:
        InvalidError: unknown role or scope, unusable owner, a lifetime that is not positive, a negative quota.
    """
    if role not in get_args(Role):
        raise InvalidError("role", f"role is {role!r}; it must be one of {get_args(Role)}")
    if not (1 <= len(owner) <= 128 and owner.isprintable()):
        raise InvalidError("owner", f"owner is {owner!r}; it must have 1 to 128 printable characters")
    if lifetime is not None and lifetime <= dt.timedelta(0):
        raise InvalidError("lifetime", f"lifetime is {lifetime}; it must be positive")
    if rows_per_day is not None and rows_per_day < 0:
        raise InvalidError("rows_per_day", f"rows_per_day is {rows_per_day}; it must be 0 or more")
    now = store.clock()
    row, text = _new_row(
        role=role,
        owner=owner,
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
        scopes=checked_scopes(scopes),
        rows_per_day=rows_per_day,
    )
    with store.database.write() as session:
        session.add(row)
    return NewKey(text=text, key=_key(row))


def rotate_key(store: Store, prefix: str, *, overlap: dt.timedelta = DEFAULT_OVERLAP) -> NewKey:
    """Make a key that takes another's place: the same owner, role, scopes and quota, and as long a life.

    Args:
        overlap: so long the old key stays good, and no longer than it would have been.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it is no longer good, or was rotated already.
        InvalidError: a negative overlap.
    """
    if overlap < dt.timedelta(0):
        raise InvalidError("overlap", f"overlap is {overlap}; it must be 0 or more")
    with store.database.write() as session:
        old = session.get(ApiKeyRow, prefix, with_for_update=True)
        if old is None:
            raise NotFoundError("API key", prefix)
        now = store.clock()
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise ConflictError(f"key {prefix} is no longer good; ask the operator for another")
        if old.replaced_by is not None:
            raise ConflictError(f"key {prefix} was rotated already, to {old.replaced_by}; rotate that one")
        row, text = _new_row(
            role=old.role,
            owner=old.owner,
            created_at=now,
            expires_at=None if old.expires_at is None else now + (old.expires_at - old.created_at),
            scopes=old.scopes,
            rows_per_day=old.rows_per_day,
        )
        session.add(row)
        old.replaced_by = row.prefix
        ends = now + overlap
        old.expires_at = ends if old.expires_at is None else min(old.expires_at, ends)
        session.flush()
        return NewKey(text=text, key=_key(row))


def check_key(store: Store, text: str) -> ApiKey:
    """The key of that text.

    Raises:
        KeyRefusedError: malformed, unknown, revoked or expired.
    """
    form = _FORM.fullmatch(text)
    prefix, secret = form.groups() if form else ("", "")
    now = store.clock()
    row = _find(store, prefix)
    known = secrets.compare_digest(_hash(secret), _NO_HASH if row is None else row.secret_hash)
    if row is None or not known:
        raise KeyRefusedError("this is not a key of this coordinator")
    key = _key(row, ledger_size=row.ledger_size)
    _check_good(key, now)
    if key.last_used_at is None or now - key.last_used_at >= USE_RESOLUTION:
        with store.database.write() as session:
            used = session.get(ApiKeyRow, prefix)
            if used is not None:
                used.last_used_at = now
    return key


def good_key(store: Store, prefix: str) -> ApiKey:
    """The key of that prefix, for whoever has shown its text before (`check_key`) and is remembered.

    Raises:
        KeyRefusedError: unknown, revoked or expired since.
    """
    row = _find(store, prefix)
    if row is None:
        raise KeyRefusedError("this is not a key of this coordinator")
    key = _key(row, ledger_size=row.ledger_size)
    _check_good(key, store.clock())
    return key


def get_key(store: Store, prefix: str) -> ApiKey:
    """The key of that prefix.

    Raises:
        NotFoundError: there is none.
    """
    row = _find(store, prefix)
    if row is None:
        raise NotFoundError("API key", prefix)
    return _key(row, ledger_size=row.ledger_size)


def revoke_key(store: Store, prefix: str) -> ApiKey:
    """Make a key worthless from now on; again is harmless.

    Raises:
        NotFoundError: there is no such key.
    """
    with store.database.write() as session:
        row = session.get(ApiKeyRow, prefix)
        if row is None:
            raise NotFoundError("API key", prefix)
        row.revoked_at = row.revoked_at or store.clock()
        return _key(row)


def list_keys(
    store: Store,
    *,
    owner: str | None = None,
    limit: int | None = None,
    before: Seen | None = None,
) -> list[ApiKey]:
    """Keys of one owner (None: of all), newest first; no secret is among them.

    Args:
        limit: so many at most.
        before: (created_at, prefix) of the last one seen.
    """
    query = newest_first(
        select(ApiKeyRow), ApiKeyRow.created_at, ApiKeyRow.prefix, limit=limit, before=before
    )
    if owner is not None:
        query = query.where(ApiKeyRow.owner == owner)
    with store.database.read() as session:
        return [_key(row) for row in session.scalars(query)]


def checked_scopes(scopes: Sequence[str] | None) -> list[str] | None:
    """Scopes in order, each once.

    Raises:
        InvalidError: one that there is not, or an empty list.
    """
    if scopes is None:
        return None
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidError("scopes", f"scopes is {list(scopes)}; name at least one of {list(SCOPES)}")
    return [scope for scope in SCOPES if scope in scopes]


def _new_row(**fields: Any) -> tuple[ApiKeyRow, str]:
    """A row and the text of its key."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    secret = secrets.token_urlsafe(32)
    return ApiKeyRow(prefix=prefix, secret_hash=_hash(secret), **fields), f"ftw_{prefix}_{secret}"


def _check_good(key: ApiKey, now: dt.datetime) -> None:
    if key.revoked_at is not None:
        raise KeyRefusedError(f"key {key.prefix} was revoked; ask the operator for another")
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyRefusedError(
            f"key {key.prefix} expired on {key.expires_at:%Y-%m-%d}; ask the operator for another"
        )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _find(store: Store, prefix: str) -> Row[Any] | None:
    """The key's row, with how many entries the ledger has."""
    with store.database.rows() as connection:
        return connection.execute(_FIND, {"wanted": prefix}).one_or_none()


def _key(row: ApiKeyRow | Row[Any], *, ledger_size: int | None = None) -> ApiKey:
    return ApiKey(
        prefix=row.prefix,
        role=row.role,
        owner=row.owner,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        scopes=None if row.scopes is None else tuple(row.scopes),
        rows_per_day=row.rows_per_day,
        replaced_by=row.replaced_by,
        ledger_size=ledger_size,
    )
