"""A site's patients as tensors: loaded once per data file, drawn one record per patient."""

from __future__ import annotations

import torch
from torch import Tensor

from client.connectors import DataSourceError, read_table
from client.home import SiteHome
from models.encoding import EncodedTable, encode_table
from models.schema import StudySchema
from privacy.noise import NoiseSource


def load_patients(site: SiteHome, schema: StudySchema) -> EncodedTable:
    """Read the site's data file and encode it.

    Raises:
        DataSourceError: the file cannot be read, or the site names a patient column that the study ignores.
        TableFaultsError: the table does not fit the schema; lists row and column of each fault.
    """
    declared = site.data.patient_id
    if declared is not None and declared != schema.patient_id:
        raise DataSourceError(
            f"site.toml says that {declared!r} names the patient, the study says {schema.patient_id!r}; with "
            "another column rows of one patient would count as several: ask the study's operator to correct it"
        )
    return encode_table(read_table(site.data.path, site.data.kind), schema)


class PatientDraws:
    """The patients as DP-SGD samples them: each draw of a patient is one of that patient's records.

    Privacy: a patient is one unit however many records there are; a draw takes one record, uniformly, from
        the noise source, so that what a step sees of a patient is bounded by one clipped gradient.

    Args:
        table: codes (R, K) and patient offsets (P + 1,).
        cardinalities: levels per column, K of them.
        noise: where the choice of the record comes from.
    """

    def __init__(self, table: EncodedTable, cardinalities: tuple[int, ...], noise: NoiseSource) -> None:
        self._codes = table.codes
        self._offsets = table.patient_offsets
        self._starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)  # (K,)
        self._width = sum(cardinalities)
        self._noise = noise

    @property
    def num_patients(self) -> int:
        """How many patients there are. Sensitive: do not log, do not send."""
        return len(self._offsets) - 1

    def gather(self, patients: Tensor) -> Tensor:
        """One record of each patient named, one-hot.

        Args:
            patients: int64 indices (B,), possibly none.

        Returns:
            float32 tensor (B, D).
        """
        first = self._offsets[patients]
        count = self._offsets[patients + 1] - first
        if int(self._offsets[-1]) == self.num_patients:
            rows = first
        else:
            rows = first + (self._noise.uniform(len(patients)) * count).long().clamp(max=count - 1)
        onehot = torch.zeros(len(patients), self._width)
        onehot.scatter_(1, self._codes[rows] + self._starts, 1.0)
        return onehot
