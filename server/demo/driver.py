"""The main job as its people do it: an operator, three hospitals' data managers, a researcher, an auditor.

Everything goes through the surfaces that those people have, the `fedtwin` command and the HTTP API. The one
exception is the report: it reads the hospitals' files, which only a demo has in one place, and says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from models.study import Study
from server.api_client import ApiClient
from server.demo.digits import DIGITS_STUDY, load_scans, picture_facts, read_pictures
from server.demo.display import Display, PhaseLine
from server.demo.parties import STUDY_FILE, Parties, create_parties, deal_patients
from server.demo.processes import DemoProcesses
from server.demo.report import PictureStudy, ReportFacts, SitePrivacy, render_report
from server.demo.surface import SurfaceError, at_once, fedtwin, poll, shown_command
from server.demo.training import follow_run

COHORT_PATIENTS = 1000
COHORT_PICTURES = 2000
COHORT_SECONDS = 120.0
ANSWER_SECONDS = 120.0
ASK_AT_MOST = 5


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What is there once the job is done.

    Attributes:
        url: the API's.
        keys: API key of each role.
        ledger: the export, a zip.
        verdict: what `fedtwin audit verify` printed of it.
        next_commands: what each role may try now.
    """

    url: str
    keys: Mapping[str, str]
    release: str
    sites: Sequence[SitePrivacy]
    cohort_files: Sequence[Path]
    report: Path
    ledger: Path
    verdict: str
    next_commands: Sequence[str]


class Demo:
    """One demo in one folder.

    Args:
        folder: empty and ours alone.
        display: where phases are shown.
    """

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder = folder
        self.parties = Parties.within(folder)
        self.processes = DemoProcesses(self.parties, folder / "logs")
        self._display = display

    def run(self) -> DemoResult:
        """The whole job; the processes are still up when it returns.

        Raises:
            SurfaceError: a command failed.
            CoordinatorError: a call failed.
            ProcessFailedError: a process ended.
        """
        phase = self._display.phase
        with phase("Patients") as line:
            patients = deal_patients(self.parties, line)
        with phase("Keys and certificates") as line:
            keys = create_parties(self.parties, line)
        with phase("Processes") as line:
            self.processes.start(line)
        url = self.parties.api_url
        operator, researcher, auditor = (
            ApiClient(url, keys[role]) for role in ("operator", "researcher", "auditor")
        )
        login = {"FEDTWIN_URL": url, "FEDTWIN_KEY": keys["operator"]}
        study, release, sites = self._train(STUDY_FILE, operator, login)
        with phase("Cohort") as line:
            files = self._request_cohort(line, researcher, release, COHORT_PATIENTS, "cohort")
        pictures = self._pictures(operator, researcher, login)
        with phase("Audit") as line:
            ledger, command, verdict = self._audit(line, auditor)
        with phase("Report") as line:
            compared = self._request_cohort(line, researcher, release, len(patients), "compared")
            facts = ReportFacts(
                study=study,
                release=release,
                sites=sites,
                phases=self._display.times,
                verdict=verdict,
                audit_command=command,
                cohort=_read(files),
                cohort_files=[file.name for file in files],
                pictures=pictures,
            )
            report = self.folder / "report.html"
            report.write_text(render_report(facts, real=patients, compared=_read(compared)))
            line.say(f"{report.stat().st_size / 1000:.0f} kB, compared on {len(patients):,} further patients")
        return DemoResult(
            url=url,
            keys=keys,
            release=release,
            sites=sites,
            cohort_files=files,
            report=report,
            ledger=ledger,
            verdict=verdict,
            next_commands=self._next_commands(url, keys, release, command),
        )

    def _train(
        self, file: Path, operator: ApiClient, login: dict[str, str], *, prefix: str = ""
    ) -> tuple[Study, str, tuple[SitePrivacy, ...]]:
        """One study from its definition to a published release; what each hospital spent."""
        phase = self._display.phase
        with phase(f"{prefix}Study") as line:
            study = self._define(line, file, operator, login)
        with phase(f"{prefix}Approval") as line:
            run = self._ask_hospitals(line, operator, study, login)
        release, sites = follow_run(
            operator, run, study, display=self._display, alive=self.processes.check, prefix=prefix
        )
        with phase(f"{prefix}Release") as line:
            fedtwin("study", "publish", release, environment=login)
            line.say(f"{release[:19]}..., published by the operator")
        return study, release, sites

    def _pictures(self, operator: ApiClient, researcher: ApiClient, login: dict[str, str]) -> PictureStudy:
        """The second study: rows with pictures."""
        study, release, sites = self._train(DIGITS_STUDY, operator, login, prefix="Pictures: ")
        with self._display.phase("Pictures: Cohort") as line:
            files = self._request_cohort(
                line, researcher, release, COHORT_PICTURES, "pictures", formats=("png",)
            )
            archive = next(file for file in files if file.name == "images-png.zip")
            real, held_out = load_scans()
            facts = picture_facts(real, read_pictures(archive), held_out)
            line.say(
                f"{COHORT_PICTURES:,} pictures; a classifier trained on them reads {facts.accuracy:.1%} of "
                f"{facts.num_held_out} real scans that no hospital had"
            )
        return PictureStudy(study=study, release=release, sites=sites, facts=facts)

    def _define(self, line: PhaseLine, file: Path, operator: ApiClient, login: dict[str, str]) -> Study:
        line.say("calibrating the noise to the budget")
        fedtwin("study", "create", file, environment=login)
        name = Study.from_toml(file.read_text()).name
        study = Study.from_dict(operator.get(f"/studies/{name}")["definition"])
        line.say(
            f"{study.name}: {study.modality}, epsilon {study.privacy.epsilon}, "
            f"delta {study.privacy.delta}, {study.num_rounds} round{'s' if study.num_rounds > 1 else ''}"
        )
        return study

    def _ask_hospitals(
        self, line: PhaseLine, operator: ApiClient, study: Study, login: dict[str, str]
    ) -> str:
        """A first try shows the hospitals what is wanted and what it would cost; then their people decide."""
        line.say("asking the hospitals")
        run = fedtwin("study", "run", study.name, environment=login).strip()
        for _ in range(ASK_AT_MOST):
            state = poll(
                lambda: operator.get(f"/runs/{run}"),
                until=lambda state: state["state"] not in {"queued", "running"},
                alive=self.processes.check,
                what="the hospitals' answer",
                timeout_seconds=ANSWER_SECONDS,
            )
            if state["state"] != "failed":
                raise SurfaceError(f"run {run} is {state['state']}, though no hospital has approved it yet")
            decided = at_once(lambda home: _approve(home, study), list(self.parties.sites.values()))
            fedtwin("study", "resume", run, environment=login)
            if all(decided):
                line.say(f"{len(decided)} hospitals saw what it would cost, and said yes")
                return run
        raise SurfaceError(f"not every hospital could be asked: {state['reason']}")

    def _request_cohort(
        self,
        line: PhaseLine,
        researcher: ApiClient,
        release: str,
        num_patients: int,
        name: str,
        *,
        formats: Sequence[str] = ("csv", "parquet"),
    ) -> tuple[Path, ...]:
        asked = {"release": release, "num_patients": num_patients, "formats": list(formats)}
        accepted = researcher.post("/cohorts", asked)
        place = accepted.headers["Location"]
        done = poll(
            lambda: researcher.get(place),
            until=lambda cohort: cohort["state"] not in {"queued", "running"},
            alive=self.processes.check,
            what=f"a cohort of {num_patients}",
            timeout_seconds=COHORT_SECONDS,
        )
        if done["state"] != "completed":
            raise SurfaceError(f"cohort {place} is {done['state']}: {done['reason']}")
        folder = self.folder / name
        folder.mkdir()
        files = tuple(folder / Path(file["name"]).name for file in done["files"])
        for file, target in zip(done["files"], files, strict=True):
            researcher.download(file["url"], target)
        line.say(f"{num_patients:,} patients: {', '.join(file.name for file in files)}")
        return files

    def _audit(self, line: PhaseLine, auditor: ApiClient) -> tuple[Path, str, str]:
        """As an outsider: an export, the public key, and no server."""
        ledger = self.folder / "ledger.zip"
        auditor.download("/ledger/export", ledger)
        line.say("recomputing every epsilon")
        arguments = ("audit", "verify", str(ledger), "--key", self.parties.ledger_key)
        verdict = fedtwin(*arguments).strip()
        line.say(verdict.splitlines()[-1])
        shown = shlex.join(["fedtwin", "audit", "verify", ledger.name, "--key", self.parties.ledger_key])
        return ledger, shown, verdict

    def _next_commands(
        self, url: str, keys: Mapping[str, str], release: str, audit_command: str
    ) -> tuple[str, ...]:
        site = next(iter(self.parties.sites.values()))
        command = shlex.quote(shown_command())
        audit = audit_command.replace("ledger.zip", shlex.quote(str(self.folder / "ledger.zip")))
        return (
            f"export FEDTWIN_URL={url} FEDTWIN_KEY={keys['researcher']}",
            f"{command} cohort request --release {release} -n 500 --where 'age >= 80 and married'",
            f"{command} site spent --home {shlex.quote(str(site))}",
            command + audit.removeprefix("fedtwin"),
        )


def _approve(home: Path, study: Study) -> bool:
    """Look at what was asked, and say yes; False while nothing was asked yet."""
    if study.name not in fedtwin("site", "requests", "--home", home):
        return False
    fedtwin("site", "approve", "--home", home, study.name, "--by", "demo data manager")
    return True


def _read(files: Sequence[Path]) -> pd.DataFrame:
    """The CSV file among a cohort's files."""
    return pd.read_csv(next(file for file in files if file.suffix == ".csv"))
