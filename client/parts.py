"""What the coordinator has sent this site before, by digest, so that it need not be sent again."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from pathlib import Path

from models.digests import digest_of

MAX_BYTES = 256 * 2**20


class PartCache:
    """Parts of requests in a folder; nothing in it comes from patients.

    A file that is not what its name says counts as absent and is removed, so that nothing needs to be synced to
    disk and no crash can do harm. Beyond the bound what was not used for longest goes first.

    Args:
        folder: the cache's own; made when the first part is kept.
        max_bytes: bound on all parts together; a larger part is not kept.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, digest: str) -> bytes | None:
        """The part of that digest, if it is held and whole."""
        path = self._path(digest)
        if path is None:
            return None
        try:
            data = path.read_bytes()
            if digest_of(data) != digest:
                path.unlink()
                return None
            path.touch()
        except OSError:
            return None
        return data

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a part; a disk that is full only costs that it is sent again."""
        path = self._path(digest)
        if path is None or len(data) > self._max_bytes:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data), path)
            draft = path.with_name(f".{secrets.token_hex(4)}")
            try:
                draft.write_bytes(data)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def _make_room(self, size: int, path: Path) -> None:
        files = [(file, file.stat()) for file in self._folder.iterdir() if file != path]
        held = sum(facts.st_size for _, facts in files) + size
        for file, facts in sorted(files, key=lambda one: one[1].st_mtime_ns):
            if held <= self._max_bytes:
                return
            file.unlink(missing_ok=True)
            held -= facts.st_size

    def _path(self, digest: str) -> Path | None:
        found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
        return None if found is None else self._folder / found[1]
