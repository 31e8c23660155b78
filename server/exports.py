"""Cohorts as files, written chunk by chunk, so that a million patients never sit in memory.

The same chunks give the same bytes: nothing of the time, the request or the machine goes into a file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from privacy.cli.folders import sync_folder
from server.cohorts import CohortFile, Format

STEM = "cohort"
SYNTHETIC_KEY = b"fedtwin.synthetic"
RELEASE_KEY = b"fedtwin.release"


class _Writer(Protocol):
    media_type: str

    def write(self, chunk: pd.DataFrame) -> None:
        """Append a chunk."""

    def close(self) -> None:
        """Finish the file."""


class _CsvWriter:
    """UTF-8, comma-separated, one header line; an absent value is an empty field."""

    media_type = "text/csv; charset=utf-8; header=present"

    def __init__(self, path: Path, _release: str) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._started = False

    def write(self, chunk: pd.DataFrame) -> None:
        chunk.to_csv(self._file, index=False, header=not self._started, lineterminator="\n")
        self._started = True

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    """Parquet with zstd; its metadata say that it is synthetic and from which release."""

    media_type = "application/vnd.apache.parquet"

    def __init__(self, path: Path, release: str) -> None:
        self._path, self._release = path, release
        self._writer: pq.ParquetWriter | None = None

    def write(self, chunk: pd.DataFrame) -> None:
        if self._writer is None:
            schema = pa.Schema.from_pandas(chunk, preserve_index=False)
            marks = {SYNTHETIC_KEY: b"true", RELEASE_KEY: self._release.encode()}
            schema = schema.with_metadata({**(schema.metadata or {}), **marks})
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        self._writer.write_table(
            pa.Table.from_pandas(chunk, schema=self._writer.schema, preserve_index=False)
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


_WRITERS: dict[Format, type[_CsvWriter] | type[_ParquetWriter]] = {
    "csv": _CsvWriter,
    "parquet": _ParquetWriter,
}


class CohortWriter:
    """Writes one cohort's files; a context manager that leaves nothing behind unless `finish` was called.

    Args:
        folder: the cohort's; made if absent.
        formats: which files.
        release: digest, for the files' metadata.
        token: the worker's own, so that two workers never write to one draft.
    """

    def __init__(self, folder: Path, formats: tuple[Format, ...], *, release: str, token: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{STEM}.*"):  # by a worker that died
            left.unlink(missing_ok=True)
        self._folder = folder
        self._drafts = {one: folder / f".{STEM}.{one}.{token}" for one in formats}
        self._writers: dict[Format, _Writer] = {
            one: _WRITERS[one](draft, release) for one, draft in self._drafts.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, draft in self._drafts.items():
            self._writers[one].close()
            draft.unlink(missing_ok=True)

    def write(self, chunk: pd.DataFrame) -> None:
        """Append a chunk to every file."""
        for writer in self._writers.values():
            writer.write(chunk)

    def finish(self) -> list[CohortFile]:
        """Complete the files durably under their names."""
        files = []
        for one, draft in self._drafts.items():
            writer = self._writers[one]
            writer.close()
            with draft.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            final = self._folder / f"{STEM}.{one}"
            draft.replace(final)
            files.append(
                CohortFile(
                    name=final.name,
                    num_bytes=final.stat().st_size,
                    sha256=sha256,
                    media_type=writer.media_type,
                )
            )
        sync_folder(self._folder)
        return files
