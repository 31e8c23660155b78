"""Work that takes seconds of a core: one at a time, in a thread beside the handlers', so that none waits for it.

Who comes while some is done waits in a short line, which takes no thread; when the line is full, the answer is 503.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.api.problems import ProblemError

MAX_WAITING = 8
RETRY_SECONDS = "10"
T = TypeVar("T")


class SlowWork:
    """One thread and a line before it.

    Args:
        max_waiting: so many may stand in the line.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slow-work")

    async def run(self, work: Callable[[], T]) -> T:
        """Do it when its turn comes.

        Raises:
            ProblemError: 503 with Retry-After, the line is full.
        """
        if not self._places.acquire(blocking=False):
            detail = "too many ask for what takes seconds at the moment; ask again"
            raise ProblemError(503, "unavailable", detail, headers={"Retry-After": RETRY_SECONDS})
        done: Future[T] = self._thread.submit(work)
        done.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Begin nothing more; what waits is given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)
