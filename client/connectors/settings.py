"""The `[data]` section of site.toml: one strict set of settings for each kind of source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from client.connectors.errors import DataSourceError

TableFileKind = Literal["csv", "parquet"]
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!:memory:)([^?]+)")
_SECRET_OPTIONS = {"password", "passwd", "pwd", "token", "secret", "access_token", "private_key"}


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _path(value: object) -> object:
    if value == "":
        raise ValueError("the path is empty")
    return value


PatientColumn = Annotated[str | None, BeforeValidator(_none_if_empty)]
OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]
RequiredPath = Annotated[Path, BeforeValidator(_path)]


class _Source(BaseModel):
    """What all sources have. Sensitive: do not log."""

    # Errors never repeat the input: a URL may hold a password that was put there by mistake.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def within(self, home: Path) -> DataSource:
        """The same source with paths made absolute; relative ones are relative to the site's folder."""
        found = {
            name: home / value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Path)
        }
        return self.model_copy(update=found)  # type: ignore[return-value]


class TableFile(_Source):
    """One table in a file.

    Attributes:
        kind: `csv` or `parquet`.
        path: the file.
        patient_id: the column that names the patient, or None when every line is another patient.
    """

    kind: TableFileKind
    path: RequiredPath
    patient_id: PatientColumn = None


class _Database(_Source):
    """A database by SQLAlchemy URL, without any password in site.toml.

    Attributes:
        url: `dialect+driver://user@host/database`; `${NAME}` takes an environment variable.
        password_file: a file that holds the password alone; readable by the site's user only.
    """

    url: str = Field(pattern=r"^[a-z0-9_]+(\+[a-z0-9_]+)?://")
    password_file: OptionalPath = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        secrets = [parts.password or ""]
        secrets += [value for name, value in parse_qsl(parts.query) if name.lower() in _SECRET_OPTIONS]
        if any(secret and not _VARIABLE.fullmatch(secret) for secret in secrets):
            # Without the URL: it would print the password.
            raise ValueError(
                "the URL holds a password in plain; write ${NAME} for an environment variable, or take it out "
                "and give password_file"
            )
        return url

    def within(self, home: Path) -> DataSource:
        """See `_Source.within`; a SQLite file is a path too."""
        found = super().within(home)
        file = _SQLITE_FILE.fullmatch(self.url)
        return found if file is None else found.model_copy(update={"url": f"{file[1]}{home / file[2]}"})


class SqlSource(_Database):
    """The rows of one query.

    Attributes:
        query, query_file: a SELECT that gives the study's columns by name, here or in a file.
        patient_id: the result's column that names the patient, or None when every row is another patient.
    """

    kind: Literal["sql"]
    query: str = ""
    query_file: OptionalPath = None
    patient_id: PatientColumn = None

    @model_validator(mode="after")
    def _one_query(self) -> SqlSource:
        if bool(self.query.strip()) == (self.query_file is not None):
            raise ValueError("give either query or query_file")
        return self


class OmopSource(_Database):
    """An OMOP CDM 5.4 database; the study says which concepts fill which column.

    Attributes:
        cdm_schema: the database schema that the CDM's tables are in; the connection's default where empty.
    """

    kind: Literal["omop"]
    cdm_schema: str = Field(default="", pattern=r"^[A-Za-z0-9_$.]*$")


class FhirSource(_Source):
    """FHIR R4: a Bulk Data folder of NDJSON files, or a folder or .tar.gz of Bundles.

    Attributes:
        path: the folder or archive; the study says which resources fill which column.
    """

    kind: Literal["fhir"]
    path: RequiredPath


class ImageFolderSource(_Source):
    """A folder of image files.

    Attributes:
        path: the folder.
        manifest: a CSV file with the columns `file`, `patient_id`, `label` and further attributes; without
            one each subfolder is a label and every file another patient.
    """

    kind: Literal["image-folder"]
    path: RequiredPath
    manifest: OptionalPath = None


class NpzSource(_Source):
    """Arrays in an .npz file, as MedMNIST lays them out: `train_images`, `train_labels`.

    Attributes:
        path: the file.
        part: the prefix of the arrays to read.
        patients: the array of patient identifiers; where empty every image is another patient.
    """

    kind: Literal["npz"]
    path: RequiredPath
    part: Literal["train", "val", "test"] = "train"
    patients: str = ""


class DicomSource(_Source):
    """A folder of DICOM files; the patient is who the header names (0010,0020).

    Attributes:
        path: the folder, searched with all its subfolders.
        label: the keyword of the header field that holds the label, such as `Modality`.
        manifest: instead of `label`, a CSV file with the columns `sop_instance_uid` and `label`.
        window_center, window_width: in rescaled units, such as Hounsfield units, for all images; where absent
            each file's own window.
    """

    kind: Literal["dicom"]
    path: RequiredPath
    label: str = Field(default="", pattern=r"^([A-Z][A-Za-z0-9]*)?$")
    manifest: OptionalPath = None
    window_center: float | None = None
    window_width: float | None = Field(default=None, gt=1)

    @model_validator(mode="after")
    def _one_label(self) -> DicomSource:
        if (self.window_center is None) != (self.window_width is None):
            raise ValueError("give window_center and window_width together")
        if bool(self.label) and self.manifest is not None:
            raise ValueError("give label or manifest, not both")
        return self


TableSource = TableFile | SqlSource | OmopSource | FhirSource
ImageSource = ImageFolderSource | NpzSource | DicomSource
DataSource = TableSource | ImageSource
DataSettings = Annotated[DataSource, Field(discriminator="kind")]


def kind_of(path: Path) -> TableFileKind:
    """The kind of a table's file by its suffix.

    Raises:
        DataSourceError: neither `.csv` nor `.parquet`.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "csv"
    if suffix in {".parquet", ".pq"}:
        return "parquet"
    raise DataSourceError(f"{path.name} ends in {suffix!r}; give a file that ends in .csv or .parquet")
