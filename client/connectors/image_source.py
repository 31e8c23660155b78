"""A source of images as a site's rounds see it: what tells one state from another, and a table beside the images."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_file, fingerprint, fingerprint_of_folder, stamp_of
from client.connectors.image_records import ImageRecords, ImageShape, read_images
from client.connectors.settings import DataSource, ImageSource, NpzSource
from models.schema import StudySchema

if TYPE_CHECKING:
    import pandas as pd


class ImageFiles:
    """Images on the site's disk. # Sensitive: neither names nor counts may be logged.

    Args:
        data: where they are.
    """

    def __init__(self, data: ImageSource) -> None:
        self._data = data

    def stamp(self) -> str:
        """Changes when a file is added, removed, replaced or written to, without reading any."""
        return stamp_of([*self._files(), *self._manifest()])

    def fingerprint(self, secret: bytes) -> str:
        """A keyed digest of all files, to be shown later."""
        if isinstance(self._data, NpzSource):
            return fingerprint(existing_file(self._data.path), secret)
        parts = [fingerprint_of_folder(self._data.path, self._files(), secret)]
        parts += [fingerprint(manifest, secret) for manifest in self._manifest()]
        return "hmac-sha256:" + hmac.new(secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()

    def read(self, shape: ImageShape) -> ImageRecords:
        """All images.

        Raises:
            DataSourceError: see `read_images`.
        """
        return read_images(self._data, shape)

    def _files(self) -> list[Path]:
        path = self._data.path
        if isinstance(self._data, NpzSource):
            return [path]
        return [file for file in path.rglob("*") if file.is_file()]

    def _manifest(self) -> list[Path]:
        manifest = None if isinstance(self._data, NpzSource) else self._data.manifest
        return [] if manifest is None else [manifest]


def open_images(data: DataSource) -> ImageFiles:
    """The reader for a source of images; nothing is read yet.

    Raises:
        DataSourceError: the kind holds a table.
    """
    if not isinstance(data, ImageSource):
        raise DataSourceError(
            f"data.kind is {data.kind!r}, which holds a table; this study asks for images as well: give an image "
            "folder with a manifest that has the table's columns"
        )
    return ImageFiles(data)


def table_of(records: ImageRecords, schema: StudySchema) -> pd.DataFrame:
    """The study's table, one row per image: what the source knows of each.

    The label column takes the images' labels, unless the source has a column of that name; every other column
    is the attribute of its name. A column that is missing is left for the encoder to name.
    """
    import pandas as pd

    known = {**records.attributes}
    if schema.label is not None:
        known.setdefault(schema.label, records.labels)
    if schema.patient_id is not None:
        known[schema.patient_id] = tuple(records.patient_ids)
    return pd.DataFrame({name: pd.Series(values, dtype="string") for name, values in known.items()})
