"""The demo's folder: made fresh, held by one demo at a time, and never somebody else's."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "demo.lock"


class FolderError(RuntimeError):
    """The folder cannot be used; the message says what to do."""


@contextmanager
def demo_folder(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder that this process alone holds until the block ends.

    Args:
        path: where; what an earlier demo left there is removed first.
        keep: move that aside instead, to `PATH-1`, `PATH-2` and so on.

    Raises:
        FolderError: another demo runs there, or the folder holds something that no demo made.
    """
    path = path.resolve()
    lock = path / LOCK_FILE
    if path.exists() and not path.is_dir():
        raise FolderError(f"{path} is a file; choose a folder with --home")
    if path.is_dir() and any(path.iterdir()) and not lock.exists():
        raise FolderError(f"{path} holds files that no demo made; choose another folder with --home")
    path.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise FolderError(
                f"a demo is running in {path} (process {owner}); end it with Ctrl-C, or give this one "
                "another folder with --home"
            ) from None
        if keep:
            _move_aside(path)
        else:
            _empty(path)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield path
        file.truncate(0)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == LOCK_FILE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _move_aside(path: Path) -> None:
    entries = [entry for entry in path.iterdir() if entry.name != LOCK_FILE]
    if not entries:
        return
    number = 1
    while (aside := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    aside.mkdir()
    (aside / LOCK_FILE).touch()
    for entry in entries:
        entry.rename(aside / entry.name)
