"""/v1/keys: look at keys, make, rotate and revoke them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from server import keys
from server.api.auth import AnyRole, Operator, StoreDep
from server.api.paging import Cursor, Limit, Page, decode_cursor, page_of
from server.api.problems import ProblemError, located, responses
from server.errors import NotFoundError
from server.keys import ApiKey, NewKey
from server.row_quotas import row_quota
from server.store import Store
from server.tables import Role

router = APIRouter(prefix="/v1/keys", tags=["keys"])
Prefix = Annotated[
    str, Path(description="A key's public part, or `current`: the one that asks.", max_length=64)
]
CURRENT = "current"


class KeyIn(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "role": "researcher",
                "owner": "rita",
                "days": 90,
                "scopes": ["releases:read", "cohorts:read", "cohorts:write"],
                "rows_per_day": 1_000_000,
            }
        },
    )
    role: Role
    owner: str = Field(min_length=1, max_length=128, description="Whom it is for; cohorts belong to owners.")
    days: StrictInt = Field(default=365, ge=1, le=3650, description="How long it is good.")
    scopes: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=len(keys.SCOPES),
        description=f"Of {', '.join(keys.SCOPES)}; absent: all that the role may do.",
    )
    rows_per_day: StrictInt | None = Field(
        default=None, ge=0, le=10**15, description="Absent: the usual quota."
    )


class RotationIn(BaseModel):
    """How a key is replaced."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"overlap_hours": 24}})
    overlap_hours: StrictInt = Field(default=168, ge=0, le=720, description="So long the old key stays good.")


class KeyOut(BaseModel):
    """What is kept of a key; its secret is not."""

    prefix: str = Field(examples=["abcdefghij"])
    role: str
    owner: str
    scopes: list[str] | None = Field(description="Null: all that the role may do.")
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    last_used_at: dt.datetime | None
    replaced_by: str | None = Field(description="The key that took its place.")


class KeyDetail(KeyOut):
    """A key with what its owner may still ask for."""

    rows_per_day: int
    rows_left_today: int


class NewKeyOut(KeyOut):
    """A key at the only moment at which its text is known."""

    key: str = Field(examples=["ftw_abcdefghij_..."])


@router.get("", summary="List keys", responses=responses())
def list_keys(key: AnyRole, store: StoreDep, limit: Limit = 50, cursor: Cursor = None) -> Page[KeyOut]:
    """Your keys, newest first; an operator sees everybody's."""
    owner = None if key.role == "operator" else key.owner
    found = keys.list_keys(store, owner=owner, limit=limit + 1, before=decode_cursor(cursor))
    return page_of(
        found, limit, place=lambda one: (one.created_at, one.prefix), show=lambda one: KeyOut(**_fields(one))
    )


@router.post("", status_code=201, summary="Make a key", responses={**located(201), **responses()})
def create_key(wanted: KeyIn, key: Operator, store: StoreDep, response: Response) -> NewKeyOut:
    """Make a key for somebody; it is shown this once and kept only as a hash."""
    _needs_the_key(key)
    if key.scopes is not None and not set(wanted.scopes or keys.SCOPES) <= set(key.scopes):
        raise ProblemError(
            403, "forbidden", f"a key can give the scopes that it has: {', '.join(key.scopes)}"
        )
    made = keys.create_key(
        store,
        role=wanted.role,
        owner=wanted.owner,
        lifetime=dt.timedelta(days=wanted.days),
        scopes=wanted.scopes,
        rows_per_day=wanted.rows_per_day,
    )
    response.headers["Location"] = f"/v1/keys/{made.key.prefix}"
    response.headers["Cache-Control"] = "no-store"
    return new_key_out(made)


@router.get("/{prefix}", summary="Show a key", responses=responses(404))
def get_key(prefix: Prefix, key: AnyRole, store: StoreDep) -> KeyDetail:
    """Role, scopes, expiry, and the rows that are left for the day; `current` is the key that asks."""
    shown = _visible(store, key, prefix)
    quota = row_quota(store, shown.owner, rows_per_day=shown.rows_per_day)
    return KeyDetail(**_fields(shown), rows_per_day=quota.limit, rows_left_today=quota.left)


@router.post(
    "/current/rotate",
    status_code=201,
    summary="Rotate your key",
    responses={**located(201), **responses(409)},
)
def rotate_key(wanted: RotationIn, key: AnyRole, store: StoreDep, response: Response) -> NewKeyOut:
    """Get a key that takes your key's place; both are good for a while, so that nothing stops meanwhile."""
    _needs_the_key(key)
    made = keys.rotate_key(store, key.prefix, overlap=dt.timedelta(hours=wanted.overlap_hours))
    response.headers["Location"] = f"/v1/keys/{made.key.prefix}"
    response.headers["Cache-Control"] = "no-store"
    return new_key_out(made)


@router.delete("/{prefix}", summary="Revoke a key", responses=responses(404))
def revoke_key(prefix: Prefix, key: AnyRole, store: StoreDep) -> KeyOut:
    """Make a key, and all tokens that were given for it, worthless from now on; again is harmless."""
    return KeyOut(**_fields(keys.revoke_key(store, _visible(store, key, prefix).prefix)))


def new_key_out(made: NewKey) -> NewKeyOut:
    """A new key as the API shows it, once."""
    return NewKeyOut(**_fields(made.key), key=made.text)


def _visible(store: Store, key: ApiKey, prefix: str) -> ApiKey:
    """The key of that prefix, if the one that asks may know of it."""
    wanted = key.prefix if prefix == CURRENT else prefix
    found = keys.get_key(store, wanted)
    if key.role != "operator" and found.owner != key.owner:
        raise NotFoundError("API key", wanted)
    return found


def _needs_the_key(key: ApiKey) -> None:
    """A token lives for minutes and must not turn into a key that lives for months."""
    if key.is_token:
        raise ProblemError(403, "forbidden", "this needs the key itself, not a token that stands for it")


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "prefix": key.prefix,
        "role": key.role,
        "owner": key.owner,
        "scopes": None if key.scopes is None else list(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "replaced_by": key.replaced_by,
    }
