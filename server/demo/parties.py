"""Before anything runs: patients are dealt out, and each party makes its own keys in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from server.demo.data import load_survey, prepare_patients, split_by_site, write_sites
from server.demo.digits import DIGITS_STUDY, deal_scans, load_scans, name_scans
from server.demo.display import PhaseLine
from server.demo.surface import at_once, fedtwin
from server.home import CoordinatorHome

STUDY_FILE = Path(__file__).with_name("study.toml")
CAPS = {"lakeside": 4.0, "hillcrest": 3.0, "northgate": 3.5}  # of epsilon; each hospital's own decision
ROLES = ("operator", "researcher", "auditor")


@dataclass(frozen=True, kw_only=True)
class Parties:
    """Where everybody lives.

    Attributes:
        coordinator: the coordinator's home.
        sites: each hospital's home; its patients lie beside it, in the hospital's folder.
    """

    coordinator: Path
    sites: Mapping[str, Path]

    @classmethod
    def within(cls, folder: Path) -> Parties:
        """One folder per party."""
        return cls(coordinator=folder / "coordinator", sites={name: folder / name / "site" for name in CAPS})

    @property
    def invitation(self) -> Path:
        """What the coordinator gives to sites."""
        return self.coordinator / "federation.json"

    @property
    def api_url(self) -> str:
        """Where the API is on this machine."""
        return CoordinatorHome.open(self.coordinator).api_url

    @property
    def ledger_key(self) -> str:
        """The ledger's public key, as the invitation says."""
        return str(json.loads(self.invitation.read_text())["ledger_key"])


def deal_patients(parties: Parties, line: PhaseLine) -> pd.DataFrame:
    """Write each hospital's file; returns all patients, which only a demo has in one place."""
    line.say("reading the survey that ships in linearmodels")
    patients = prepare_patients(load_survey())
    parts = split_by_site(patients)
    folders = {name: home.parent for name, home in parties.sites.items()}
    write_sites(parts, folders)
    scans, _ = load_scans()
    deal_scans(scans, folders)
    line.say(
        f"{len(patients):,} people and {len(scans.labels):,} scans, each at one of {len(parts)} hospitals"
    )
    return patients


def create_parties(parties: Parties, line: PhaseLine) -> dict[str, str]:
    """Make the coordinator, its API keys and the hospitals, and enrol them.

    Returns:
        API key of each role.

    Raises:
        SurfaceError: a command failed.
    """
    line.say("the coordinator's")
    fedtwin("server", "init", "--home", parties.coordinator)
    fedtwin("server", "invite", "--home", parties.coordinator)
    line.say("the hospitals'")
    made = dict(zip(ROLES, at_once(lambda role: _make_key(parties, role), ROLES), strict=True))
    at_once(lambda name: _join(parties, name), list(parties.sites))
    line.say(f"1 coordinator, {len(parties.sites)} hospitals, {len(made)} API keys, all made on this machine")
    return made


def _make_key(parties: Parties, role: str) -> str:
    return fedtwin(
        "server", "key", "--home", parties.coordinator, "--role", role, "--name", f"demo {role}"
    ).strip()


def _join(parties: Parties, name: str) -> None:
    """What a hospital's data manager does, and the operator's one answer."""
    home = parties.sites[name]
    fedtwin(
        *("site", "init", "--home", home, "--name", name, "--federation", parties.invitation),
        *("--data", home.parent / "patients.csv", "--patient-id", "patient_id", "--epsilon", str(CAPS[name])),
    )
    name_scans(home)
    for study in (STUDY_FILE, DIGITS_STUDY):
        fedtwin("site", "validate", "--home", home, study)
    fedtwin("server", "enrol", "--home", parties.coordinator, home / "card.json")
