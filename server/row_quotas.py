"""How many synthetic patients an owner may still ask for on this day (UTC).

The quota is the owner's, so that a second or a rotated key brings no more. A failed cohort costs nothing, a
cancelled one what was drawn of it.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from server.errors import QuotaExceededError
from server.store import Store
from server.tables import CohortRow


@dataclass(frozen=True, kw_only=True)
class RowQuota:
    """An owner's day.

    Attributes:
        limit: rows per day.
        used: rows asked for today.
        resets_in: until the next day.
    """

    limit: int
    used: int
    resets_in: dt.timedelta

    @property
    def left(self) -> int:
        """Rows that may still be asked for today."""
        return max(0, self.limit - self.used)

    @property
    def seconds(self) -> int:
        """Until the next day, rounded up."""
        return math.ceil(self.resets_in.total_seconds())


def row_quota(store: Store, owner: str, *, rows_per_day: int | None = None) -> RowQuota:
    """An owner's day as it stands; `rows_per_day` is the key's own limit, if it has one."""
    with store.database.read() as session:
        return quota_in(store, session, owner, rows_per_day=rows_per_day)


def quota_in(store: Store, session: Session, owner: str, *, rows_per_day: int | None) -> RowQuota:
    """See `row_quota`; inside the caller's transaction."""
    now = store.clock()
    midnight = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    cost = case(
        (CohortRow.state == "failed", 0),
        (CohortRow.state == "cancelled", CohortRow.patients_done),
        else_=CohortRow.num_patients,
    )
    query = select(func.coalesce(func.sum(cost), 0)).where(
        CohortRow.owner == owner, CohortRow.created_at >= midnight
    )
    return RowQuota(
        limit=store.allowances.rows_per_day if rows_per_day is None else rows_per_day,
        used=int(session.scalar(query) or 0),
        resets_in=midnight + dt.timedelta(days=1) - now,
    )


def require_rows(quota: RowQuota, wanted: int) -> None:
    """Refuse a request that the day does not allow.

    Raises:
        QuotaExceededError: says how many are left, and when there are more.
    """
    if wanted > quota.left:
        hours, minutes = divmod(quota.seconds // 60, 60)
        when = f"in {hours} h {minutes} min, at 00:00 UTC"
        message = (
            f"num_patients is {wanted:,}; {quota.left:,} of your {quota.limit:,} rows per day are left: ask for "
            f"fewer, or again {when}"
        )
        if wanted > quota.limit:
            message = (
                f"num_patients is {wanted:,}; you may ask for {quota.limit:,} rows per day, of which {quota.left:,} "
                f"are left until 00:00 UTC: ask for fewer, or ask the operator for a larger quota"
            )
        raise QuotaExceededError("num_patients", message, retry_after_seconds=quota.seconds)
