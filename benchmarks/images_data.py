"""Image data sets of the benchmark: real pictures with public schemas, read from a folder, dealt to sites as files.

Colour MNIST is made here of real digits: ink and paper follow from the digit and a hash of the picture's number,
nothing else. It stands for colour pictures of 32 and 64 pixels with two columns that show, and for nothing clinical.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from images_dicom import DIAGNOSES, MOST_PICTURES, DicomFiles, read_dicom
from torch import Tensor
from torch.nn import functional

from client.connectors.image_records import ImageShape, fitted, read_images
from client.connectors.settings import ImageSource, NpzSource
from models.encoding import codes_of
from models.image_schema import ImageSchema
from models.schema import StudySchema

PATIENT = "patient"
AGES = ["under 25", "25 and over"]
DIGITS = [str(digit) for digit in range(10)]
INKS = {
    "red": (230, 60, 50), "yellow": (225, 200, 40), "green": (60, 190, 80), "blue": (60, 110, 235),
    "violet": (180, 70, 210),
}  # fmt: skip
LARGE_COLOUR_PATIENTS = (
    12_000  # of 64 pixels: a fifth of the digits, so that they fit into memory several times
)
FACES_HELD_OUT = 4  # every fourth adult is nobody's patient
FACE_SITES = 3  # a site of fewer than 20 patients takes no part, and 102 adults do not give four


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """One data set.

    Attributes:
        name: of the data set.
        table: the rows' schema; its label is what a classifier is to learn.
        image: the pictures' schema.
        train, test: uint8 (N, C, H, W); nobody trains on the second.
        train_rows, test_rows: the table's columns and the patient of each picture, as text.
        sites: among how many the patients are dealt unless somebody says otherwise.
        files: of the training pictures, where they are DICOM files; else sites have arrays.
    """

    name: str
    table: StudySchema
    image: ImageSchema
    train: Tensor
    train_rows: pd.DataFrame
    test: Tensor
    test_rows: pd.DataFrame
    sites: int = 4
    files: DicomFiles | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The column that a classifier is to learn."""
        assert self.table.label is not None
        return self.table.label

    def levels(self, name: str) -> int:
        """How many levels a column has."""
        return self.table.cardinalities[self.table.names.index(name)]

    def codes(self, rows: pd.DataFrame, name: str) -> Tensor:
        """The levels of a column: int64 (N,)."""
        return torch.from_numpy(codes_of(rows, self.table, [name])[:, 0])

    def first(self, num_patients: int) -> ImageData:
        """The same with the first so many training patients alone."""
        kept = self.train_rows[PATIENT].unique()[:num_patients]
        own = self.train_rows[PATIENT].isin(kept).to_numpy(copy=True)
        rows = self.train_rows[own].reset_index(drop=True)
        return replace(self, train=self.train[torch.from_numpy(own)], train_rows=rows)

    def place(self, num_sites: int, folder: Path) -> list[ImageSource]:
        """Deal the training patients to sites in turn and lay out each site's files.

        Raises:
            SystemExit: some site would have nobody.
        """
        patients = self.train_rows[PATIENT].unique()
        if len(patients) < num_sites:
            raise SystemExit(f"{len(patients)} patients are too few for --sites {num_sites}")
        sources = []
        for site in range(num_sites):
            own, place = set(patients[site::num_sites]), folder / f"pictures-{site + 1}"
            place.mkdir()
            if self.files is not None:
                sources.append(self.files.of(own).linked(place))
            else:
                sources.append(self._arrays(self.train_rows[PATIENT].isin(own).to_numpy(), place))
        return sources

    def _arrays(self, picked: np.ndarray, folder: Path) -> ImageSource:
        """An .npz file of some of the training pictures."""
        pictures, rows = self.train.numpy()[picked], self.train_rows[picked]
        pictures = pictures[:, 0] if self.image.channels == 1 else pictures.transpose(0, 2, 3, 1)
        columns = {f"train_{name}": rows[name].to_numpy(str) for name in self.table.names}
        np.savez(
            folder / "pictures.npz",
            train_images=pictures,
            train_labels=rows[self.label].to_numpy(str),
            patients=rows[PATIENT].to_numpy(str),
            **columns,  # type: ignore[arg-type]
        )
        return NpzSource(kind="npz", path=folder / "pictures.npz", patients="patients")


def data_folder(given: Path | None) -> Path:
    """The folder from the command line or `FEDTWIN_DATA`."""
    folder = given or (Path(os.environ["FEDTWIN_DATA"]) if "FEDTWIN_DATA" in os.environ else None)
    if folder is None:
        raise SystemExit("name the folder of the data sets with --data DIR or FEDTWIN_DATA")
    return folder


def load(name: str, folder: Path) -> ImageData:
    """Read a data set, one of `NAMES`, from the folder of the data sets; `dicom` from its own folder."""
    return LOADERS[name](folder)


def _mnist(folder: Path) -> ImageData:
    (train, labels), (test, test_labels) = _digits(folder)
    return ImageData(
        name="mnist",
        table=_schema([_categorical("digit", DIGITS)]),
        image=ImageSchema(size=28, conditioned_on=("digit",)),
        train=train,
        train_rows=_rows(digit=labels.astype(str)),
        test=test,
        test_rows=_rows(digit=test_labels.astype(str)),
    )


def _pneumonia(folder: Path) -> ImageData:
    train, labels, test, test_labels = pneumonia_arrays(folder)
    return ImageData(
        name="pneumoniamnist",
        table=_schema([_categorical("diagnosis", DIAGNOSES)]),
        image=ImageSchema(size=28, conditioned_on=("diagnosis",)),
        train=torch.from_numpy(train).unsqueeze(1),
        train_rows=_rows(diagnosis=np.array(DIAGNOSES)[labels]),
        test=torch.from_numpy(test).unsqueeze(1),
        test_rows=_rows(diagnosis=np.array(DIAGNOSES)[test_labels]),
    )


def _dicom(folder: Path) -> ImageData:
    files = read_dicom(folder)
    found = {}
    for part in ("train", "test"):
        with tempfile.TemporaryDirectory() as place:
            records = read_images(files.part(part).linked(Path(place)), ImageShape(size=28))
        rows = pd.DataFrame({"diagnosis": records.labels, PATIENT: records.patient_ids})
        found[part] = torch.from_numpy(records.images), rows
    return ImageData(
        name="dicom",
        table=_schema([_categorical("diagnosis", DIAGNOSES)], most=MOST_PICTURES),
        image=ImageSchema(size=28, conditioned_on=("diagnosis",)),
        train=found["train"][0],
        train_rows=found["train"][1],
        test=found["test"][0],
        test_rows=found["test"][1],
        files=files.part("train"),
    )


def _colour_mnist(size: int) -> Callable[[Path], ImageData]:
    def read(folder: Path) -> ImageData:
        (train, labels), (test, test_labels) = _digits(folder)
        if size == 64:
            train, labels = train[:LARGE_COLOUR_PATIENTS], labels[:LARGE_COLOUR_PATIENTS]
            test, test_labels = test[: LARGE_COLOUR_PATIENTS // 6], test_labels[: LARGE_COLOUR_PATIENTS // 6]
        inks, test_inks = ink_of(labels, 0), ink_of(test_labels, 60_000)
        return ImageData(
            name=f"colour-mnist-{size}",
            table=_schema([_categorical("digit", DIGITS), _categorical("ink", list(INKS))]),
            image=ImageSchema(size=size, channels=3, conditioned_on=("digit", "ink")),
            train=coloured(train, inks, 0, size),
            train_rows=_rows(digit=labels.astype(str), ink=inks),
            test=coloured(test, test_inks, 60_000, size),
            test_rows=_rows(digit=test_labels.astype(str), ink=test_inks),
        )

    return read


def _faces(folder: Path) -> ImageData:
    """102 adults who consented, a neutral and a smiling picture of each (DeBruine and Jones, 2017, CC BY 4.0)."""
    people = pd.read_csv(folder / "london_faces" / "london_info.csv", dtype=str, keep_default_na=False)
    parts: dict[str, list[tuple[np.ndarray, dict[str, str]]]] = {"train": [], "test": []}
    for place, person in people.iterrows():
        row = {
            PATIENT: person["face_id"],
            "gender": person["face_gender"],
            "age": _age_band(person["face_age"]),
        }
        for look in ("neutral_front/{}_03.jpg", "smiling_front/{}_08.jpg"):
            picture = _face(folder / "london_faces" / look.format(person["face_id"]))
            parts["test" if int(place) % FACES_HELD_OUT == 0 else "train"].append((picture, row))
    age = {"kind": "ordinal", "name": "age", "categories": AGES, "missing": True}
    (train, train_rows), (test, test_rows) = (
        (torch.from_numpy(np.stack([picture for picture, _ in part])), pd.DataFrame([row for _, row in part]))
        for part in parts.values()
    )
    return ImageData(
        name="london_faces",
        table=_schema([_categorical("gender", ["female", "male"]), age], most=2),
        image=ImageSchema(size=64, channels=3, conditioned_on=("gender", "age")),
        train=train,
        train_rows=train_rows,
        test=test,
        test_rows=test_rows,
        sites=FACE_SITES,
    )


LOADERS: dict[str, Callable[[Path], ImageData]] = {
    "mnist": _mnist,
    "pneumoniamnist": _pneumonia,
    "dicom": _dicom,
    "colour-mnist-32": _colour_mnist(32),
    "colour-mnist-64": _colour_mnist(64),
    "london_faces": _faces,
}
NAMES = tuple(LOADERS)


def _digits(folder: Path) -> list[tuple[Tensor, np.ndarray]]:
    """MNIST's training and test parts: uint8 (N, 1, 28, 28) and the digits."""
    return [
        (
            torch.from_numpy(_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz").copy()).unsqueeze(1),
            _idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz"),
        )
        for part in ("train", "t10k")
    ]


def _idx(path: Path) -> np.ndarray:
    """A file of the MNIST format: 4 bytes that end in the number of dimensions, the sizes, the values."""
    with gzip.open(path) as file:
        raw = file.read()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _chance(first: int, count: int, bits: int, turn: int) -> np.ndarray:
    """Public whole numbers below 2^bits for pictures `first` to `first + count`: Knuth's multiplicative hash."""
    numbers = (np.arange(first, first + count, dtype=np.uint64) * np.uint64(8) + np.uint64(turn)) % 2**32
    mixed = numbers * np.uint64(2_654_435_761) % 2**32
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2_246_822_519) % 2**32
    return (mixed >> np.uint64(32 - bits)).astype(np.int64)


def ink_of(digits: np.ndarray, first: int) -> np.ndarray:
    """Each digit has two inks and each ink four digits: which of its two, a hash of the picture's number says."""
    return np.array(list(INKS))[(digits.astype(np.int64) + _chance(first, len(digits), 1, 0)) % len(INKS)]


def coloured(digits: Tensor, inks: np.ndarray, first: int, size: int) -> Tensor:
    """Grey digits (N, 1, 28, 28) in their inks on dark paper, framed to 32 pixels and doubled to 64 if so asked.

    Args:
        digits: uint8.
        inks: name of each digit's ink.
        first: number of the first picture; its hash says how bright ink and paper are.
        size: 32 or 64.

    Returns:
        uint8 (N, 3, size, size).
    """
    shade = torch.from_numpy(0.8 + 0.2 * _chance(first, len(digits), 8, 1) / 255).float()
    paper = torch.from_numpy(10 + 40 * _chance(first, len(digits), 8, 2) / 255).float()
    colour = torch.tensor([INKS[ink] for ink in inks], dtype=torch.float32) * shade[:, None]
    parts = []
    for rows in torch.arange(len(digits)).split(2000):
        grey = functional.pad(digits[rows].float() / 255, (2, 2, 2, 2))
        if size == 64:
            grey = functional.interpolate(grey, size=size, mode="bilinear")
        ground = paper[rows, None, None, None]
        parts.append((ground + (colour[rows, :, None, None] - ground) * grey).round().to(torch.uint8))
    return torch.cat(parts)


def pneumonia_arrays(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """PneumoniaMNIST: training pictures (N, 28, 28) uint8 and places in `DIAGNOSES`, then the test's."""
    with np.load(folder / "medmnist" / "pneumoniamnist.npz") as held:
        train, test = held["train_images"], held["test_images"]
        return train, held["train_labels"].ravel(), test, held["test_labels"].ravel()


def _face(path: Path) -> np.ndarray:
    """(3, 64, 64) uint8."""
    from PIL import Image

    with Image.open(path) as opened:
        return fitted(np.asarray(opened.convert("RGB")), ImageShape(size=64, channels=3))


def _age_band(age: str) -> str:
    """One of `AGES`, or nothing where the age is not known."""
    return "" if not age.isdigit() else AGES[int(int(age) >= 25)]


def _rows(**columns: np.ndarray) -> pd.DataFrame:
    """A table whose every row is another patient's."""
    (count,) = {len(values) for values in columns.values()}
    return pd.DataFrame({**columns, PATIENT: np.arange(count).astype(str)})


def _categorical(name: str, categories: Sequence[str]) -> dict[str, object]:
    return {"kind": "categorical", "name": name, "categories": list(categories)}


def _schema(columns: list[dict[str, object]], *, most: int = 1) -> StudySchema:
    """The first column is what a classifier is to learn; a patient has at most `most` pictures."""
    return StudySchema.model_validate_json(
        json.dumps(
            {
                "columns": columns,
                "label": columns[0]["name"],
                "patient_id": PATIENT,
                "max_records_per_patient": most,
            }
        )
    )
