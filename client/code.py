"""Which code ran: a digest of the rooms that touch patients, so that a receipt names it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOMS = ("client", "models", "privacy")


@cache
def code_digest() -> str:
    """`sha256:` over the names and contents of every source file of `client`, `models` and `privacy`.

    Equal installations give equal digests, whatever folder they are in.
    """
    home = Path(__file__).resolve().parents[1]
    total = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((home / room).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(home).as_posix()} {content}\n".encode())
    return "sha256:" + total.hexdigest()
