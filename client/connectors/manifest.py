"""A manifest: a CSV file that says whose each image is and what it shows."""

from __future__ import annotations

import csv
from pathlib import Path

from client.connectors.errors import DataSourceError
from client.connectors.files import existing_file


def read_manifest(path: Path, key: str, required: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The rows by a column that names each once; texts without spaces around them.

    Raises:
        DataSourceError: a column or a value is missing, or a name stands twice; says the line.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        with existing_file(path, "data.manifest").open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            names = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in (key, *required) if name not in names]
            if missing:
                raise DataSourceError(f"{path.name} lacks the columns {missing}; it has {names}")
            reader.fieldnames = names
            for row in reader:
                line = f"{path.name} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataSourceError(f"{line} has not as many cells as the header")
                clean = {name: value.strip() for name, value in row.items()}
                empty = [name for name in (key, *required) if not clean[name]]
                if empty:
                    raise DataSourceError(f"{line}: {empty[0]} is empty")
                if clean[key] in rows:
                    raise DataSourceError(f"{line}: this {key} stands twice")
                rows[clean[key]] = clean
    except (UnicodeDecodeError, csv.Error):
        raise DataSourceError(f"{path.name} is not comma-separated UTF-8 text") from None
    if not rows:
        raise DataSourceError(f"{path.name} has a header and no image")
    return rows
