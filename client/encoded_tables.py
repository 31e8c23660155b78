"""Encoded tables that may be larger than memory: narrow codes, in memory or in one private file of the site.

The file holds patients' codes, not their words, and is as sensitive as the data: it lies in the site's own
folder, only the site's user may read it, and it goes when the data or the study changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from models.schema import StudySchema
from models.table import EncodedTable

SPILL_BYTES = 256 << 20
_GATHER_BYTES = 64 << 20


class CodesWriter:
    """Takes a table's codes chunk by chunk; beyond a size they go to a file.

    Args:
        path: where the file goes if one is needed.
        schema: how many levels the columns have.
        spill_bytes: more than this is not held in memory.
    """

    def __init__(self, path: Path, schema: StudySchema, *, spill_bytes: int = SPILL_BYTES) -> None:
        self._path = path
        self._dtype = narrow_dtype(schema)
        self._width = len(schema.columns)
        self._spill_bytes = spill_bytes
        self._chunks: list[np.ndarray] = []
        self._num_rows = 0
        self._drafts: list[_Draft] = []

    def __enter__(self) -> CodesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for draft in self._drafts:
            draft.discard()

    def add(self, codes: np.ndarray) -> None:
        """The next rows, (R, K) of any integer type."""
        chunk = codes.astype(self._dtype)
        self._num_rows += len(chunk)
        self._chunks.append(chunk)
        if self._drafts or self._num_rows * self._row_bytes > self._spill_bytes:
            draft = self._drafts[0] if self._drafts else self._new_draft()
            for held in self._chunks:
                draft.write(held)
            self._chunks = []

    def finish(self, order: np.ndarray | None, offsets: np.ndarray) -> EncodedTable:
        """The table, its rows put in `order` (None: as they came), patients as in `offsets` (P + 1,)."""
        if not self._drafts:
            codes = np.concatenate(self._chunks)
            codes = codes if order is None else codes[order]
            return EncodedTable(codes=torch.from_numpy(codes), patient_offsets=torch.from_numpy(offsets))
        draft = self._drafts[0]
        if order is not None:
            draft, unordered = self._new_draft(), draft
            rows = np.memmap(unordered.path, self._dtype, mode="r", shape=(self._num_rows, self._width))
            step = max(1, _GATHER_BYTES // self._row_bytes)
            for start in range(0, len(order), step):
                draft.write(rows[order[start : start + step]])
        draft.write(offsets.astype(np.int64))
        draft.write(np.array([len(offsets)], dtype=np.int64))
        draft.keep_as(self._path)
        table = open_codes(self._path, self._width, self._dtype)
        if table is None:
            raise OSError("the file of encoded patients is gone although it was written just now")
        return table

    @property
    def _row_bytes(self) -> int:
        return self._width * self._dtype.itemsize

    def _new_draft(self) -> _Draft:
        self._drafts.append(_Draft(self._path.parent))
        return self._drafts[-1]


class _Draft:
    """A private file that is gone unless it is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Readable by the owner only; the process in the name tells a crash's leftovers from work in hand.
        self._fd, name = tempfile.mkstemp(dir=folder, prefix=f"{os.getpid()}-", suffix=".draft")
        self.path = Path(name)

    def write(self, rows: np.ndarray) -> None:
        view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        while len(view):
            view = view[os.write(self._fd, view) :]

    def keep_as(self, path: Path) -> None:
        os.fsync(self._fd)  # a power loss must not leave a file of the right size with other contents
        self.path.replace(path)

    def discard(self) -> None:
        os.close(self._fd)
        self.path.unlink(missing_ok=True)


def open_codes(path: Path, width: int, dtype: np.dtype) -> EncodedTable | None:
    """The table that a `CodesWriter` left at this path, mapped and not read; None where there is none whole.

    The file holds the codes (R, K), then the offsets (P + 1,) and their number as int64.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < 24:
        return None
    num_offsets = int(np.fromfile(path, np.int64, count=1, offset=size - 8)[0])
    start = size - 8 - 8 * num_offsets
    if num_offsets < 2 or start < 0:
        return None
    offsets = np.fromfile(path, np.int64, count=num_offsets, offset=start)
    if start != offsets[-1] * width * dtype.itemsize:
        return None
    kind = torch.uint8 if dtype == np.uint8 else torch.int16
    # Not shared: writing to the tensor would never reach the file.
    rows = torch.from_file(str(path), shared=False, size=start // dtype.itemsize, dtype=kind)
    return EncodedTable(codes=rows.view(-1, width), patient_offsets=torch.from_numpy(offsets))


def narrow_dtype(schema: StudySchema) -> np.dtype:
    """The smallest type that holds every level: uint8, or int16 (a column has at most 4096 levels)."""
    return np.dtype(np.uint8 if max(schema.cardinalities) <= 256 else np.int16)


def remove_stale(folder: Path, keep: Path) -> None:
    """Remove all tables in a folder but one, and what processes that are gone left half done."""
    if folder.is_dir():
        for file in folder.iterdir():
            if file != keep and not (file.suffix == ".draft" and _is_running(file.name.partition("-")[0])):
                file.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def chunks_of_bytes(table: EncodedTable) -> Iterator[bytes]:
    """A table's offsets and codes as bytes, for a digest."""
    yield table.patient_offsets.numpy().tobytes()
    step = max(1, _GATHER_BYTES // max(1, table.codes.shape[1] * table.codes.element_size()))
    for start in range(0, table.num_records, step):
        yield table.codes[start : start + step].numpy().tobytes()
