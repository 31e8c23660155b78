"""Checks of the site's data: they can be read, they fit a study, and there are enough patients. No number is told."""

from __future__ import annotations

from client.checks.result import CheckResult, failed, passed
from client.connectors import DataSourceError, open_source, reading_files
from client.connectors.database import reading
from client.connectors.settings import (
    DicomSource,
    FhirSource,
    ImageFolderSource,
    NpzSource,
    OmopSource,
    SqlSource,
    TableFile,
)
from client.home import SiteHome
from client.patients import load_patients
from client.policy import PolicyError, load_policy
from models.faults import TableFaultsError
from models.schema import StudySchema
from models.study import Study
from models.table import EncodedTable

MAX_SHOWN = 5
# No source has this column, so each hands on what it has.
_PROBE = StudySchema.model_validate({"columns": [{"name": "fedtwin-preflight", "kind": "boolean"}]})


def check_data(site: SiteHome) -> CheckResult:
    """The source answers, and has the column that the site says names the patient; folders are read with a study."""
    try:
        with reading_files():
            return _check_source(site)
    except (DataSourceError, TableFaultsError, StopIteration) as error:
        return failed(
            "data", str(error) or "nothing is in it", "put that right; [data] in site.toml says where"
        )


def _check_source(site: SiteHome) -> CheckResult:
    data = site.data
    if isinstance(data, TableFile | SqlSource):
        first = next(iter(open_source(data).chunks(_PROBE)))
        patient_id = data.patient_id
        if patient_id is not None and patient_id not in first.columns:
            return failed(
                "data",
                f"there is no column {patient_id!r}, which site.toml says names the patient",
                "correct data.patient_id in site.toml, or the table",
            )
    elif isinstance(data, OmopSource):
        with reading(data.url, data.password_file):
            pass
    elif isinstance(data, FhirSource):
        open_source(data).stamp()
    elif isinstance(data, ImageFolderSource | NpzSource | DicomSource) and not data.path.exists():
        raise DataSourceError(f"there is no {data.path}; correct data.path in site.toml")
    if isinstance(data, TableFile | SqlSource | OmopSource):
        return passed("data", f"the {data.kind} source can be read")
    return passed("data", f"the {data.kind} source is there; with --study its files are read")


def check_study_data(site: SiteHome, study: Study) -> list[CheckResult]:
    """The data fit a study's schema, and are of as many patients as the policy wants."""
    try:
        table = load_patients(site, study)
    except TableFaultsError as error:
        shown = tuple(str(fault) for fault in error.faults[:MAX_SHOWN])
        schema_result = failed(
            "schema",
            f"the table has {error.num_faults} fault{'s' if error.num_faults > 1 else ''}",
            "correct the table, or tell the study's author; fedtwin site validate lists more",
            private=shown,
        )
    except DataSourceError as error:
        schema_result = failed("schema", str(error), "put that right, or tell the study's author")
    else:
        return [passed("schema", "the data fit the study"), check_minimum(site, table)]
    return [schema_result, failed("patients", "not checked", "first put right: schema")]


def check_minimum(site: SiteHome, table: EncodedTable) -> CheckResult:
    """At least the policy's minimum of patients. How many there are is not said, here or anywhere."""
    try:
        minimum = load_policy(site.policy_file).min_patients
    except PolicyError:
        return failed("patients", "not checked", "first put right: policy")
    if table.num_patients < minimum:
        return failed(
            "patients",
            "fewer than patients.minimum of the policy",
            "wait until there are more; with a lower minimum each patient is easier to single out",
        )
    return passed("patients", "at least patients.minimum of the policy")
