"""Cursor pagination: `?limit&cursor` in, `items` and `next_cursor` out. A cursor stays good while rows come."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from server.api.problems import ProblemError
from server.newest_first import Seen

F = TypeVar("F")
T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
Cursor = Annotated[
    str | None, Query(max_length=300, description="`next_cursor` of the page before; absent for the first.")
]


class Page(BaseModel, Generic[T]):
    """One page of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(default=None, description="For the next page; null on the last.")


def page_of(found: Sequence[F], limit: int, *, place: Callable[[F], Seen], show: Callable[[F], T]) -> Page[T]:
    """A page of what was found.

    Args:
        found: one more than `limit`, where there are as many.
        place: when one was made, and its name.
        show: one as the API shows it.
    """
    more = encode_cursor(*place(found[limit - 1])) if len(found) > limit else None
    return Page(items=[show(one) for one in found[:limit]], next_cursor=more)


def encode_cursor(at: dt.datetime, name: str) -> str:
    """A cursor that points behind the item made `at` and called `name`."""
    return base64.urlsafe_b64encode(f"{at.isoformat()}|{name}".encode()).decode()


def decode_cursor(cursor: str | None) -> Seen | None:
    """Read a cursor.

    Raises:
        ProblemError: 422, it is none of ours.
    """
    if cursor is None:
        return None
    try:
        at, bar, name = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition("|")
        moment = dt.datetime.fromisoformat(at)
        if not bar or moment.tzinfo is None or "\x00" in name:
            raise ValueError
        moment.astimezone(dt.UTC)
    except (binascii.Error, ValueError, OverflowError) as error:
        detail = f"cursor is {cursor!r}; take next_cursor of the page before, or none"
        raise ProblemError(422, "invalid", detail, errors=[("cursor", detail)]) from error
    return moment, name
