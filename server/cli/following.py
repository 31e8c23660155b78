"""A run as it happens, for the command line: the API's event stream, or asking again and again where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from server.api_client import ApiClient, StreamError

POLL_SECONDS = 1.0
MAX_BREAKS = 3  # of the stream in a row without an event; then the run is asked for instead
FINAL_STATES = frozenset({"completed", "failed", "stopped"})


def follow_run(api: ApiClient, run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What happens, until the run ends: (`message` or `state`, content), each message once.

    Raises:
        CoordinatorError: the run cannot be seen.
    """
    last: str | None = None
    told = breaks = 0
    while breaks < MAX_BREAKS:
        try:
            for mark, name, content in api.events(f"/runs/{run_id}/events", after=last):
                last, breaks = mark, 0
                told += name == "message"
                if name in {"message", "state"}:
                    yield name, content
                if name == "end":
                    return
        except StreamError as error:
            breaks = MAX_BREAKS if error.refused else breaks + 1
            time.sleep(POLL_SECONDS)
    yield from _ask(api, run_id, told)


def _ask(api: ApiClient, run_id: str, told: int) -> Iterator[tuple[str, dict[str, Any]]]:
    while True:
        state = api.get(f"/runs/{run_id}")
        for message in state["messages"][told:]:
            yield "message", message
        told = len(state["messages"])
        yield "state", state
        if state["state"] in FINAL_STATES:
            return
        time.sleep(POLL_SECONDS)
