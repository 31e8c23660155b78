"""What the site's staff was told, from `notices.log`: newest first, a fault's many lines kept together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 1_000_000  # what is older stays in the file
_HEAD = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\S* (.*)$")


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing that staff was told. Sensitive: faults of the table; shown here, never sent.

    Attributes:
        at: `YYYY-MM-DD HH:MM:SS`, UTC.
        title: its first line.
        details: the lines after it.
    """

    at: str
    title: str
    details: tuple[str, ...]


def read_notices(file: Path) -> list[Notice]:
    """The notices, the latest first; empty where there is no file yet.

    Raises:
        OSError: the file cannot be read.
    """
    if not file.exists():
        return []
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - TAIL_BYTES))
        lines = log.read().decode("utf-8", errors="replace").splitlines()
    found: list[tuple[str, str, list[str]]] = []
    for line in lines:
        head = _HEAD.match(line)
        if head is not None:
            found.append((head[1].replace("T", " "), head[2], []))
        elif found:
            found[-1][2].append(line)
    return [Notice(at=at, title=title, details=tuple(details)) for at, title, details in reversed(found)]
