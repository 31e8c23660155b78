"""A site's images with whose they are: what every image source is read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from client.connectors.errors import DataSourceError
from client.connectors.settings import DataSource, DicomSource, ImageFolderSource, NpzSource

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MAX_SHOWN_FAULTS = 100


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The public shape of a study's images: (channels, size, size), channels 1 (grey) or 3 (colour)."""

    size: int
    channels: int = 1

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024 or self.channels not in (1, 3):
            raise ValueError(f"size is {self.size} (8 to 1024) and channels {self.channels} (1 or 3)")


@dataclass(frozen=True, kw_only=True)
class ImageRecords:
    """Images of patients. # Sensitive: do not log, not even the counts.

    Attributes:
        patient_ids: whose each image is, N of them; images of one patient are one privacy unit.
        images: (N, C, H, W) uint8.
        labels: the class of each as the site calls it, N of them.
        attributes: what else is known of each, by name, N values each; "" where absent.
    """

    patient_ids: tuple[str, ...]
    images: np.ndarray
    labels: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images are {self.images.shape} {self.images.dtype}; they must be (N, C, H, W) uint8"
            )
        lengths = {len(self.patient_ids), len(self.labels), *map(len, self.attributes.values())}
        if lengths != {count}:
            raise ValueError(
                f"{count} images, but patients, labels and attributes of lengths {sorted(lengths)}"
            )
        if not all(name.strip() for name in self.patient_ids):
            raise ValueError("an image does not say whose it is")


def read_images(data: DataSource, shape: ImageShape) -> ImageRecords:
    """Read a site's images.

    Args:
        data: a source of images.
        shape: what they are made: fitted into the square with antialiasing, the rest black.

    Raises:
        DataSourceError: the source holds a table, cannot be read, or an optional package is missing; lists the
            files at fault.
    """
    # Imported where needed: a site needs the libraries of its own kind only.
    if isinstance(data, ImageFolderSource):
        from client.connectors.image_folder import read_image_folder

        return read_image_folder(data, shape)
    if isinstance(data, NpzSource):
        from client.connectors.npz_file import read_npz

        return read_npz(data, shape)
    if isinstance(data, DicomSource):
        from client.connectors.dicom_folder import read_dicom_folder

        return read_dicom_folder(data, shape)
    raise DataSourceError(f"data.kind is {data.kind!r}, which holds a table; this study asks for images")


def fitted(pixels: np.ndarray, shape: ImageShape) -> np.ndarray:
    """One image in the study's shape.

    Args:
        pixels: (H, W) or (H, W, 3), values 0 to 255 of any numeric type.
        shape: see `read_images`.

    Returns:
        (C, size, size) uint8: the longer side fills the square, the picture is in the middle, the rest is 0.
    """
    values = np.asarray(pixels, dtype=np.float32)
    if values.ndim == 3 and shape.channels == 1:
        values = values @ np.array(_LUMA, dtype=np.float32)
    layers = torch.from_numpy(np.ascontiguousarray(values))
    layers = layers.permute(2, 0, 1) if layers.ndim == 3 else layers.expand(shape.channels, *layers.shape)
    height, width = layers.shape[1:]
    scale = shape.size / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    if inner != (height, width):
        layers = functional.interpolate(
            layers[None], size=inner, mode="bilinear", antialias=True, align_corners=False
        )[0]
    square = torch.zeros(shape.channels, shape.size, shape.size)
    top, left = (shape.size - inner[0]) // 2, (shape.size - inner[1]) // 2
    square[:, top : top + inner[0], left : left + inner[1]] = layers
    return square.round().clamp(0, 255).to(torch.uint8).numpy()


def raise_file_faults(faults: list[str], what: Path) -> None:
    """Raise what was wrong with some files, if anything.

    Raises:
        DataSourceError: with the first `MAX_SHOWN_FAULTS`.
    """
    if faults:
        more = [f"  and {len(faults) - MAX_SHOWN_FAULTS} more"] if len(faults) > MAX_SHOWN_FAULTS else []
        lines = [f"  {fault}" for fault in faults[:MAX_SHOWN_FAULTS]] + more
        raise DataSourceError(f"{what} has {len(faults)} files at fault:\n" + "\n".join(lines))
