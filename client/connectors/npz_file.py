"""Images and labels as arrays in one .npz file, as MedMNIST has them."""

from __future__ import annotations

import zipfile

import numpy as np

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_file
from client.connectors.image_records import ImageRecords, ImageShape, fitted
from client.connectors.settings import NpzSource


def read_npz(data: NpzSource, shape: ImageShape) -> ImageRecords:
    """Read one part of an .npz file; its further arrays `PART_NAME` with a value per image are attributes NAME.

    Privacy: without an array of patients every image counts as another patient, which the site vouches for.

    Raises:
        DataSourceError: no such file or array, or arrays of another type or shape.
    """
    wanted = [f"{data.part}_images", f"{data.part}_labels", *([data.patients] if data.patients else [])]
    path = existing_file(data.path)
    try:
        with np.load(path, allow_pickle=False) as file:  # a pickle would run code
            missing = [name for name in wanted if name not in file.files]
            if missing:
                raise DataSourceError(f"{path.name} lacks the arrays {missing}; it has {sorted(file.files)}")
            images, labels, *patients = (file[name] for name in wanted)
            others = [name for name in file.files if name.startswith(f"{data.part}_") and name not in wanted]
            attributes = {name.removeprefix(f"{data.part}_"): file[name] for name in others}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        raise DataSourceError(f"{path.name} is no .npz file of plain arrays") from None
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataSourceError(
            f"{wanted[0]} is {images.shape} {images.dtype}; it must be (N, H, W) or (N, H, W, 3) uint8"
        )
    labels = labels.reshape(len(labels), -1)
    if labels.shape != (len(images), 1) or labels.dtype.kind not in "iuUb":
        raise DataSourceError(f"{wanted[1]} must be one whole number or name for each of the images")
    if patients and patients[0].shape != (len(images),):
        raise DataSourceError(f"{data.patients} must name one patient for each of the images")
    for name, values in attributes.items():
        if values.shape != (len(images),) or values.dtype.kind not in "iufUb":
            raise DataSourceError(f"{data.part}_{name} must be one number or name for each of the images")
    if len(images) == 0:
        raise DataSourceError(f"{path.name} holds no {data.part} image")
    return ImageRecords(
        patient_ids=tuple(str(name) for name in (patients[0] if patients else range(len(images)))),
        images=np.stack([fitted(image, shape) for image in images]),
        labels=tuple(str(label) for label in labels[:, 0]),
        attributes={name: tuple(map(str, values)) for name, values in attributes.items()},
    )
