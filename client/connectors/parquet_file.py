"""A Parquet file, read in batches that fit into memory, whatever its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_file, fingerprint, stamp_of
from client.connectors.source import rows_per_chunk, wanted_columns
from models.schema import StudySchema


class ParquetFile:
    """One Parquet file with the study's columns."""

    has_lines = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def stamp(self) -> str:
        """See `PatientSource.stamp`."""
        return stamp_of([self._path])

    def fingerprint(self, secret: bytes) -> str:
        """See `PatientSource.fingerprint`."""
        return fingerprint(existing_file(self._path), secret)

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """Batches of rows; see `PatientSource.chunks`.

        Raises:
            DataSourceError: absent, empty, or not Parquet.
        """
        try:
            with pq.ParquetFile(existing_file(self._path)) as file:
                if file.metadata.num_rows == 0:
                    raise DataSourceError(f"{self._path.name} has columns and no patient")
                names, wanted = file.schema_arrow.names, set(wanted_columns(schema))
                # Where one is missing all are read, so that the message can say what there is.
                taken = [name for name in names if name in wanted] if wanted <= set(names) else None
                size = rows_per_chunk(len(taken or names))
                for batch in file.iter_batches(batch_size=size, columns=taken):
                    yield _exact_identifiers(batch, schema.patient_id).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise DataSourceError(f"{self._path.name} is not Parquet: {str(error).splitlines()[0]}") from None


def _exact_identifiers(batch: pa.RecordBatch, patient_id: str | None) -> pa.RecordBatch:
    """Whole-number identifiers as text: with a missing one among them pandas would round them to floats."""
    if patient_id not in batch.schema.names:
        return batch
    place = batch.schema.get_field_index(str(patient_id))
    if not pa.types.is_integer(batch.schema.field(place).type):
        return batch
    return batch.set_column(place, str(patient_id), batch.column(place).cast(pa.string()))
