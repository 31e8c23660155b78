"""A request that broke off, so that the same command in the same folder goes on with it and asks for nothing twice."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.cli.folders import write_durably
from server.coordinator_error import CoordinatorError

if TYPE_CHECKING:
    from server.researcher import Cohort

ENDED = frozenset({"failed", "cancelled", "expired", "deleted"})


class UnfinishedRequest:
    """The name under which the coordinator knows a request; kept in a file until the cohort is here.

    Args:
        folder: where the cohort goes.
        wanted: all that the request says.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        self._mark = folder / f".fedtwin-request-{digest[:16]}"

    def ask(self, request: Callable[[str], Cohort]) -> tuple[Cohort, bool]:
        """Ask under the name that is kept, or a new one.

        Args:
            request: asks under a name.

        Returns:
            (the cohort, whether it is one that was asked for before).

        Raises:
            CoordinatorError: the request was refused.
        """
        if self._mark.is_file():
            made = request(self._mark.read_text())
            if made.last_status.state not in ENDED:
                return made, True
        name = uuid.uuid4().hex
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._mark, name.encode())
        try:
            return request(name), False
        except CoordinatorError as error:
            if error.status is not None and error.status < 500:
                self.forget()  # nothing was made of it
            raise

    def forget(self) -> None:
        """The cohort is here."""
        self._mark.unlink(missing_ok=True)
