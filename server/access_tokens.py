"""Short-lived tokens, `ftt_<secret>`, given for a key's secret (OAuth 2.0, client credentials).

A token stands for its key: it ends with it, at the latest after `LIFETIME`, and may hold fewer scopes. It is kept as
a hash, like a key's secret.

References:
    RFC 6749 sections 4.4 and 5. RFC 6750.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import delete

from server.errors import InvalidError
from server.keys import ApiKey, KeyRefusedError, checked_scopes, get_key
from server.store import Store
from server.tables import AccessTokenRow

LIFETIME = dt.timedelta(minutes=15)
PREFIX = "ftt_"
_FORM = re.compile(r"ftt_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True)
class NewToken:
    """A token at the only moment at which its text is known."""

    text: str
    scopes: tuple[str, ...] | None
    lifetime: dt.timedelta


def issue_token(store: Store, key: ApiKey, *, scopes: Sequence[str] | None = None) -> NewToken:
    """Give a token for a key that was checked.

    Args:
        scopes: fewer than the key has; None: all of them.

    Raises:
        InvalidError: a scope that there is not, or that the key has not.
    """
    wanted = checked_scopes(scopes)
    beyond = [scope for scope in wanted or () if not key.allows(scope)]
    if beyond:
        raise InvalidError("scope", f"the key does not have the scope {beyond[0]}")
    kept = key.scopes if wanted is None else tuple(wanted)
    now = store.clock()
    ends = now + LIFETIME if key.expires_at is None else min(now + LIFETIME, key.expires_at)
    text = PREFIX + secrets.token_urlsafe(32)
    with store.database.write() as session:
        session.execute(delete(AccessTokenRow).where(AccessTokenRow.expires_at <= now))
        session.add(
            AccessTokenRow(
                token_hash=_hash(text),
                key=key.prefix,
                scopes=None if kept is None else list(kept),
                created_at=now,
                expires_at=ends,
            )
        )
    return NewToken(text=text, scopes=kept, lifetime=ends - now)


def check_token(store: Store, text: str) -> ApiKey:
    """The key that a token stands for, with the token's scopes.

    Raises:
        KeyRefusedError: malformed, unknown or expired, or its key is no longer good.
    """
    now = store.clock()
    with store.database.read() as session:
        row = session.get(AccessTokenRow, _hash(text)) if _FORM.fullmatch(text) else None
        if row is None or row.expires_at <= now:
            raise KeyRefusedError("this token is not, or no longer, good; ask for another at /v1/oauth/token")
        prefix, scopes = row.key, row.scopes
    key = get_key(store, prefix)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise KeyRefusedError(f"key {prefix}, which this token stands for, is no longer good")
    return replace(key, scopes=None if scopes is None else tuple(scopes), is_token=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
