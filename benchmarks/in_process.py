"""A federation inside one process, through the product's own code: homes, guard, wire form, round loop, ledger.

Only Flower is left out: a request is encoded, handed to the site's `SiteRounds`, and its reply decoded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from client.connectors.settings import ImageSource, TableFile
from client.home import SiteHome
from client.policy import load_policy, policy_text
from client.rounds import SiteRounds
from models.exchange import RoundReply, RoundRequest
from models.study import Study
from models.study_generator import StudyGenerator
from models.weights import decode_arrays
from server import round_records, runs, sites, studies
from server.federation import Enough, SiteFailure
from server.home import CoordinatorHome
from server.rounds import run_rounds
from server.store import Store
from server.transfer import HeldParts


class InProcessFederation:
    """Sites as objects in this process; the messages still travel as bytes."""

    def __init__(self, rounds: Mapping[str, SiteRounds]) -> None:
        self.sites = rounds
        self.sent_bytes = self.received_bytes = 0
        self._held = HeldParts()

    def exchange(
        self,
        requests: Mapping[str, RoundRequest],
        *,
        deadline_seconds: float,
        enough: Enough | None = None,
    ) -> Mapping[str, RoundReply | SiteFailure]:
        """Ask one site after the other; all have answered before anybody could have had enough."""
        replies: dict[str, RoundReply | SiteFailure] = {}
        for site, request in requests.items():
            heard = None
            while heard is None:
                heard = self._held.hear(site, request, self._ask(site, request))
            replies[site] = heard
        return replies

    def _ask(self, site: str, request: RoundRequest) -> RoundReply:
        message = request.encode(self._held.of(site))
        answer = self.sites[site].answer(*message)
        self.sent_bytes += sum(map(len, message))
        self.received_bytes += sum(map(len, answer))
        return RoundReply.decode(*answer)


class InProcessLab:
    """A coordinator and its sites in one folder.

    Args:
        folder: where their homes are laid out.
        tables: each site's patients: a table, which is written as a file, or where its pictures are.
        epsilon: every site's cap per study.
        delta: every site's ceiling of delta.
        patient_id: the column that names the patient, if the tables have one.
        database: the coordinator's.
    """

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, pd.DataFrame | ImageSource],
        *,
        epsilon: float = 10.0,
        delta: float = 1e-5,
        patient_id: str | None = None,
        database: str = "sqlite:///fedtwin.db",
    ) -> None:
        self.coordinator = CoordinatorHome.create(folder / "coordinator", database=database)
        self.store = Store.open(self.coordinator)
        self.sites: dict[str, SiteHome] = {}
        for name, table in tables.items():
            data = _parquet(table, folder / name) if isinstance(table, pd.DataFrame) else table
            settings = data.model_dump(
                mode="json", exclude_none=True, exclude_defaults=True, exclude={"kind", "path"}
            )
            site = SiteHome.create(
                folder / name,
                name=name,
                superlink_address=self.coordinator.superlink_address,
                ca_certificate=self.coordinator.ca_certificate.read_bytes(),
                coordinator_key=self.coordinator.verify_key.text,
                data_path=data.path,
                data_kind=data.kind,
                patient_id=patient_id if isinstance(table, pd.DataFrame) else None,
                data_settings=settings,
            )
            site.policy_file.write_text(
                policy_text(
                    epsilon_per_run=epsilon,
                    epsilon_per_study=epsilon,
                    epsilon_total=epsilon,
                    max_delta=delta,
                    min_patients=20,
                    app_digests=[self.coordinator.app_digest],
                    approval="automatic",
                )
            )
            sites.enrol_site(
                self.store,
                name=name,
                receipt_key=site.receipt_key().public.text,
                node_public_key=site.node_public_key,
                policy=load_policy(site.policy_file).to_dict(),
            )
            self.sites[name] = site
        self.federation = InProcessFederation({name: SiteRounds(site) for name, site in self.sites.items()})

    def train(self, study: Study) -> StudyGenerator:
        """Register the study, run all its rounds, and return the generator of the release candidate."""
        registered = studies.register_study(self.store, study, created_by="benchmark").study
        run = runs.create_run(self.store, registered.name, started_by="benchmark")
        release = run_rounds(self.federation, self.store, run.id)
        assert release is not None
        return self.generator(registered, run.id, release.round)

    def generator(self, study: Study, run: str, round_number: int) -> StudyGenerator:
        """The generator that a recorded round gave."""
        recorded = round_records.get_round(self.store, run, round_number)
        arrays = decode_arrays(self.store.load(recorded.arrays["generator"]))
        return StudyGenerator.from_arrays(arrays, study)


def _parquet(table: pd.DataFrame, site: Path) -> TableFile:
    file = site.with_name(f"{site.name}.parquet")
    table.to_parquet(file)
    return TableFile(kind="parquet", path=file)
