"""A researcher's Python client: from `Coordinator(...)` to a cohort as a table in a notebook.

    from server.researcher import Coordinator

    hub = Coordinator("https://coordinator.example.org", key="ftw_...")
    cohort = hub.request(hub.releases()[0], 5000, where="age >= 60 and sex == 'female'")
    patients = cohort.table()

It speaks the coordinator's API from outside and opens nothing of its state. It lies in `server` because it knows the
API's words: `client` is the hospital's side, and `privacy` and `models` do no I/O. It imports no torch, Flower,
SQLAlchemy or FastAPI; pandas and pyarrow only when a table is asked for (docs/decisions/0014-researcher-client.md).
"""

from server.coordinator_error import CoordinatorError, FieldFault
from server.researcher.cohort import Cohort
from server.researcher.coordinator import Coordinator
from server.researcher.values import (
    CohortFile,
    CohortStatus,
    Column,
    Format,
    Pictures,
    Release,
    ReleaseDetails,
    SiteSpend,
)
from server.researcher.verification import CheckedCohort, UnreadableCohortError, verify_folder

__all__ = [
    "CheckedCohort",
    "Cohort",
    "CohortFile",
    "CohortStatus",
    "Column",
    "Coordinator",
    "CoordinatorError",
    "FieldFault",
    "Format",
    "Pictures",
    "Release",
    "ReleaseDetails",
    "SiteSpend",
    "UnreadableCohortError",
    "verify_folder",
]
