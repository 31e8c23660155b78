"""Files and folders as sources: what tells one state of them from another."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from client.connectors.errors import DataSourceError

_BLOCK_BYTES = 1 << 20


def existing_file(path: Path, setting: str = "data.path") -> Path:
    """The path, if a file is there.

    Raises:
        DataSourceError: names the setting to correct.
    """
    if not path.is_file():
        raise DataSourceError(f"there is no data file {path}; correct {setting} in site.toml")
    return path


def existing_folder(path: Path, setting: str = "data.path") -> Path:
    """The path, if a folder is there.

    Raises:
        DataSourceError: names the setting to correct.
    """
    if not path.is_dir():
        raise DataSourceError(f"there is no folder {path}; correct {setting} in site.toml")
    return path


def stamp_of(paths: Iterable[Path]) -> str:
    """A digest that changes when a file is added, removed, replaced or written to. Reads no contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.exists():
            status = path.stat()
            digest.update(f"{path}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprint(path: Path, secret: bytes) -> str:
    """A keyed digest of the data file: the site can show later which data it used, nobody can guess it.

    Args:
        path: the data file.
        secret: the site's own secret, at least 32 bytes; it never leaves the site.

    Returns:
        `hmac-sha256:` and 64 hexadecimal digits.
    """
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    _add_contents(mac, path)
    return "hmac-sha256:" + mac.hexdigest()


def fingerprint_of_folder(folder: Path, paths: Iterable[Path], secret: bytes) -> str:
    """The same over several files of a folder, each with its name in the folder and its length."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for path in sorted(paths):
        mac.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
        _add_contents(mac, path)
    return "hmac-sha256:" + mac.hexdigest()


def _add_contents(mac: hmac.HMAC, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            mac.update(block)
