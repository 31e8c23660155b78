"""Image files in a folder: a subfolder for each class, or a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_folder
from client.connectors.image_records import ImageRecords, ImageShape, fitted, raise_file_faults
from client.connectors.manifest import read_manifest
from client.connectors.settings import ImageFolderSource

_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".tif", ".tiff", ".webp")
_OWN_COLUMNS = ("file", "patient_id", "label")


def read_image_folder(data: ImageFolderSource, shape: ImageShape) -> ImageRecords:
    """Read the images of a folder.

    Privacy: without a manifest every file counts as another patient, which the site vouches for; images of one
        person in several files need a manifest.

    Raises:
        DataSourceError: no folder, no images, Pillow is missing; or lists the files that cannot be read.
    """
    folder = existing_folder(data.path)
    rows = _rows_of_manifest(folder, data.manifest) if data.manifest is not None else _rows_of_folders(folder)
    images, faults = np.zeros((len(rows), shape.channels, shape.size, shape.size), dtype=np.uint8), []
    for at, row in enumerate(rows):
        try:
            images[at] = fitted(_pixels(folder / row["file"]), shape)
        except (OSError, ValueError, SyntaxError) as error:
            faults.append(f"{row['file']}: {type(error).__name__}; it is no image that can be read")
    raise_file_faults(faults, folder)
    others = [name for name in rows[0] if name not in _OWN_COLUMNS]
    return ImageRecords(
        patient_ids=tuple(row["patient_id"] for row in rows),
        images=images,
        labels=tuple(row["label"] for row in rows),
        attributes={name: tuple(row[name] for row in rows) for name in others},
    )


def _rows_of_folders(folder: Path) -> list[dict[str, str]]:
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataSourceError(
            f"{folder} has no subfolder with images; name each subfolder after its label, or give data.manifest"
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    return [
        {"file": name, "patient_id": name, "label": file.parent.name}
        for name, file in zip(names, files, strict=True)
    ]


def _rows_of_manifest(folder: Path, manifest: Path) -> list[dict[str, str]]:
    rows = list(read_manifest(manifest, "file", ("patient_id", "label")).values())
    root = folder.resolve()
    faults = []
    for row in rows:
        file = (folder / row["file"]).resolve()
        if not file.is_relative_to(root):
            faults.append(f"{row['file']}: lies outside the folder")
        elif not file.is_file():
            faults.append(f"{row['file']}: is named in {manifest.name} and not there")
    raise_file_faults(faults, folder)
    return rows


def _pixels(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3), 0 to 255."""
    image_module, ops = _pillow()
    with image_module.open(path) as opened:
        image = ops.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            deep = np.asarray(image, dtype=np.float32)
            if image.mode == "F" or deep.max(initial=0) > 65_535:
                raise ValueError("more than 16 bits")
            return deep / 257.0
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataSourceError(
            "reading image files needs Pillow; run: pip install 'fedtwin[images]'"
        ) from None
    return Image, ImageOps
