"""Zip archives that are written as a stream, never grow in memory and depend on nothing but their members.

Members are stored as they are (the cohort's files are compressed already, or compress badly when they are noise),
dated 1980-01-01, with ZIP64 fields. Python's own writer keeps every member in memory until the end, which a million
pictures do not allow; here the directory is gathered in a file.

References:
    PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14 to 4.3.16, 4.5.3.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path
from typing import IO

_VERSION = 45  # ZIP64
_UTF8 = 0x800
_DAY = (0 << 9) | (1 << 5) | 1  # 1980-01-01
_UNIX = 3 << 8
_MODE = 0o100644 << 16
_BLOCK = 2**20
_FULL = 0xFFFFFFFF


class ZipStream:
    """A zip archive; add members, then `close`.

    Args:
        path: the archive's file; made new.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._directory: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._count = 0
        self._closed = False

    def add(self, name: str, data: bytes) -> None:
        """Add a member from memory."""
        self._member(name, zlib.crc32(data), len(data))
        self._file.write(data)

    def add_file(self, name: str, path: Path) -> None:
        """Add a member from a file, block by block."""
        start = self._file.tell()
        crc, size = 0, path.stat().st_size
        self._header(name, crc, size)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
                self._file.write(block)
        end = self._file.tell()
        self._file.seek(start)
        self._header(name, crc, size)
        self._file.seek(end)
        self._entry(name, crc, size, start)

    def close(self) -> None:
        """Write the directory; again is harmless."""
        if self._closed:
            return
        self._closed = True
        start = self._file.tell()
        self._directory.seek(0)
        while block := self._directory.read(_BLOCK):
            self._file.write(block)
        size = self._file.tell() - start
        end = self._file.tell()
        record = struct.pack(
            "<4sQHHIIQQQQ", b"PK\x06\x06", 44, _UNIX | _VERSION, _VERSION, 0, 0,
            self._count, self._count, size, start,
        )  # fmt: skip
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
        count = min(self._count, 0xFFFF)
        last = struct.pack(
            "<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, min(size, _FULL), min(start, _FULL), 0
        )
        self._file.write(record + locator + last)
        self._directory.close()
        self._file.close()

    def _member(self, name: str, crc: int, size: int) -> None:
        start = self._file.tell()
        self._header(name, crc, size)
        self._entry(name, crc, size, start)

    def _header(self, name: str, crc: int, size: int) -> None:
        text = name.encode()
        extra = struct.pack("<HHQQ", 1, 16, size, size)
        self._file.write(
            struct.pack(
                "<4sHHHHHIIIHH",
                b"PK\x03\x04",
                _VERSION,
                _UTF8,
                0,
                0,
                _DAY,
                crc,
                _FULL,
                _FULL,
                len(text),
                len(extra),
            )
            + text
            + extra
        )

    def _entry(self, name: str, crc: int, size: int, start: int) -> None:
        text = name.encode()
        extra = struct.pack("<HHQQQ", 1, 24, size, size, start)
        self._directory.write(
            struct.pack(
                "<4sHHHHHHIIIHHHHHII",
                b"PK\x01\x02",
                _UNIX | _VERSION,
                _VERSION,
                _UTF8,
                0,
                0,
                _DAY,
                crc,
                _FULL,
                _FULL,
                len(text),
                len(extra),
                0,
                0,
                0,
                _MODE,
                _FULL,
            )
            + text
            + extra
        )
        self._count += 1
