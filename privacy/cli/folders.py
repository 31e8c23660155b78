"""What both homes do on disk: a new folder that appears whole or not at all, private files, a free port."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class HomeError(ValueError):
    """A home folder that cannot be created, found or read; the message says what to do."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a private folder beside `path` that becomes `path` when the block ends well.

    Raises:
        HomeError: `path` exists and holds something; nothing of it was touched.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise HomeError(f"{path} already exists and is not empty; choose a new folder, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new-{os.getpid()}")
    draft.mkdir(mode=0o700)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read (mode 0600); it must not exist."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def read_settings(path: Path, *, create_with: str) -> dict[str, Any]:
    """Read a home's TOML file.

    Raises:
        HomeError: there is none, or it is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise HomeError(f"{path} does not exist; create the home with `{create_with}`") from error
    except tomllib.TOMLDecodeError as error:
        raise HomeError(f"{path} is not TOML: {error}") from error


_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now, and that this process was not given before.

    Below 32768, where systems do not take ports for outgoing connections, so that it stays free until used.
    """
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        if port in _given:  # to something that may not listen yet
            continue
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise HomeError("no free port from 20000 to 31999 on the loopback interface; name ports yourself")


def toml_text(text: str) -> str:
    """`text` as a TOML basic string."""
    escaped = "".join(
        f"\\u{ord(char):04x}" if ord(char) < 0x20 or char in '"\\\x7f' else char for char in text
    )
    return f'"{escaped}"'


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file so that it is either absent or complete, also after a power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in that folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
