"""Writes one cohort's files side by side and leaves nothing behind unless all were completed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import pandas as pd

from privacy.cli.folders import sync_folder
from server.cohorts import CohortFile
from server.exports.archive import ZipStream
from server.exports.context import ExportContext

ARCHIVE = "cohort.zip"
_DRAFTS = ".drafts."


class FormatWriter(Protocol):
    """One format's files while they are written, in a folder of drafts.

    Attributes:
        media_types: by file name, relative to the folder, with `/` between its parts; complete once closed.
    """

    media_types: Mapping[str, str]

    def write(self, table: pd.DataFrame, images: np.ndarray | None) -> None:
        """Append patients: their rows (the chosen columns), and uint8 pictures (N, C, H, W) where there are any."""

    def close(self) -> None:
        """Complete the files; again is harmless."""


NewWriter = Callable[[Path, ExportContext], FormatWriter]


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format that can be asked for.

    Attributes:
        name: as in a request.
        title: for people.
        new: makes its writer.
        missing: what a context lacks for it, as a sentence that says what to do; None where it can be given.
        note: on how values stand in its files, for the certificate.
        left_out: by column, why the format cannot carry it.
    """

    name: str
    title: str
    new: NewWriter
    missing: Callable[[ExportContext], str | None] = lambda _context: None
    note: str = ""
    left_out: Callable[[ExportContext], Mapping[str, str]] = lambda _context: {}


class CohortWriter:
    """Writes one cohort's files; a context manager.

    Args:
        folder: the cohort's; made if absent.
        formats: in what.
        context: where the draw comes from.
        packed: whether all files are packed into `cohort.zip` too.
        token: the worker's own, so that two workers never write to one draft.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[ExportFormat],
        context: ExportContext,
        *,
        packed: bool = False,
        token: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_DRAFTS}*"):  # by a worker that died
            shutil.rmtree(left, ignore_errors=True)
        self._folder, self._packed = folder, packed
        self._drafts = folder / f"{_DRAFTS}{token}"
        self._drafts.mkdir()
        self._columns = [column.name for column in context.chosen]
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self._drafts, ignore_errors=True)
        self._writers: list[FormatWriter] = []
        for one in formats:
            writer = one.new(self._drafts, context)
            self._stack.callback(writer.close)
            self._writers.append(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, table: pd.DataFrame, images: np.ndarray | None = None) -> None:
        """Append patients to every file; see `FormatWriter.write`. All columns may be given."""
        chosen = table[self._columns]
        for writer in self._writers:
            writer.write(chosen, images)

    def finish(self) -> list[CohortFile]:
        """Complete the files durably under their names, in the formats' order."""
        files: list[CohortFile] = []
        for writer in self._writers:
            writer.close()
            for name, media_type in writer.media_types.items():
                files.append(self._describe(name, media_type))
        if self._packed:
            archive = ZipStream(self._drafts / ARCHIVE)
            self._stack.callback(archive.close)
            for file in files:
                archive.add_file(file.name, self._drafts.joinpath(*PurePosixPath(file.name).parts))
            archive.close()
            files.append(self._describe(ARCHIVE, "application/zip"))
        folders = {self._folder}
        for file in files:
            final = self._folder.joinpath(*PurePosixPath(file.name).parts)
            final.parent.mkdir(exist_ok=True)
            self._drafts.joinpath(*PurePosixPath(file.name).parts).replace(final)
            folders.add(final.parent)
        for folder in folders:
            sync_folder(folder)
        return files

    def _describe(self, name: str, media_type: str) -> CohortFile:
        path = self._drafts.joinpath(*PurePosixPath(name).parts)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        return CohortFile(name=name, num_bytes=path.stat().st_size, sha256=sha256, media_type=media_type)
