"""Answers that are made once and given until the ledger grows.

Whatever adds or changes a release or a study writes a ledger entry in the same transaction, and a run that has a
release spends nothing more. So an answer that tells of nothing else is right for as long as the ledger has as many
entries as when it was asked for; how many there are comes with the key that asks (`server.keys`), by the one query
that every request makes. No process has to hear of what another does, and a revoked key is refused before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from server.api.conditional import body_answer, json_body
from server.keys import ApiKey

MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Kept:
    size: int
    body: bytes
    sha256: str


class KeptAnswers:
    """Bodies by what was asked; the longest unused go first.

    Args:
        max_bytes: of all bodies together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, asked: Hashable, size: int) -> tuple[bytes, str] | None:
        """(body, SHA-256) of an answer that was asked for when the ledger had `size` entries."""
        with self._lock:
            kept = self._kept.get(asked)
            if kept is None or kept.size != size:
                return None
            self._kept.move_to_end(asked)
            return kept.body, kept.sha256

    def put(self, asked: Hashable, size: int, body: bytes, sha256: str) -> None:
        """Keep an answer; one for a larger ledger is not replaced by one that took longer."""
        with self._lock:
            old = self._kept.get(asked)
            if len(body) > self._max_bytes or (old is not None and old.size > size):
                return
            self._kept[asked] = _Kept(size=size, body=body, sha256=sha256)
            self._kept.move_to_end(asked)
            self._bytes += len(body) - (0 if old is None else len(old.body))
            while self._bytes > self._max_bytes:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= len(gone.body)


async def kept_answer(request: Request, key: ApiKey, make: Callable[[], BaseModel]) -> Response:
    """The answer to this request, made in a handler's thread where none is kept.

    Args:
        key: as it was checked for this request.
        make: gives what is answered, from nothing but what the ledger has an entry for, the address, and whether a
            researcher asks.
    """
    kept: KeptAnswers = request.app.state.kept_answers
    asked = (key.role == "researcher", request.scope["path"], request.scope["query_string"])
    size = key.ledger_size
    found = None if size is None else kept.get(asked, size)
    if found is None:
        found = await run_in_threadpool(lambda: json_body(make()))
        if size is not None:
            kept.put(asked, size, *found)
    return body_answer(request, *found)
