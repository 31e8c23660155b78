"""A source of patients, whatever its kind: chunks of rows, and what tells one state of it from another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from client.connectors.errors import DataSourceError
from client.connectors.settings import DataSource, FhirSource, OmopSource, SqlSource, TableFile
from models.schema import StudySchema

if TYPE_CHECKING:
    import pandas as pd

CELLS_PER_CHUNK = 2_000_000  # what bounds the memory of a chunk: rows times columns


class PatientSource(Protocol):
    """Where a site's table comes from. Sensitive: neither values nor counts may be logged.

    Attributes:
        has_lines: whether row numbers mean something to the site's staff; if not, faults name the patient.
    """

    has_lines: bool

    def stamp(self) -> str | None:
        """Changes when the data changes, without reading them; None where nothing says so (a database)."""

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """The table in chunks of rows that fit into memory, with at least the schema's columns.

        Raises:
            DataSourceError: the source cannot be read.
            TableFaultsError: what it holds does not fit the study's mapping.
        """

    def fingerprint(self, secret: bytes) -> str | None:
        """A keyed digest of the data, to be shown later; None where only what was read can be digested."""


def open_source(data: DataSource) -> PatientSource:
    """The reader for a source; nothing is read yet.

    Raises:
        DataSourceError: the kind holds images, not a table.
    """
    # Imported where needed: a site needs the libraries of its own kind only.
    if isinstance(data, TableFile):
        if data.kind == "csv":
            from client.connectors.csv_file import CsvFile

            return CsvFile(data.path)
        from client.connectors.parquet_file import ParquetFile

        return ParquetFile(data.path)
    if isinstance(data, SqlSource):
        from client.connectors.sql_query import SqlQuery

        return SqlQuery(data)
    if isinstance(data, OmopSource):
        from client.connectors.omop import OmopDatabase

        return OmopDatabase(data)
    if isinstance(data, FhirSource):
        from client.connectors.fhir import FhirExport

        return FhirExport(data.path)
    raise DataSourceError(f"data.kind is {data.kind!r}, which holds images; this study asks for a table")


def rows_per_chunk(num_columns: int) -> int:
    """How many rows of so many columns a chunk has."""
    return max(1_000, CELLS_PER_CHUNK // max(1, num_columns))


def wanted_columns(schema: StudySchema) -> tuple[str, ...]:
    """The names that a source must have: the schema's, and the patient's identifier last."""
    return (*schema.names, *([] if schema.patient_id is None else [schema.patient_id]))
