"""Every format that a cohort can be had in."""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import InvalidError
from server.exports import csv_file, fhir, images, omop
from server.exports.context import ExportContext
from server.exports.csv_file import CsvWriter
from server.exports.dictionary import DictionaryWriter
from server.exports.fhir import FhirWriter
from server.exports.images import DicomWriter, PngWriter
from server.exports.json_lines import JsonLinesWriter
from server.exports.omop import OmopWriter
from server.exports.parquet_file import ParquetWriter
from server.exports.writer import ExportFormat

DICTIONARY = ExportFormat(name="dictionary", title="Data dictionary", new=DictionaryWriter)
FORMATS = {
    one.name: one
    for one in (
        ExportFormat(name="csv", title="CSV", new=CsvWriter, note=csv_file.NOTE),
        ExportFormat(name="parquet", title="Apache Parquet", new=ParquetWriter),
        ExportFormat(name="jsonl", title="JSON Lines", new=JsonLinesWriter),
        ExportFormat(
            name="fhir",
            title="FHIR R4 NDJSON",
            new=FhirWriter,
            missing=fhir.lacks_bindings,
            note=fhir.NOTE,
            left_out=fhir.left_out,
        ),
        ExportFormat(
            name="omop",
            title="OMOP CDM 5.4 tables as CSV",
            new=OmopWriter,
            missing=omop.lacks_bindings,
            note=omop.NOTE,
            left_out=omop.left_out,
        ),
        ExportFormat(
            name="png",
            title="PNG with a manifest",
            new=PngWriter,
            missing=images.lacks_images,
            note=images.NOTE,
        ),
        ExportFormat(
            name="dicom",
            title="DICOM",
            new=DicomWriter,
            missing=images.lacks_images,
            note=images.NOTE,
        ),
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
