"""Every format that a cohort can be had in."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import InvalidError
from server.exports import csv_file
from server.exports.context import ExportContext
from server.exports.csv_file import CsvWriter
from server.exports.dictionary import DictionaryWriter
from server.exports.json_lines import JsonLinesWriter
from server.exports.parquet_file import ParquetWriter
from server.exports.writer import ExportFormat

DICTIONARY = ExportFormat(name="dictionary", title="Data dictionary", new=DictionaryWriter)
FORMATS = {
    one.name: one
    for one in (
        ExportFormat(name="csv", title="CSV", new=CsvWriter, note=csv_file.NOTE),
        ExportFormat(name="parquet", title="Apache Parquet", new=ParquetWriter),
        ExportFormat(name="jsonl", title="JSON Lines", new=JsonLinesWriter),
    )
}


def chosen_formats(names: Sequence[str], context: ExportContext) -> list[ExportFormat]:
    """The formats of a request, in this module's order, and the data dictionary, which is always there.

    Raises:
        InvalidError: a format that this release cannot be given in; says why and what to do.
    """
    chosen = [one for name, one in FORMATS.items() if name in names]
    for one in chosen:
        if (lacking := one.missing(context)) is not None:
            raise InvalidError("formats", f"format {one.name!r} cannot be given: {lacking}")
    return [*chosen, DICTIONARY]
