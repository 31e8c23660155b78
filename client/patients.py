"""A site's patients as tensors: loaded once per state of the data, drawn one record per patient."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rfc8785
import torch
from torch import Tensor

from client.connectors import DataSource, DataSourceError, PatientSource, open_source, reading_files
from client.connectors.image_records import ImageShape
from client.connectors.image_source import open_images, table_of
from client.encoded_tables import (
    SPILL_BYTES,
    CodesWriter,
    chunks_of_bytes,
    narrow_dtype,
    open_codes,
    remove_stale,
)
from client.home import SiteHome
from models.encoding import TableEncoder
from models.faults import FIRST_DATA_ROW, Fault, TableFaultsError
from models.image_schema import ImageSchema
from models.schema import StudySchema
from models.study import Study
from models.table import EncodedTable, one_hot
from privacy.noise import NoiseSource, SystemNoise


def load_patients(
    site: SiteHome,
    study: Study,
    *,
    noise: NoiseSource | None = None,
    occasion: str = "",
    spill_bytes: int = SPILL_BYTES,
) -> EncodedTable:
    """Read the site's data and encode them, in chunks.

    A table of more than `spill_bytes` of codes goes to a private file in the site's `state/tables`, which the
    next call maps again if neither the data nor the schema nor, for a source that cannot tell whether it
    changed, the occasion is another. Files of other states are removed.

    Args:
        site: whose data.
        study: which of the site's sources, and the schema that they must fit; with the rows come their pictures
            where it has pictures.
        noise: chooses the records of a patient who has too many, where the study says `sample`.
        occasion: for a database, what it is read once for, such as a run's identifier.
        spill_bytes: see above.

    Raises:
        DataSourceError: the data cannot be read, are not of the study's kind, or the site names a patient column
            that the study ignores.
        TableFaultsError: they do not fit the schema; lists row (or patient) and column of each fault.
    """
    data, noise = site.data_for(study.name), noise or SystemNoise()
    with reading_files():
        if study.image is not None:
            return _load_images(data, study.table, study.image, noise)
        return _load_table(site, data, study.table.measured, noise, occasion, spill_bytes)


def _load_table(
    site: SiteHome,
    data: DataSource,
    schema: StudySchema,
    noise: NoiseSource,
    occasion: str,
    spill_bytes: int,
) -> EncodedTable:
    """Rows; from the file that was kept of them, if the data are as they were."""
    _check_patient_column(data, schema)
    source = open_source(data)
    stamp = source.stamp()
    state = stamp or f"{data!r} {occasion}"
    path = site.state / "tables" / hashlib.sha256(f"{_digest(schema)}\n{state}".encode()).hexdigest()
    remove_stale(path.parent, keep=path)
    reusable = bool(stamp or occasion)
    kept = open_codes(path, len(schema.columns), narrow_dtype(schema)) if reusable else None
    if kept is not None:
        return kept
    table = _encode(source, schema, path, noise, spill_bytes)
    if not reusable:
        path.unlink(missing_ok=True)  # what is mapped stays until the table is let go
    return table


def _encode(
    source: PatientSource, schema: StudySchema, path: Path, noise: NoiseSource, spill_bytes: int
) -> EncodedTable:
    encoder = TableEncoder(schema)
    names: list[str] = []
    with CodesWriter(path, schema, spill_bytes=spill_bytes) as writer:
        try:
            for frame in source.chunks(schema):
                if not source.has_lines:
                    names += list(frame[schema.patient_id]) if schema.patient_id else []
                writer.add(encoder.encode(frame))
            order, offsets = encoder.group(lambda n: noise.uniform(n).numpy().astype(np.float64))
        except TableFaultsError as error:
            if source.has_lines:
                raise
            raise _naming_patients(error, names) from None
        return writer.finish(order, offsets)


def _load_images(
    data: DataSource, schema: StudySchema, image: ImageSchema, noise: NoiseSource
) -> EncodedTable:
    """Rows and their pictures, both in memory."""
    records = open_images(data).read(ImageShape(size=image.size, channels=image.channels))
    encoder = TableEncoder(schema)
    try:
        codes = torch.from_numpy(encoder.encode(table_of(records, schema)).astype(narrow_dtype(schema)))
        order, offsets = encoder.group(lambda n: noise.uniform(n).numpy().astype(np.float64))
    except TableFaultsError as error:
        raise _naming_patients(error, list(records.patient_ids)) from None
    images = torch.from_numpy(records.images)
    if order is not None:
        codes, images = codes[order], images[order]
    return EncodedTable(codes=codes, patient_offsets=torch.from_numpy(offsets), images=images)


def _naming_patients(error: TableFaultsError, names: list[str]) -> TableFaultsError:
    """The same faults with patients instead of rows that are in no file."""
    faults = [
        fault
        if fault.row is None
        else Fault(None, fault.column, f"{_whose(fault.row - FIRST_DATA_ROW, names)}: {fault.problem}")
        for fault in error.faults
    ]
    return TableFaultsError(faults, error.num_faults)


def _whose(place: int, names: list[str]) -> str:
    return f"patient {names[place]!r}" if place < len(names) else f"patient number {place + 1} as read"


def _check_patient_column(data: DataSource, schema: StudySchema) -> None:
    declared = getattr(data, "patient_id", None)
    if declared is not None and declared != schema.patient_id:
        raise DataSourceError(
            f"site.toml says that {declared!r} names the patient, the study says {schema.patient_id!r}; with "
            "another column rows of one patient would count as several: ask the study's operator to correct it"
        )


def _digest(schema: StudySchema, image: ImageSchema | None = None) -> str:
    parts = [schema.model_dump(mode="json"), None if image is None else image.model_dump(mode="json")]
    return hashlib.sha256(rfc8785.dumps(parts)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class LoadedPatients:
    """A site's patients and the keyed digest of the data that they were read from. # Sensitive: do not log."""

    table: EncodedTable
    fingerprint: str


class PatientTables:
    """The tables of one site, read again only when the data changed or another schema asks.

    Args:
        site: whose data.
        noise: see `load_patients`.
    """

    def __init__(self, site: SiteHome, noise: NoiseSource) -> None:
        self._site = site
        self._noise = noise
        self._known: tuple[tuple[str, str], LoadedPatients] | None = None

    def load(self, study: Study, *, run: str) -> LoadedPatients:
        """The patients for a run. A database is read once per run.

        Raises:
            DataSourceError: see `load_patients`.
            TableFaultsError: see `load_patients`.
        """
        data = self._site.data_for(study.name)
        source = open_source(data) if study.image is None else open_images(data)
        with reading_files():
            key = (f"{data!r} {_digest(study.table.measured, study.image)}", source.stamp() or f"run {run}")
        if self._known is None or self._known[0] != key:
            self._known = None  # before the next is read: two tables need not fit into memory
            table = load_patients(self._site, study, noise=self._noise, occasion=run)
            if source.stamp() not in (None, key[1]):
                raise DataSourceError(
                    "the data changed while they were read; wait until the export is complete"
                )
            secret = self._site.fingerprint_secret.read_bytes()
            with reading_files():
                digest = source.fingerprint(secret) or _fingerprint_of(table, secret)
            self._known = (key, LoadedPatients(table=table, fingerprint=digest))
        return self._known[1]


def _fingerprint_of(table: EncodedTable, secret: bytes) -> str:
    """What a database gave, as codes: it is not kept in any other form."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in chunks_of_bytes(table):
        mac.update(part)
    return "hmac-sha256:" + mac.hexdigest()


class PatientDraws:
    """The patients as DP-SGD samples them: each draw of a patient is one of that patient's records.

    Privacy: a patient is one unit however many records there are; a draw takes one record, uniformly, from
        the noise source, so that what a step sees of a patient is bounded by one clipped gradient.
    """

    def __init__(self, table: EncodedTable, cardinalities: tuple[int, ...], noise: NoiseSource) -> None:
        self._table = table
        self._cardinalities = cardinalities
        self._noise = noise

    @property
    def num_patients(self) -> int:
        """How many patients there are. Sensitive: do not log, do not send."""
        return self._table.num_patients

    def gather(self, indices: Tensor) -> Tensor:
        """One record, one-hot (B, D), of each patient in `indices` (B,), possibly none."""
        uniforms = self._noise.uniform(len(indices))
        return one_hot(self._table.one_record_each(indices, uniforms), self._cardinalities)
