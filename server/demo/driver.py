"""The main job as its people do it: an operator, three hospitals' data managers, a researcher, an auditor.

Everything goes through the surfaces that those people have, the `fedtwin` command and the HTTP API. The one
exception is the report: it reads the hospitals' files, which only a demo has in one place, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from models.study import Study
from server.demo.data import load_survey, prepare_patients, split_by_site, write_sites
from server.demo.display import Display, PhaseLine
from server.demo.processes import DemoProcesses
from server.demo.report import ReportFacts, SitePrivacy, render_report
from server.demo.surface import Api, SurfaceError, fedtwin, poll

STUDY_FILE = Path(__file__).with_name("study.toml")
CAPS = {"lakeside": 4.0, "hillcrest": 3.0, "northgate": 3.5}  # each hospital's own decision
ROLES = ("operator", "researcher", "auditor")
COHORT_PATIENTS = 1000
RUN_SECONDS = 600.0
COHORT_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What is there once the job is done.

    Attributes:
        url: the API's.
        keys: API key of each role.
        verdict: what `fedtwin audit verify` printed.
    """

    url: str
    keys: Mapping[str, str]
    run: str
    release: str
    sites: tuple[SitePrivacy, ...]
    cohort_files: tuple[Path, ...]
    report: Path
    ledger: Path
    verdict: str

    @property
    def next_commands(self) -> tuple[str, ...]:
        """What each role may try now."""
        researcher = f"FEDTWIN_URL={self.url} FEDTWIN_KEY={self.keys['researcher']}"
        return (
            f"{researcher} fedtwin cohort request --release {self.release} -n 500 --where 'age >= 80'",
            f"fedtwin site spent --home {self.report.parent / self.sites[0].name / 'site'}",
            f"fedtwin audit verify {self.ledger}",
        )


class Demo:
    """One demo in one folder.

    Args:
        folder: empty and ours alone.
        display: where phases are shown.
    """

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder = folder
        self.processes = DemoProcesses(self.coordinator, {name: self.site(name) for name in CAPS})
        self._display = display

    @property
    def coordinator(self) -> Path:
        """The coordinator's home."""
        return self.folder / "coordinator"

    def site(self, name: str) -> Path:
        """A hospital's home; its patients lie beside it, in the hospital's folder."""
        return self.folder / name / "site"

    def run(self) -> DemoResult:
        """The whole job; the processes are still up when it returns.

        Raises:
            SurfaceError: a command or a call failed.
            ProcessFailedError: a process ended.
        """
        phase = self._display.phase
        with phase("Patients") as line:
            patients = self._deal_patients(line)
        with phase("Keys and certificates") as line:
            url, keys = self._create(line)
        with phase("Processes") as line:
            self.processes.start(line)
        operator, researcher = Api(url, keys["operator"]), Api(url, keys["researcher"])
        with phase("Study") as line:
            study = self._define(line, url, keys["operator"], operator)
        run, release, sites = self._train(operator, url, keys["operator"], study)
        with phase("Release") as line:
            fedtwin("study", "publish", release, environment=_login(url, keys["operator"]))
            line.say(f"{release[:19]}..., published by the operator")
        with phase("Cohort") as line:
            files = self._request_cohort(line, researcher, release, COHORT_PATIENTS, self.folder / "cohort")
        with phase("Audit") as line:
            ledger, command, verdict = self._audit(line, Api(url, keys["auditor"]))
        with phase("Report") as line:
            compared = self._request_cohort(
                line, researcher, release, len(patients), self.folder / "compared"
            )
            facts = ReportFacts(
                study=study,
                release=release,
                sites=sites,
                phases=self._display.times,
                verdict=verdict,
                audit_command=command,
                cohort=_read(files),
                cohort_files=[file.name for file in files],
            )
            page = self.folder / "report.html"
            page.write_text(render_report(facts, real=patients, compared=_read(compared)))
            line.say(f"{page.name}, {page.stat().st_size / 1000:.0f} kB")
        return DemoResult(
            url=url,
            keys=keys,
            run=run,
            release=release,
            sites=sites,
            cohort_files=files,
            report=page,
            ledger=ledger,
            verdict=verdict,
        )

    def _deal_patients(self, line: PhaseLine) -> pd.DataFrame:
        line.say("the survey that ships in linearmodels")
        patients = prepare_patients(load_survey())
        parts = split_by_site(patients)
        write_sites(parts, {name: self.site(name).parent for name in parts})
        line.say(f"{len(patients):,} people, each at one of {len(parts)} hospitals")
        return patients

    def _create(self, line: PhaseLine) -> tuple[str, dict[str, str]]:
        home = self.coordinator
        line.say("coordinator")
        fedtwin("server", "init", "--home", home)
        keys = {
            role: fedtwin("server", "key", "--home", home, "--role", role, "--name", f"demo {role}").strip()
            for role in ROLES
        }
        fedtwin("server", "invite", "--home", home)
        invitation = home / "federation.json"
        for name, cap in CAPS.items():
            line.say(name)
            data = self.site(name).parent / "patients.csv"
            fedtwin(
                *("site", "init", "--home", self.site(name), "--name", name, "--federation", invitation),
                *("--data", data, "--patient-id", "patient_id", "--epsilon", str(cap)),
            )
            fedtwin("site", "validate", "--home", self.site(name), STUDY_FILE)
            fedtwin("server", "enrol", "--home", home, self.site(name) / "card.json")
        line.say(f"1 coordinator, {len(CAPS)} hospitals, {len(ROLES)} API keys, made on this machine")
        return str(json.loads(invitation.read_text())["api_url"]), keys

    def _define(self, line: PhaseLine, url: str, key: str, operator: Api) -> Study:
        line.say("calibrating the noise")
        fedtwin("study", "create", STUDY_FILE, environment=_login(url, key))
        name = Study.from_toml(STUDY_FILE.read_text()).name
        study = Study.from_dict(operator.get(f"/v1/studies/{name}")["definition"])
        line.say(
            f"{study.name}: {len(study.table.columns)} columns, epsilon {study.privacy.epsilon}, "
            f"delta {study.privacy.delta}, {study.num_rounds} rounds"
        )
        return study

    def _train(
        self, operator: Api, url: str, key: str, study: Study
    ) -> tuple[str, str, tuple[SitePrivacy, ...]]:
        run = fedtwin("study", "run", study.name, environment=_login(url, key)).strip()
        seen: dict[str, Any] = {}

        def ask() -> dict[str, Any]:
            seen.update(operator.get(f"/v1/runs/{run}"))
            return seen

        def ended(state: Mapping[str, Any]) -> bool:
            if state["state"] in {"failed", "stopped"}:
                raise SurfaceError(f"run {run} {state['state']}: {state['reason']}")
            return bool(state["state"] == "completed")

        for title, phase in (("Measure", "measure"), ("Warm start", "warm-start"), ("Refine", "refine")):
            with self._display.phase(title) as line:

                def moved_on(state: Mapping[str, Any], phase: str = phase, line: PhaseLine = line) -> bool:
                    line.say(_progress(state), percent=float(state["percent"]))
                    order = ("waiting", "measure", "warm-start", "refine", "done")
                    return ended(state) or order.index(state["phase"]) > order.index(phase)

                poll(ask, until=moved_on, alive=self.processes.check, what=title, timeout_seconds=RUN_SECONDS)
                line.say(_phase_summary(study, phase))
        poll(ask, until=ended, alive=self.processes.check, what="the run", timeout_seconds=RUN_SECONDS)
        sites = tuple(
            SitePrivacy(
                name=one["site"],
                spent=float(one["spent_epsilon"]),
                cap=float(one["cap_epsilon"]),
                delta=float(one["spent_delta"]),
            )
            for one in seen["spends"]
        )
        return run, str(seen["release"]), sites

    def _request_cohort(
        self, line: PhaseLine, researcher: Api, release: str, num_patients: int, folder: Path
    ) -> tuple[Path, ...]:
        accepted = researcher.post("/v1/cohorts", {"release": release, "num_patients": num_patients})
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
        folder.mkdir(exist_ok=True)
        files = tuple(
            researcher.download(file["url"], folder / Path(file["name"]).name) for file in done["files"]
        )
        line.say(f"{num_patients:,} patients: {', '.join(file.name for file in files)}")
        return files


def _read(files: Sequence[Path]) -> pd.DataFrame:
    """The CSV file among a cohort's files."""
    return pd.read_csv(next(file for file in files if file.suffix == ".csv"))


def _login(url: str, key: str) -> dict[str, str]:
    return {"FEDTWIN_URL": url, "FEDTWIN_KEY": key}


def _progress(state: Mapping[str, Any]) -> str:
    left = state.get("eta_seconds")
    return f"round {state['round']} of {state['rounds']}" + (f", about {left:.0f} s left" if left else "")


def _phase_summary(study: Study, phase: str) -> str:
    if phase == "measure":
        return f"one exchange, noise multiplier {study.measure.noise_multiplier:.3f} added at each hospital"
    if phase == "warm-start":
        return "a mixture fitted to the summed noisy moments, no patient asked"
    noise = study.refine.noise_multiplier or 0
    return f"{study.refine.rounds} rounds, DP-SGD with noise multiplier {noise:.3f} at each hospital"
