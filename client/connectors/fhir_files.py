"""The files of a FHIR export, resource by resource, each with the place where it stands."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from client.connectors.errors import DataSourceError

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_LINES = (".ndjson", ".ndjson.gz")


@dataclass(frozen=True, kw_only=True)
class PlacedResource:
    """A resource, where it stands, and what its Bundle calls others. # Sensitive: do not log.

    Attributes:
        resource: the parsed JSON object; `resourceType` is text.
        place: file and line, or file and entry.
        names: ids of the Bundle's resources by their full URL.
    """

    resource: Mapping[str, Any]
    place: str
    names: Mapping[str, str]


def export_files(path: Path) -> list[Path]:
    """The files that make up an export, sorted; an archive is its own only file.

    Raises:
        DataSourceError: nothing there that could be FHIR.
    """
    if path.is_file() and path.name.endswith((*_ARCHIVES, *_LINES, ".json")):
        return [path]
    if not path.is_dir():
        raise DataSourceError(
            f"there is no folder or {', '.join(_ARCHIVES)} archive {path}; correct data.path in site.toml"
        )
    files = sorted(
        file for file in path.rglob("*") if file.name.endswith((*_LINES, ".json")) and file.is_file()
    )
    if not files:
        raise DataSourceError(f"the folder {path} has no .ndjson file and no Bundle in a .json file")
    return files


def read_resources(path: Path, types: set[str]) -> Iterator[PlacedResource]:
    """The resources of some types, one at a time; of NDJSON files those named after a type are opened.

    Raises:
        DataSourceError: not JSON at a place that the message names, or no NDJSON file of a wanted type.
    """
    files = export_files(path)
    lines = [file for file in files if file.name.endswith(_LINES)]
    if lines:
        named = [file for file in lines if types & set(re.split(r"[^A-Za-z]+", file.name))]
        if not any("Patient" in re.split(r"[^A-Za-z]+", file.name) for file in named):
            raise DataSourceError(f"{path} has NDJSON files but no Patient.ndjson; export Patient too")
        for file in named:
            yield from _of_lines(file, types)
        return
    for file in files:
        if file.name.endswith(_ARCHIVES):
            yield from _of_archive(file, types)
        else:
            with file.open("rb") as opened:
                yield from _of_bundle(opened.read(), file.name, types)


def _of_lines(file: Path, types: set[str]) -> Iterator[PlacedResource]:
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    place = f"{file.name} line {number}"
                    resource = _object(line, place)
                    if resource["resourceType"] in types:
                        yield PlacedResource(resource=resource, place=place, names={})
    except (gzip.BadGzipFile, EOFError):
        raise DataSourceError(f"{file.name} is not a whole gzip file") from None


def _of_archive(file: Path, types: set[str]) -> Iterator[PlacedResource]:
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                content: IO[bytes] | None = archive.extractfile(member) if member.isfile() else None
                if content is not None and member.name.endswith(".json"):
                    yield from _of_bundle(content.read(), Path(member.name).name, types)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile):
        raise DataSourceError(f"{file.name} is not a whole tar archive") from None


def _of_bundle(data: bytes, name: str, types: set[str]) -> Iterator[PlacedResource]:
    bundle = _object(data, name)
    if bundle["resourceType"] != "Bundle":
        raise DataSourceError(f"{name} is a {bundle['resourceType']}, not a Bundle")
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataSourceError(f"{name}: entry is no list of objects")
    names = {
        entry["fullUrl"]: resource["id"]
        for entry in entries
        if isinstance(resource := entry.get("resource"), dict) and "id" in resource and "fullUrl" in entry
    }
    for number, entry in enumerate(entries, 1):
        resource = entry.get("resource")
        if isinstance(resource, dict) and resource.get("resourceType") in types:
            yield PlacedResource(resource=resource, place=f"{name} entry {number}", names=names)


def _object(data: bytes, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise DataSourceError(f"{place} is not JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("resourceType"), str):
        raise DataSourceError(f"{place} is no FHIR resource: resourceType is missing")
    return found
