"""A DICOM folder as a hospital might export one: files by patient, several pictures of one, a manifest of findings.

    python benchmarks/images_dicom.py --data DIR --out FOLDER
    python benchmarks/images.py --dataset dicom --folder FOLDER --epsilon 10

The first command makes such a folder of PneumoniaMNIST, so that the second can be run here. The pictures are real
and 28 pixels wide; who they are of is not known, so that one to three of one finding are given to one invented
patient by a public hash. `manifest.csv` has the columns `sop_instance_uid`, `label` (normal or pneumonia) and `part`
(train or test); a folder of your own needs the same, with all files of a patient in one part.

References:
    DICOM PS3.3 A.8.1 (Secondary Capture), PS3.5 B.2 (UIDs from UUIDs).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.connectors.settings import DicomSource

DIAGNOSES = ("normal", "pneumonia")
MANIFEST = "manifest.csv"
MOST_PICTURES = 3
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, kw_only=True)
class DicomFiles:
    """Some files of a DICOM folder.

    Attributes:
        table: one row per file: `file` (its path), `sop_instance_uid`, `patient`, `label` and `part`.
    """

    table: pd.DataFrame

    def part(self, name: str) -> DicomFiles:
        """The training or the test files."""
        return DicomFiles(table=self.table[self.table["part"] == name])

    def of(self, patients: set[str]) -> DicomFiles:
        """The files of some patients."""
        return DicomFiles(table=self.table[self.table["patient"].isin(patients)])

    def linked(self, folder: Path) -> DicomSource:
        """A site's export: links to the files, and a manifest of these alone."""
        (folder / "files").mkdir()
        for number, file in enumerate(self.table["file"]):
            (folder / "files" / f"{number:06d}.dcm").symlink_to(file)
        self.table[["sop_instance_uid", "label"]].to_csv(folder / MANIFEST, index=False)
        return DicomSource(kind="dicom", path=folder / "files", manifest=folder / MANIFEST)


def read_dicom(folder: Path) -> DicomFiles:
    """The files of a folder that its manifest names.

    Raises:
        SystemExit: no manifest, a column is missing, or a patient is in both parts.
    """
    import pydicom

    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise SystemExit(f"{folder} has no {MANIFEST}; see benchmarks/images_dicom.py on what it holds")
    told = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    missing = [name for name in ("sop_instance_uid", "label", "part") if name not in told]
    if missing:
        raise SystemExit(f"{manifest} lacks the columns {missing}")
    rows = []
    for file in sorted(folder.rglob("*.dcm")):
        header = pydicom.dcmread(file, specific_tags=["SOPInstanceUID", "PatientID"])
        rows.append((str(file.resolve()), str(header.SOPInstanceUID), str(header.PatientID).strip()))
    files = pd.DataFrame(rows, columns=["file", "sop_instance_uid", "patient"])
    table = files.merge(told, on="sop_instance_uid", validate="one_to_one")
    if len(table) < len(told):
        raise SystemExit(f"{manifest} names {len(told) - len(table)} files that {folder} does not hold")
    both = table.groupby("patient")["part"].nunique() > 1
    if both.any():
        raise SystemExit(
            f"{manifest}: {int(both.sum())} patients are in both parts; keep all files of one in one"
        )
    return DicomFiles(table=table)


def write_dicom(
    pictures: np.ndarray, findings: Sequence[str], folder: Path, *, part: str
) -> list[tuple[str, str, str]]:
    """Write pictures as DICOM files, a folder for each invented patient, and give the manifest's lines.

    Args:
        pictures: (N, H, W) uint8.
        findings: of each.
        folder: where the patients' folders go.
        part: `train` or `test`.

    Returns:
        (sop_instance_uid, label, part) of each file.
    """
    lines = []
    for patient, number in invented_patients(findings, part):
        header = _header(pictures[number], f"{part}-{number}", patient)
        (folder / patient).mkdir(parents=True, exist_ok=True)
        header.save_as(folder / patient / f"{number:06d}.dcm", enforce_file_format=True)
        lines.append((str(header.SOPInstanceUID), findings[number], part))
    return lines


def invented_patients(findings: Sequence[str], part: str) -> Iterator[tuple[str, int]]:
    """(patient, picture) of every picture: the next one to three of a finding are one patient's, as a hash says."""
    for finding in sorted(set(findings)):
        left, patient = 0, ""
        for number in (k for k, found in enumerate(findings) if found == finding):
            if left == 0:
                word = hashlib.sha256(f"{part} {finding} {number}".encode()).digest()
                left, patient = 1 + word[0] % MOST_PICTURES, f"MADE-UP-{word[1:5].hex()}-{number}"
            left -= 1
            yield patient, number


def _header(picture: np.ndarray, name: str, patient: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset

    def uid(*parts: str) -> str:
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(('fedtwin benchmark', *parts))).int}"

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    header.SOPClassUID, header.SOPInstanceUID = _SECONDARY_CAPTURE, uid(name)
    header.StudyInstanceUID, header.SeriesInstanceUID = uid("study", patient), uid("series", patient)
    header.PatientID = header.PatientName = patient
    header.Modality = "OT"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = picture.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.BurnedInAnnotation = "NO"
    header.PixelData = picture.tobytes()
    return header


def main() -> None:
    """Make the folder."""
    from images_data import data_folder, pneumonia_arrays

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets; FEDTWIN_DATA if left out")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    train, labels, test, test_labels = pneumonia_arrays(data_folder(arguments.data))
    lines = []
    for part, pictures, places in (("train", train, labels), ("test", test, test_labels)):
        lines += write_dicom(pictures, [DIAGNOSES[place] for place in places], arguments.out, part=part)
    with (arguments.out / MANIFEST).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("sop_instance_uid", "label", "part"))
        rows.writerows(lines)
    print(f"{len(lines)} files of {sum(1 for one in arguments.out.iterdir() if one.is_dir())} patients")


if __name__ == "__main__":
    main()
