"""Pictures of a cohort: PNG files with a manifest, or DICOM; each format is one zip, written as a stream.

A million pictures are no million files: `images-png.zip` holds `manifest.csv` and one PNG per patient,
`images-dicom.zip` one DICOM file per patient. Row and picture of a patient bear the same name.

References:
    W3C PNG (third edition). DICOM PS3.3 C.12.1 (SyntheticData), A.8.1 (Secondary Capture); PS3.5 B.2 (UIDs from UUIDs).
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from server.exports import csv_file
from server.exports.archive import ZipStream
from server.exports.context import NOT_A_PERSON, ExportContext
from server.exports.values import Value, row_values

NOTE = "one picture per patient, named as the patient; the manifest has the rows"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IMPLEMENTATION = "2.25.55760628216611402091707187121421795024"  # a UUID of our own
_GREY = 128  # between the pictures of a sheet
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


class PngWriter:
    """`images-png.zip`."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self.media_types = {"images-png.zip": "application/zip"}
        self._context = context
        self._archive = ZipStream(folder / "images-png.zip")
        self._manifest_path = folder / ".manifest.csv"
        self._manifest = self._manifest_path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._manifest, lineterminator="\n")
        self._written = 0

    def write(self, table: pd.DataFrame, images: np.ndarray | None) -> None:
        """See `FormatWriter`.

        Raises:
            ValueError: not one uint8 picture of one or three channels per row.
        """
        pictures = _checked(images, len(table))
        if self._written == 0:
            self._rows.writerow(["file", *map(csv_file.harmless, table.columns)])
        rows = row_values(csv_file.without_formulas(table))
        for picture, row in zip(pictures, rows, strict=True):
            self._written += 1
            name = f"{self._context.patient_name(self._written)}.png"
            self._archive.add(name, png_bytes(picture))
            self._rows.writerow([name, *row])

    def close(self) -> None:
        """See `FormatWriter`."""
        if not self._manifest.closed:
            self._manifest.close()
            self._archive.add_file("manifest.csv", self._manifest_path)
            self._manifest_path.unlink()
        self._archive.close()


class DicomWriter:
    """`images-dicom.zip`: a study, a series and an instance per patient, all flagged as synthetic."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self.media_types = {"images-dicom.zip": "application/zip"}
        self._context = context
        self._archive = ZipStream(folder / "images-dicom.zip")
        self._written = 0

    def write(self, table: pd.DataFrame, images: np.ndarray | None) -> None:
        """See `FormatWriter`.

        Raises:
            ValueError: not one uint8 picture of one or three channels per row.
        """
        pictures = _checked(images, len(table))
        for picture, row in zip(pictures, row_values(table), strict=True):
            self._written += 1
            told = dict(zip(table.columns, row, strict=True))
            data = dicom_bytes(picture, self._context, number=self._written, row=told)
            self._archive.add(f"{self._context.patient_name(self._written)}.dcm", data)

    def close(self) -> None:
        """See `FormatWriter`."""
        self._archive.close()


def png_bytes(picture: np.ndarray) -> bytes:
    """A uint8 picture (C, H, W), grey or RGB, as PNG; its `Comment` says that it is synthetic."""
    channels, height, width = picture.shape
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each line's filter type first: none
    lines[:, 1:] = picture.transpose(1, 2, 0).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"tEXt", b"Comment\x00" + NOT_A_PERSON.encode("latin-1")),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def contact_sheet(pictures: np.ndarray, *, num_rows: int) -> np.ndarray:
    """Pictures (N, C, H, W) uint8 side by side in rows, (C, H', W') uint8, with a line of grey around each."""
    pictures = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=_GREY)
    count, channels, height, width = pictures.shape
    grid = pictures.reshape(num_rows, count // num_rows, channels, height, width)
    return grid.transpose(2, 0, 3, 1, 4).reshape(channels, num_rows * height, -1)


def dicom_bytes(picture: np.ndarray, context: ExportContext, *, number: int, row: dict[str, Value]) -> bytes:
    """A uint8 picture (C, H, W) as a DICOM file, SyntheticData = YES.

    Args:
        picture: grey or RGB.
        context: where the draw comes from.
        number: of the patient, from 1.
        row: the patient's values, for the comments.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    def uid(*parts: object) -> str:
        return f"2.25.{context.uuid(*parts).int}"

    channels, height, width = picture.shape
    day = context.released_on.strftime("%Y%m%d")
    data = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY"],
        "SyntheticData": "YES",
        "SOPClassUID": _SECONDARY_CAPTURE,
        "SOPInstanceUID": uid(number, "instance"),
        "StudyDate": day,
        "StudyTime": "000000",
        "AccessionNumber": "",
        "Modality": "OT",
        "ConversionType": "SYN",
        "Manufacturer": "fedtwin",
        "ReferringPhysicianName": "",
        "StudyDescription": "SYNTHETIC",
        "SeriesDescription": context.study_title[:64],
        "PatientName": f"SYNTHETIC^PATIENT {number:07d}",
        "PatientID": context.patient_name(number),
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientComments": NOT_A_PERSON,
        "StudyInstanceUID": uid(number, "study"),
        "SeriesInstanceUID": uid(number, "series"),
        "StudyID": "",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "ImageComments": json.dumps(row, ensure_ascii=False, default=str)[:10_240],
        "BurnedInAnnotation": "NO",
        "SamplesPerPixel": channels,
        "PhotometricInterpretation": "MONOCHROME2" if channels == 1 else "RGB",
        "Rows": height,
        "Columns": width,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    if channels == 3:
        values["PlanarConfiguration"] = 0
    for name, value in values.items():
        setattr(data, name, value)
    pixels = picture.transpose(1, 2, 0).tobytes()
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.ImplementationVersionName = "FEDTWIN"  # not the library's, whose next version would change the bytes
    data.file_meta = meta
    target = io.BytesIO()
    data.save_as(target, enforce_file_format=True)
    return target.getvalue()


def lacks_images(context: ExportContext) -> str | None:
    """Why pictures cannot be given, if so."""
    if context.has_images:
        return None
    return "this release gives no pictures; ask for csv, parquet or jsonl"


def _checked(images: np.ndarray | None, num_rows: int) -> np.ndarray:
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or len(images) != num_rows:
        shape = None if images is None else (images.dtype.name, images.shape)
        raise ValueError(f"pictures are {shape}; they must be uint8 of shape ({num_rows}, C, H, W)")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"pictures have {images.shape[1]} channels; they must have 1 or 3")
    return images
