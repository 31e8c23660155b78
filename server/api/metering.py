"""How often a key may ask: a token bucket per key, and what the answers say of it.

References:
    RFC 6585 section 4 (429), RFC 9110 section 10.2.3 (Retry-After), draft-ietf-httpapi-ratelimit-headers-10.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import Request

from server.api.problems import ProblemError
from server.keys import ApiKey
from server.row_quotas import RowQuota

WINDOW_SECONDS = 60
DAY_SECONDS = 86_400
MAX_KEYS = 10_000


class RequestMeter:
    """Counts requests by key, in this process.

    Args:
        per_minute: of one key; a minute's worth may come at once.
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take one request; what is left, below 0 where there was none to take."""
        now = self._clock()
        with self._lock:
            left, seen = self._left.pop(key, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - seen) * self.per_minute / WINDOW_SECONDS)
            taken = left - 1
            self._left[key] = (taken if taken >= 0 else left, now)
            while len(self._left) > MAX_KEYS:
                self._left.popitem(last=False)
        return taken


def meter_request(request: Request, key: ApiKey) -> None:
    """Count a request of a key, and let the answer say what is left.

    Raises:
        ProblemError: 429, too many.
    """
    meter: RequestMeter = request.app.state.meter
    left = meter.take(key.prefix)
    per_request = WINDOW_SECONDS / meter.per_minute
    wait = max(1, math.ceil(-left * per_request)) if left < 0 else math.ceil(per_request)
    told = _told(
        "requests", limit=meter.per_minute, window=WINDOW_SECONDS, left=max(0, int(left)), again=wait
    )
    request.state.answer_headers = told
    if left < 0:
        detail = f"this key may ask {meter.per_minute:,} times a minute; ask again in {wait} s"
        raise ProblemError(429, "too-many", detail, headers={**told, "Retry-After": str(wait)})


def tell_rows(request: Request, quota: RowQuota) -> None:
    """Let the answer say how many rows are left for the day."""
    told = _told("rows", limit=quota.limit, window=DAY_SECONDS, left=quota.left, again=quota.seconds)
    known: dict[str, str] = getattr(request.state, "answer_headers", {})
    request.state.answer_headers = {
        name: ", ".join(part for part in (known.get(name), value) if part) for name, value in told.items()
    }


def _told(name: str, *, limit: int, window: int, left: int, again: int) -> dict[str, str]:
    return {"RateLimit-Policy": f'"{name}";q={limit};w={window}', "RateLimit": f'"{name}";r={left};t={again}'}
