"""One cohort of a researcher: wait for it, read it as a table, download it, check it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from server.api_client import ApiClient, digest_of_file
from server.condition_text import where_text
from server.coordinator_error import CoordinatorError
from server.researcher.progress import Tell, duration, progress_bar, size
from server.researcher.rendering import html_facts, text_facts
from server.researcher.values import CohortFile, CohortStatus, read_status
from server.researcher.verification import CheckedCohort, verify_folder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TABLE_FILE = "cohort.parquet"
CERTIFICATE_FILE = "certificate.json"
FILES_GONE = frozenset({"expired", "deleted"})
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 2.0


class Cohort:
    """A cohort at the coordinator; made by `Coordinator.request` and `Coordinator.cohort`.

    Args:
        api: how to reach it.
        status: as it was last told.
    """

    def __init__(self, api: ApiClient, status: CohortStatus) -> None:
        self._api = api
        self._status = status
        self._folder: Path | None = None

    @property
    def id(self) -> str:
        """Its identifier, by which `Coordinator.cohort` finds it again."""
        return self._status.id

    @property
    def last_status(self) -> CohortStatus:
        """What the coordinator said last; asks nobody."""
        return self._status

    def status(self) -> CohortStatus:
        """What the coordinator says now."""
        self._status = read_status(self._api.get(f"/cohorts/{self.id}"))
        return self._status

    def wait(self, *, timeout_seconds: float | None = None, progress: bool = True) -> Cohort:
        """Wait until it is completed; returns itself. Broken off, it is made all the same.

        Args:
            timeout_seconds: None: as long as it takes.
            progress: whether to show a bar.

        Raises:
            CoordinatorError: it failed, was cancelled, or is not completed in time.
        """
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause = FIRST_POLL_SECONDS
        with progress_bar(f"{self._status.num_patients:,} patients", wanted=progress) as tell:
            while (status := self.status()).is_open:
                eta = "" if status.eta_seconds is None else f"about {duration(status.eta_seconds)} left"
                tell(status.percent, "queued" if status.state == "queued" else eta)
                if until is not None and time.monotonic() + pause > until:
                    raise CoordinatorError(
                        f"cohort {self.id} is {status.state} at {status.percent:.0f} % after {timeout_seconds:g} s; "
                        "it goes on by itself: wait again"
                    )
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
            tell(100, "")
        if status.state != "completed":
            why = status.reason or f"its files were removed; ask for it again with seed {status.seed}"
            raise CoordinatorError(f"cohort {self.id} is {status.state}: {why}")
        return self

    def cancel(self) -> None:
        """End it before it is completed; its files, once there are any, are never touched.

        Raises:
            CoordinatorError: it is completed.
        """
        self._status = read_status(self._api.post(f"/cohorts/{self.id}/cancel", again=True).json())

    def delete(self) -> None:
        """Remove its files from the coordinator now, or cancel it if it is not finished. Again is harmless.

        What was downloaded stays, and so do its certificate and its ledger entry. The same request with the same
        seed gives the same bytes again.
        """
        self._status = read_status(self._api.delete(f"/cohorts/{self.id}").json())

    def arrow(self) -> pa.Table:
        """The patients, as a pyarrow table; waits for them. Its metadata say that they are synthetic.

        Raises:
            CoordinatorError: it was not asked for as Parquet, or cannot be had.
        """
        import pyarrow.parquet as pq

        self.wait()
        file = next((one for one in self._status.files if one.name == TABLE_FILE), None)
        if file is None:
            raise CoordinatorError(
                f"cohort {self.id} has the formats {', '.join(self._status.formats)}; a table is read from parquet: "
                f"ask again with formats=('parquet',) and seed={self._status.seed} for the same patients"
            )
        here = None if self._folder is None else self._folder / TABLE_FILE
        if here is not None and here.is_file() and digest_of_file(here) == file.digest:
            return pq.ParquetFile(here).read()
        with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
            path = Path(folder) / TABLE_FILE
            self._fetch([file], Path(folder))
            with pq.ParquetFile(path) as opened:
                return opened.read()

    def table(self) -> pd.DataFrame:
        """The patients, as a pandas table; waits for them. `attrs["fedtwin"]` says where they are from.

        Raises:
            CoordinatorError: as `arrow`.
        """
        found: pd.DataFrame = self.arrow().to_pandas()
        found.attrs["fedtwin"] = {
            "synthetic": True,
            "cohort": self.id,
            "release": self._status.release,
            "seed": self._status.seed,
        }
        return found

    def certificate(self) -> Mapping[str, Any]:
        """What was drawn from what, what it cost whom, and the proof that this was logged; waits for it.

        It is there for good, also when the files have expired or were deleted.
        """
        if self.status().state not in FILES_GONE:
            self.wait()
        file = next(one for one in self._status.files if one.name == CERTIFICATE_FILE)
        with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
            self._fetch([file], Path(folder), progress=False)
            found: Mapping[str, Any] = json.loads((Path(folder) / CERTIFICATE_FILE).read_bytes())
        return found

    def download(self, folder: Path | str = ".", *, progress: bool = True) -> Path:
        """Bring all its files into a folder of its own below `folder`; waits for them.

        What is there already is not fetched again, what broke off goes on where it stopped, and what does not have
        the digest that the coordinator named does not stay.

        Returns:
            `folder/ID`.

        Raises:
            CoordinatorError: it cannot be had, or a file arrived otherwise than it was sent.
        """
        self.wait(progress=progress)
        target = Path(folder) / self.id
        target.mkdir(parents=True, exist_ok=True)
        self._fetch(self._status.files, target, progress=progress)
        self._folder = target
        return target

    def verify(self, ledger_key: str | None = None, folder: Path | str | None = None) -> CheckedCohort:
        """Check what was downloaded, offline: files, certificate, ledger entry, and the key's signature.

        Args:
            ledger_key: the coordinator's, from its operator; FEDTWIN_LEDGER_KEY where absent. See `verify_folder`.
            folder: where the files lie; where `download` put them last.

        Raises:
            LedgerVerificationError: says what does not hold.
            CoordinatorError: nothing was downloaded yet, or there is no key.
        """
        key = ledger_key or os.environ.get("FEDTWIN_LEDGER_KEY")
        if not key:
            raise CoordinatorError(
                "there is no ledger key; give verify() the one that the operator told you, or set FEDTWIN_LEDGER_KEY"
            )
        where = self._folder if folder is None else Path(folder)
        if where is None:
            raise CoordinatorError(
                f"cohort {self.id} was not downloaded from here yet; call download() first, or name the folder"
            )
        checked = verify_folder(where, key)
        if checked.statement["cohort"] != self.id:
            raise CoordinatorError(f"{where} holds cohort {checked.statement['cohort']}, not {self.id}")
        return checked

    def row(self) -> Mapping[str, str]:
        """As a line of a table."""
        one = self._status
        return {
            "cohort": one.id,
            "patients": f"{one.num_patients:,}",
            "state": one.state if not one.is_open else f"{one.state} {one.percent:.0f} %",
            "where": where_text(one.conditions),
            "formats": ", ".join(one.formats),
            "asked": f"{one.created_at:%Y-%m-%d %H:%M}",
        }

    def __repr__(self) -> str:
        return text_facts(f"Cohort {self.id}", self._facts())

    def _repr_html_(self) -> str:
        return html_facts(f"Cohort {self.id}", self._facts())

    def _facts(self) -> dict[str, str]:
        one = self._status
        facts = {
            "state": f"{one.state}, {one.percent:.0f} %" if one.is_open else one.state,
            "patients": f"{one.num_patients:,}, all synthetic",
            "where": where_text(one.conditions) or "no condition",
            "release": one.release,
            "seed": str(one.seed),
            "formats": ", ".join(one.formats),
        }
        if one.reason:
            facts["reason"] = one.reason
        if one.files:
            facts["files"] = ", ".join(f"{file.name} ({size(file.num_bytes)})" for file in one.files)
        if one.deleted_at is not None:
            facts["deleted"] = f"{one.deleted_at:%Y-%m-%d}"
        elif one.expires_at is not None:
            facts["kept until"] = f"{one.expires_at:%Y-%m-%d}"
        return facts

    def _fetch(self, files: Sequence[CohortFile], folder: Path, *, progress: bool = True) -> None:
        total, before = sum(file.num_bytes for file in files) or 1, 0
        with progress_bar("downloading", wanted=progress) as tell:
            for file in files:
                target = folder.joinpath(*PurePosixPath(file.name).parts)
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise CoordinatorError(
                        f"the coordinator names a file {file.name!r}, which would lie outside {folder}"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (target.is_file() and digest_of_file(target) == file.digest):
                    path = f"/cohorts/{self.id}/files/{quote(file.name)}"
                    told = partial(_tell_file, tell, file.name, before, total)
                    self._api.download(path, target, digest=file.digest, told=told)
                before += file.num_bytes


def _tell_file(tell: Tell, name: str, before: int, total: int, have: int) -> None:
    tell(100 * (before + have) / total, name)
