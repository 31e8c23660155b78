"""Image data sets of the benchmark: real images with public schemas, read from a folder."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.image_schema import ImageSchema
from models.schema import CategoricalColumn, StudySchema

NAMES = ("mnist", "pneumoniamnist")


@dataclass(frozen=True)
class ImageData:
    """One data set; one image is one patient.

    Attributes:
        train, test: uint8 (N, C, H, W).
        train_labels, test_labels: int64 (N,).
    """

    name: str
    table: StudySchema
    image: ImageSchema
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """Levels of the label."""
        return self.table.cardinalities[0]

    def split(self, sites: int) -> list[tuple[Tensor, Tensor]]:
        """The training images dealt to sites in turn: (images, labels) of each."""
        return [(self.train[k::sites], self.train_labels[k::sites]) for k in range(sites)]


def data_folder(given: Path | None) -> Path:
    """The folder from the command line or `FEDTWIN_DATA`."""
    folder = given or (Path(os.environ["FEDTWIN_DATA"]) if "FEDTWIN_DATA" in os.environ else None)
    if folder is None:
        raise SystemExit("name the folder of the data sets with --data DIR or FEDTWIN_DATA")
    return folder


def load(name: str, folder: Path) -> ImageData:
    """Read a data set: `mnist/*-ubyte.gz` or `medmnist/pneumoniamnist.npz` below the folder."""
    if name == "mnist":
        labels = tuple("0123456789")
        train, train_labels = (_idx(folder / "mnist" / f"train-{part}.gz") for part in _IDX_PARTS)
        test, test_labels = (_idx(folder / "mnist" / f"t10k-{part}.gz") for part in _IDX_PARTS)
        column = "digit"
    else:
        labels, column = ("normal", "pneumonia"), "diagnosis"
        with np.load(folder / "medmnist" / "pneumoniamnist.npz") as held:
            train, train_labels = held["train_images"], held["train_labels"].ravel()
            test, test_labels = held["test_images"], held["test_labels"].ravel()
    table = StudySchema(
        columns=(CategoricalColumn(kind="categorical", name=column, categories=labels),), label=column
    )
    return ImageData(
        name,
        table,
        ImageSchema(size=train.shape[1], conditioned_on=(column,)),
        torch.from_numpy(train.copy()).unsqueeze(1),
        torch.from_numpy(train_labels.astype(np.int64)),
        torch.from_numpy(test.copy()).unsqueeze(1),
        torch.from_numpy(test_labels.astype(np.int64)),
    )


_IDX_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def _idx(path: Path) -> np.ndarray:
    """A file of the MNIST format: 4 bytes that end in the number of dimensions, the sizes, the values."""
    with gzip.open(path) as file:
        raw = file.read()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
