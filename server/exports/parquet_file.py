"""Parquet with zstd; its metadata say that it is synthetic, from which release, and what each column is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from server.exports.context import NOT_A_PERSON, ExportContext
from server.exports.dictionary import describe_column

MEDIA_TYPE = "application/vnd.apache.parquet"
ROW_GROUP = 100_000


class ParquetWriter:
    """`cohort.parquet`."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self.media_types = {"cohort.parquet": MEDIA_TYPE}
        self._path, self._context = folder / "cohort.parquet", context
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def write(self, table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema(table), compression="zstd")
        self._waiting.append(pa.Table.from_pandas(table, schema=self._writer.schema, preserve_index=False))
        if sum(part.num_rows for part in self._waiting) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """See `FormatWriter`."""
        if self._writer is not None and self._writer.is_open:
            self._flush()
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is not None and self._waiting:
            together = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(together, row_group_size=ROW_GROUP)
            self._waiting = []

    def _schema(self, table: pd.DataFrame) -> pa.Schema:
        schema = pa.Schema.from_pandas(table, preserve_index=False)
        for at, column in enumerate(self._context.chosen):
            told = json.dumps(describe_column(column), ensure_ascii=False).encode()
            schema = schema.set(at, schema.field(at).with_metadata({b"fedtwin.column": told}))
        marks = {
            b"fedtwin.synthetic": b"true",
            b"fedtwin.note": NOT_A_PERSON.encode(),
            b"fedtwin.release": self._context.release.encode(),
            b"fedtwin.study": self._context.study_digest.encode(),
        }
        return schema.with_metadata({**(schema.metadata or {}), **marks})
