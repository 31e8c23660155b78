"""`--data` of `fedtwin site init` and `join`: a file, or KIND:WHERE, with the settings that docs/site-data.md lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from client.connectors.errors import DataSourceError
from client.connectors.settings import DataSettings, DataSource, kind_of

DATABASES = ("sql", "omop")
KINDS: Mapping[str, type[Any]] = {
    kind: source
    for source in get_args(DataSource)
    for kind in get_args(source.model_fields["kind"].annotation)
}
_EXAMPLES = (
    "patients.csv, patients.parquet, images.npz, sql:postgresql+pg8000://USER@HOST/NAME, omop:URL, fhir:FOLDER, "
    "image-folder:FOLDER or dicom:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Where a new site's patients are, as `SiteHome.create` takes it.

    Attributes:
        kind: one of the `[data]` section's kinds.
        where: the absolute path, or a database's URL.
        settings: the section's further settings; their paths are absolute.
    """

    kind: str
    where: str
    settings: Mapping[str, str | float]


def read_data_option(data: str, settings: Sequence[str], *, patient_id: str = "") -> DataChoice:
    """Read the options; paths in them are relative to the working directory. Nothing is opened.

    Args:
        data: a file by its suffix, or KIND:WHERE.
        settings: NAME=VALUE, the settings of that kind.
        patient_id: the column that names the patient; empty where the kind knows, or every row is another patient.

    Raises:
        DataSourceError: names the option and what to write instead; never holds the URL or a value.
    """
    kind, where = _kind_and_place(data)
    place = "url" if kind in DATABASES else "path"
    known = [name for name in KINDS[kind].model_fields if name not in ("kind", place, "patient_id")]
    given: dict[str, str] = {"kind": kind, place: where}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise DataSourceError(
                f"--data-setting {name!r} is not known for {kind}; write NAME=VALUE with one of: "
                f"{', '.join(known) or 'none, this kind has no further settings'}"
            )
        given[name] = value
    if patient_id:
        if "patient_id" not in KINDS[kind].model_fields:
            raise DataSourceError(f"--patient-id has no meaning for {kind}: it knows the patient by itself")
        given["patient_id"] = patient_id
    try:
        source = TypeAdapter(DataSettings).validate_python(given).within(Path.cwd())
    except ValidationError as error:
        raise DataSourceError("; ".join(_sentence(one, place) for one in error.errors())) from None
    found = source.model_dump(exclude_unset=True, exclude={"kind", place, "patient_id"})
    return DataChoice(
        kind=kind,
        where=str(getattr(source, place)),
        settings={
            name: value if isinstance(value, float) else str(value)
            for name, value in found.items()
            if value is not None
        },
    )


def _kind_and_place(data: str) -> tuple[str, str]:
    kind, colon, where = data.partition(":")
    if colon and kind in KINDS:
        # The shell expands ~ at the beginning of a word only.
        return kind, where if kind in DATABASES or not where else str(Path(where).expanduser())
    if "://" in data:
        raise DataSourceError(
            "--data is a URL: say what is there, sql:URL for the rows of a query or omop:URL for an OMOP CDM"
        )
    path = Path(data)
    if path.is_dir():
        raise DataSourceError(
            f"--data {data} is a folder: say of what, fhir:{data}, image-folder:{data} or dicom:{data}"
        )
    if path.suffix.lower() == ".npz":
        return "npz", data
    try:
        return kind_of(path), data
    except DataSourceError as error:
        raise DataSourceError(f"--data: {error}, or one of: {_EXAMPLES}") from None


def _sentence(fault: Mapping[str, Any], place: str) -> str:
    """A fault in the options' words; what was given is not repeated, since it may hold a password."""
    names = [str(part) for part in fault["loc"][1:]]
    text = str(fault["msg"]).removeprefix("Value error, ")
    if "password in plain" in text:
        return (
            "--data has a password in it. Leave it out and give --ask-password; and change that password, since "
            "command lines are kept in histories and shown to others on this machine"
        )
    if names == [place]:
        return f"--data: {text}"
    return f"--data-setting {' '.join(names)}: {text}" if names else f"--data-setting: {text}"
