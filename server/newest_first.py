"""Lists that grow, newest first and a part at a time; what comes meanwhile shifts nothing."""

from __future__ import annotations

import datetime as dt
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

Q = TypeVar("Q", bound=Select[Any])
Seen = tuple[dt.datetime, str]
"""When the last one seen was made, and its name."""


def newest_first(
    query: Q,
    at: InstrumentedAttribute[dt.datetime],
    name: InstrumentedAttribute[str],
    *,
    limit: int | None,
    before: Seen | None,
) -> Q:
    """The query's rows in that order.

    Args:
        at: the column that says when a row was made.
        name: the column that tells rows apart that were made at once.
        limit: so many at most.
        before: the last one seen; None: from the newest on.
    """
    ordered = query.order_by(at.desc(), name.desc()).limit(limit)
    if before is None:
        return ordered
    moment, last = before
    return ordered.where((at < moment) | ((at == moment) & (name < last)))
