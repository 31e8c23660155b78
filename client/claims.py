"""Who computes a round: at most one process and thread at a time, whatever crashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path


class RoundClaim:
    """An exclusive hold on one (run, round) while it is computed; the operating system ends it with the process.

    Args:
        folder: where the lock files of a record lie; made on first use.
        run, number: the round.

    Attributes:
        taken: whether the hold was got; False while another process or thread has it.
    """

    taken: bool

    def __init__(self, folder: Path, run: str, number: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._pid = os.getpid()
        self._path = folder / hashlib.sha256(f"{number} {run}".encode()).hexdigest()[:32]
        self._handle: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another holder may have removed the file between our open and our lock.
            self.taken = self._path.exists() and self._path.stat().st_ino == os.fstat(self._handle).st_ino
        except OSError:
            self.taken = False
        if not self.taken:
            os.close(self._handle)
            self._handle = None

    def release(self) -> None:
        """End the hold; safe to call twice."""
        if self._handle is not None:
            if self._pid == os.getpid():  # a forked child must not end its parent's hold
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.release()
