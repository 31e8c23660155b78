"""DICOM files in a folder, single images: rescaled, windowed, the patient from the header.

References:
    DICOM PS3.3, C.7.6.3 (image pixel), C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_folder
from client.connectors.image_records import ImageRecords, ImageShape, fitted, raise_file_faults
from client.connectors.manifest import read_manifest
from client.connectors.settings import DicomSource

_ATTRIBUTES = ("PatientSex", "PatientAge", "Modality", "ViewPosition")


_NAMED_DICOM = (".dcm", ".dicom")


class _FileFaultError(ValueError):
    """Why one file cannot be used."""


def read_dicom_folder(data: DicomSource, shape: ImageShape) -> ImageRecords:
    """Read all DICOM files of a folder and its subfolders.

    Privacy: the patient is (0010,0020); a file without one, or one whose pixels are said to carry text
        (0028,0301), is refused.

    Raises:
        DataSourceError: no folder, no DICOM file, pydicom is missing; or lists the files at fault. Files of
            other kinds are left alone.
    """
    pydicom = _pydicom()
    folder = existing_folder(data.path)
    found = {file: _is_dicom(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    files = [file for file, is_dicom in found.items() if is_dicom]
    # A study's image that broke on its way must not be missing without a word.
    faults = [
        f"{file.relative_to(folder)}: is named like a DICOM file and is none (no DICM at byte 128); export it again, "
        "or take it away"
        for file, is_dicom in found.items()
        if not is_dicom and file.suffix.lower() in _NAMED_DICOM
    ]
    if not files and not faults:
        raise DataSourceError(f"{folder} has no DICOM file")
    manifest = (
        read_manifest(data.manifest, "sop_instance_uid", ("label",)) if data.manifest is not None else None
    )
    images, rows = [], []
    for file in files:
        try:
            header = pydicom.dcmread(file)
            rows.append(_row(header, data, manifest))
            images.append(fitted(_pixels(header, data), shape))
        except _FileFaultError as error:
            faults.append(f"{file.relative_to(folder)}: {error}")
        except Exception as error:  # whatever a broken file makes the decoder say
            faults.append(f"{file.relative_to(folder)}: {type(error).__name__}; it cannot be decoded")
    raise_file_faults(faults, folder)
    others = [name for name in rows[0] if name not in ("patient_id", "label")]
    return ImageRecords(
        patient_ids=tuple(row["patient_id"] for row in rows),
        images=np.stack(images),
        labels=tuple(row["label"] for row in rows),
        attributes={name: tuple(row[name] for row in rows) for name in others},
    )


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM" and file.name != "DICOMDIR"


def _row(header: Any, data: DicomSource, manifest: dict[str, dict[str, str]] | None) -> dict[str, str]:
    patient = str(header.get("PatientID") or "").strip()
    if not patient:
        raise _FileFaultError("has no PatientID (0010,0020)")
    row = {"patient_id": patient, "label": ""}
    row |= {name: str(header.get(name) or "").strip() for name in _ATTRIBUTES}
    if data.label:
        row["label"] = str(header.get(data.label) or "").strip()
        if not row["label"]:
            raise _FileFaultError(f"has no {data.label}, which data.label names")
    if manifest is not None:
        told = manifest.get(str(header.get("SOPInstanceUID")))
        if told is None:
            raise _FileFaultError("its SOP Instance UID (0008,0018) is not in the manifest")
        row |= {name: value for name, value in told.items() if name != "sop_instance_uid"} | {
            "patient_id": patient
        }
    return row


def _pixels(header: Any, data: DicomSource) -> np.ndarray:
    """(H, W) or (H, W, 3), 0 (black) to 255."""
    if str(header.get("BurnedInAnnotation") or "").upper() == "YES":
        raise _FileFaultError("its pixels carry text (Burned In Annotation); mask it before the study")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise _FileFaultError(f"has {header.NumberOfFrames} frames; split it into single images")
    photometric = str(header.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        raise _FileFaultError("is in palette colours; convert it to RGB")
    try:
        stored = header.pixel_array
    except (RuntimeError, NotImplementedError):
        raise _FileFaultError(
            f"is compressed as {header.file_meta.TransferSyntaxUID.name}, which no decoder here reads; "
            "install pylibjpeg with its plugins, or decompress it"
        ) from None
    if not photometric.startswith("MONOCHROME"):
        bits = int(header.BitsStored)
        return np.array(stored, dtype=np.float32) * np.float32(255.0 / (2**bits - 1))
    shade = _windowed(header, stored.astype(np.float64), data)
    return np.asarray((1.0 - shade if photometric == "MONOCHROME1" else shade) * 255.0)


def _windowed(header: Any, stored: np.ndarray, data: DicomSource) -> np.ndarray:
    """Shades 0 to 1. Without a window the whole range that the file could hold: nothing depends on other images."""
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    values = stored * slope + intercept
    centre, width = data.window_center, data.window_width
    function = "LINEAR"
    if centre is None or width is None:
        centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
        function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0:
        signed = int(header.get("PixelRepresentation") or 0)
        bits = int(header.BitsStored)
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low, high = sorted(end * slope + intercept for end in ends)
        return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0))
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except TypeError:  # several windows: the first is the default view
        return float(value[0]) if len(value) else None


def _pydicom() -> Any:
    try:
        import pydicom  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise DataSourceError("reading DICOM needs pydicom; run: pip install 'fedtwin[images]'") from None
    return pydicom
