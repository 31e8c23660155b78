"""What the coordinator allows its users: how long a cohort's files are kept, how many rows and requests there are."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Allowances:
    """Set in `[cohorts]` of server.toml.

    Attributes:
        keep_cohorts: after so long a cohort's files are removed; its certificate and ledger entry stay.
        rows_per_day: synthetic patients that one owner may ask for on one day (UTC), where the key has no number of
            its own.
        requests_per_minute: of one key, of which a minute's worth may come at once.
        preview_seconds: a preview that takes longer is given up.
    """

    keep_cohorts: dt.timedelta = dt.timedelta(days=30)
    rows_per_day: int = 50_000_000
    requests_per_minute: int = 6_000
    preview_seconds: float = 10.0


DEFAULTS = Allowances()
