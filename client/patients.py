"""A site's patients as tensors: loaded once per data file, drawn one record per patient."""

from __future__ import annotations

from torch import Tensor

from client.connectors import DataSourceError, read_table
from client.home import SiteHome
from models.encoding import encode_table
from models.schema import StudySchema
from models.table import EncodedTable, one_hot
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
