"""API keys: `ftw_<prefix>_<secret>`, one role each, kept as a hash, expiring, revocable.

The secret has 256 bits from the operating system, so a plain SHA-256 of it is as good as a slow hash; it is
shown once, when it is made. What a key makes belongs to its owner, so that a key can be replaced by another.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import select

from server.errors import InvalidError, NotFoundError
from server.store import Store
from server.tables import ApiKeyRow, Role

DEFAULT_LIFETIME = dt.timedelta(days=365)
# `last_used_at` is as fine as this, so that reading does not turn into a write per request.
USE_RESOLUTION = dt.timedelta(minutes=1)
_FORM = re.compile(r"ftw_([a-z0-9]{10})_([A-Za-z0-9_-]{43})")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_NO_HASH = hashlib.sha256(b"no key has this secret").hexdigest()


class KeyRefusedError(Exception):
    """A key that is not, or no longer, good; the message says no more than its holder may know."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        prefix: the public part, by which it is listed and revoked.
        owner: whom it was made for; cohorts belong to owners.
    """

    prefix: str
    role: Role
    owner: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key at the only moment at which its text is known."""

    text: str
    key: ApiKey


def create_key(
    store: Store, *, role: Role, owner: str, lifetime: dt.timedelta | None = DEFAULT_LIFETIME
) -> NewKey:
    """Make a key.

    Args:
        owner: name of a person or team, 1 to 128 printable characters.
        lifetime: None for a key that does not expire.

    Raises:
        InvalidError: unknown role, unusable owner, or a lifetime that is not positive.
    """
    if role not in get_args(Role):
        raise InvalidError("role", f"role is {role!r}; it must be one of {get_args(Role)}")
    if not (1 <= len(owner) <= 128 and owner.isprintable()):
        raise InvalidError("owner", f"owner is {owner!r}; it must have 1 to 128 printable characters")
    if lifetime is not None and lifetime <= dt.timedelta(0):
        raise InvalidError("lifetime", f"lifetime is {lifetime}; it must be positive")
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    secret = secrets.token_urlsafe(32)
    now = store.clock()
    row = ApiKeyRow(
        prefix=prefix,
        secret_hash=_hash(secret),
        role=role,
        owner=owner,
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
    )
    with store.database.write() as session:
        session.add(row)
    return NewKey(text=f"ftw_{prefix}_{secret}", key=_key(row))


def check_key(store: Store, text: str) -> ApiKey:
    """The key of that text.

    Raises:
        KeyRefusedError: malformed, unknown, revoked or expired.
    """
    form = _FORM.fullmatch(text)
    prefix, secret = form.groups() if form else ("", "")
    now = store.clock()
    with store.database.read() as session:
        row = session.get(ApiKeyRow, prefix)
        known = secrets.compare_digest(_hash(secret), _NO_HASH if row is None else row.secret_hash)
        if row is None or not known:
            raise KeyRefusedError("this is not a key of this coordinator")
        key = _key(row)
    _check_good(key, now)
    if key.last_used_at is None or now - key.last_used_at >= USE_RESOLUTION:
        with store.database.write() as session:
            row = session.get(ApiKeyRow, prefix)
            if row is not None:
                row.last_used_at = now
    return key


def good_key(store: Store, prefix: str) -> ApiKey:
    """The key of that prefix, for whoever has shown its text before (`check_key`) and is remembered.

    Raises:
        KeyRefusedError: unknown, revoked or expired since.
    """
    with store.database.read() as session:
        row = session.get(ApiKeyRow, prefix)
        if row is None:
            raise KeyRefusedError("this is not a key of this coordinator")
        key = _key(row)
    _check_good(key, store.clock())
    return key


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


def list_keys(store: Store) -> list[ApiKey]:
    """All keys, oldest first; no secret is among them."""
    with store.database.read() as session:
        rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.prefix))
        return [_key(row) for row in rows]


def _check_good(key: ApiKey, now: dt.datetime) -> None:
    if key.revoked_at is not None:
        raise KeyRefusedError(f"key {key.prefix} was revoked; ask the operator for another")
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyRefusedError(
            f"key {key.prefix} expired on {key.expires_at:%Y-%m-%d}; ask the operator for another"
        )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        prefix=row.prefix,
        role=row.role,
        owner=row.owner,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
