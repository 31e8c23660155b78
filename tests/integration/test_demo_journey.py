"""`fedtwin demo` as a new user runs it: to the end, stopped in the middle, and with a process killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from privacy.cli.supervisor import ProcessFailedError
from server.api_client import ApiClient
from server.demo.display import PhaseLine
from server.demo.parties import STUDY_FILE, Parties
from server.demo.processes import DemoProcesses
from server.demo.surface import SurfaceError, fedtwin, fedtwin_command, poll, shown_command

SITES = ("lakeside", "hillcrest", "northgate")


def processes_of(home: Path) -> list[str]:
    """Command lines of processes that have the folder in their arguments or their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = entry.joinpath("cmdline").read_bytes() + entry.joinpath("environ").read_bytes()
            if str(home).encode() in words and entry.name != str(os.getpid()):
                found.append(entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        fedtwin_command("demo", "--home", home, *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(demo: subprocess.Popen[str], text: str, lines: list[str]) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def end(demo: subprocess.Popen[str], lines: list[str]) -> int:
    assert demo.stdout is not None
    lines.extend(demo.stdout)
    return demo.wait(60)


def login(told: str, role: str) -> dict[str, str]:
    url = re.search(r"API\s+(http\S+?)/docs", told)[1]
    return {"FEDTWIN_URL": url, "FEDTWIN_KEY": re.search(rf"^\s+{role}\s+(ftw_\S+)", told, flags=re.M)[1]}


def watch(operator: dict[str, str], run: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    api = ApiClient(operator["FEDTWIN_URL"], operator["FEDTWIN_KEY"])
    return poll(
        lambda: api.get(f"/runs/{run}"), until=until, alive=lambda: None, what=run, timeout_seconds=600
    )


def ended(operator: dict[str, str], run: str) -> dict[str, Any]:
    return watch(operator, run, lambda state: state["state"] in {"failed", "completed", "stopped"})


def reached(operator: dict[str, str], run: str, *, round_number: int) -> None:
    """Return once that round is recorded, so that the next one is under way."""
    state = watch(
        operator,
        run,
        lambda state: state["state"] == "failed" or len(state["recorded_rounds"]) >= round_number,
    )
    assert state["state"] != "failed", state["reason"]


def kill(word: bytes, home: Path) -> None:
    """SIGKILL the process of a home whose command line has the word."""
    killed = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word in entry.joinpath("cmdline").read_bytes() and str(home).encode() in (
                entry.joinpath("environ").read_bytes()
            ):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    assert killed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_cannot_start_is_named_with_its_log_and_nothing_is_left(tmp_path):
    processes = DemoProcesses(Parties.within(tmp_path), tmp_path / "logs")
    try:
        with pytest.raises(ProcessFailedError) as failed:
            processes.start(PhaseLine(title="Processes"))
    finally:
        processes.stop()
    told = processes.explain(str(failed.value))
    assert re.search(r"The process that failed is '(coordinator|lakeside|hillcrest|northgate)'", told)
    assert str(tmp_path / "logs") in told
    assert "fedtwin:" in told
    assert processes_of(tmp_path) == []


def test_a_log_that_an_error_names_is_quoted(tmp_path):
    parties = Parties.within(tmp_path)
    (parties.coordinator / "logs").mkdir(parents=True)
    (parties.coordinator / "logs" / "jobs.log").write_text("fine\nthe disk is full\n")
    told = DemoProcesses(parties, tmp_path / "logs").explain("a cohort failed; see logs/jobs.log")
    assert "the disk is full" in told
    assert str(parties.coordinator / "logs" / "jobs.log") in told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_in_the_first_phase_ends_at_once_and_leaves_nothing(tmp_path):
    demo, lines = start(tmp_path / "demo", "--exit"), []
    read_until(demo, "fedtwin demo in", lines)
    time.sleep(1.0)
    demo.send_signal(signal.SIGINT)
    assert end(demo, lines) == 130, "".join(lines)
    assert processes_of(tmp_path) == []


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo") / "demo-run"


@pytest.fixture(scope="module")
def told(home) -> Iterator[str]:
    """What a demo that stays up has printed; it ends with Ctrl-C when the last test is done."""
    demo, lines = start(home), []
    try:
        read_until(demo, "Everything stays up until Ctrl-C", lines)
        yield "".join(lines)
        demo.send_signal(signal.SIGINT)
        assert end(demo, lines) == 0, "".join(lines)
        assert processes_of(home) == []
    finally:
        demo.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("demo")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestWholeDemo:
    """One demo, looked at from all sides while it stays up."""

    def test_every_hospital_spent_no_more_than_the_study_allows(self, told):
        spent = {name: float(value) for name, value in re.findall(r"│ (\w+)\s+│ (\d\.\d+) │ ", told)}
        assert set(spent) == set(SITES)
        assert all(2.5 < value <= 3.0 for value in spent.values())

    def test_the_cohort_has_a_thousand_patients_in_both_formats(self, told, home):
        csv, parquet = (
            pd.read_csv(home / "cohort" / "cohort.csv"),
            pd.read_parquet(home / "cohort" / "cohort.parquet"),
        )
        assert len(csv) == len(parquet) == 1000
        assert list(csv.columns) == list(parquet.columns)
        assert "patient_id" not in csv.columns
        assert (csv["private_insurance"] | ~csv["employer_insurance"]).all()  # the study's constraint

    def test_the_report_is_closer_than_independent_columns(self, told, home):
        page = (home / "report.html").read_text()
        figures = dict(re.findall(r'rowheader">([\w ]+)</span>.*?<b>([\d.]+)</b>', page))
        assert float(figures["synthetic patients"]) < 0.7 * float(figures["independent columns"])
        assert "For the demo only" in page

    def test_a_classifier_reads_real_scans_after_seeing_synthetic_ones_only(self, told, home):
        page = (home / "report.html").read_text()
        read = float(re.search(r"<b>([\d.]+) %</b> of 450 real scans", page)[1])
        assert read > 60  # 10 by chance
        assert (home / "pictures" / "images-png.zip").stat().st_size > 100_000

    def test_the_ledger_verifies_and_one_changed_byte_breaks_it(self, told, home, tmp_path):
        key = json.loads((home / "coordinator" / "federation.json").read_text())["ledger_key"]
        assert "Everything that could be checked held." in fedtwin(
            "audit", "verify", home / "ledger.zip", "--key", key
        )
        with (
            zipfile.ZipFile(home / "ledger.zip") as whole,
            zipfile.ZipFile(tmp_path / "bad.zip", "w") as broken,
        ):
            for name in whole.namelist():
                data = bytearray(whole.read(name))
                if name.startswith("tile/entries/"):
                    data[data.index(b'"hillcrest"') + 1] ^= 1
                broken.writestr(name, bytes(data))
        ended = subprocess.run(
            fedtwin_command("audit", "verify", tmp_path / "bad.zip", "--key", key),
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 1

    def test_every_hospitals_own_record_holds_and_shows_every_round(self, told, home):
        for name in SITES:
            shown = fedtwin("site", "spent", "--home", home / name / "site")
            assert "The record's hash chain holds." in shown

    def test_each_hospitals_secrets_are_private_to_its_owner(self, told, home):
        for name in SITES:
            files = [*(home / name / "site" / "keys").iterdir(), home / name / "patients.csv"]
            assert all(file.suffix == ".pub" or file.stat().st_mode & 0o077 == 0 for file in files)

    def test_a_key_opens_only_its_own_role(self, told):
        url = re.search(r"API\s+(http\S+?)/docs", told)[1]
        keys = dict(re.findall(r"^\s+(operator|researcher|auditor)\s+(ftw_\S+)", told, flags=re.M))

        def status(key: str, path: str) -> int:
            request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {key}"})
            try:
                return int(urllib.request.urlopen(request).status)
            except urllib.error.HTTPError as error:
                return error.code

        assert status(keys["auditor"], "/v1/ledger/checkpoint") == 200
        assert status(keys["researcher"], "/v1/ledger/checkpoint") == 403
        assert status(keys["researcher"], "/v1/releases") == 200
        assert status("ftw_nobody", "/v1/releases") == 401

    def test_every_command_that_it_tells_to_try_next_works(self, told, tmp_path):
        commands = told.partition("Try next, in another terminal:\n")[2].partition("\n\n")[0]
        assert len(commands.splitlines()) == 4
        script = commands.replace(shown_command(), str(Path(fedtwin_command()[0])))
        ended = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-1000:]
        drawn = pd.read_csv(next(tmp_path.glob("cohort-*/cohort.csv")))
        assert len(drawn) == 500
        assert drawn["age"].min() >= 80
        assert drawn["married"].all()

    def test_no_log_holds_a_patient_or_a_key(self, told, home):
        logs = [log.read_text(errors="replace") for log in home.rglob("*.log")]
        assert logs
        for text in logs:
            assert not re.search(r"\bP\d{5}\b", text)
            assert not re.search(r"ftw_[a-z0-9]{10}_", text)

    def test_a_second_demo_in_the_same_folder_is_told_so(self, told, home):
        ended = subprocess.run(
            fedtwin_command("demo", "--exit", "--home", home), capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1
        assert "a demo is running in" in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("demo")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestAdversity:
    """Bad requests and killed processes while the same demo stays up."""

    @pytest.fixture(scope="class")
    def operator(self, told) -> dict[str, str]:
        return login(told, "operator")

    @pytest.fixture(scope="class")
    def researcher(self, told) -> dict[str, str]:
        return login(told, "researcher")

    def test_an_unknown_study_is_named_with_those_there_are(self, operator):
        with pytest.raises(SurfaceError, match=r"(?s)status 1.*nothing-such.*demo-65plus"):
            fedtwin("study", "run", "nothing-such", environment=operator)

    @pytest.mark.parametrize("num_patients", [0, -1, 10**12])
    def test_a_cohort_of_an_impossible_size_is_refused(self, told, researcher, num_patients):
        release = re.search(r"sha256:[0-9a-f]{64}", told.partition("Try next")[2])[0]
        with pytest.raises(SurfaceError, match=f"(?s)status 1.*num_patients is {num_patients}"):
            fedtwin(
                "cohort", "request", "--release", release, "-n", str(num_patients), environment=researcher
            )

    def test_a_wrong_key_and_a_wrong_role_are_told_so(self, researcher):
        with pytest.raises(SurfaceError, match=r"(?s)status 1.*not a key of this coordinator"):
            fedtwin("study", "list", environment={**researcher, "FEDTWIN_KEY": "ftw_nobody"})
        with pytest.raises(SurfaceError, match=r"(?s)status 1.*role"):
            fedtwin("study", "run", "demo-65plus", environment=researcher)

    def test_a_second_run_is_refused_by_every_hospitals_budget_and_spends_nothing(self, told, home, operator):
        before = [fedtwin("site", "spent", "--home", home / name / "site") for name in SITES]
        run = fedtwin("study", "run", "demo-65plus", environment=operator).strip()
        state = ended(operator, run)
        assert state["state"] == "failed"
        assert "0 of at least 2 sites were ready" in state["reason"]
        for name in SITES:
            assert name in state["reason"]
        assert [fedtwin("site", "spent", "--home", home / name / "site") for name in SITES] == before

    def test_a_run_outlives_a_killed_site_worker_and_a_killed_superlink(self, told, home, operator, tmp_path):
        study = re.sub(r"(?m)^epsilon = .*$", "epsilon = 0.5", STUDY_FILE.read_text())
        study = study.replace('"demo-65plus"', '"second"').replace("components = 400", "components = 50")
        (tmp_path / "second.toml").write_text(study)
        fedtwin("study", "create", tmp_path / "second.toml", environment=operator)
        run = fedtwin("study", "run", "second", environment=operator).strip()
        assert ended(operator, run)["state"] == "failed"
        for name in SITES:
            fedtwin("site", "approve", "--home", home / name / "site", "second", "--by", "a test")
        fedtwin("study", "resume", run, environment=operator)
        reached(operator, run, round_number=1)
        kill(b"client.worker", home / "hillcrest" / "site")
        reached(operator, run, round_number=2)
        kill(b"flower-superlink", home / "coordinator")
        state = ended(operator, run)
        for _ in range(3):
            if state["state"] == "failed":
                fedtwin("study", "resume", run, environment=operator)
                state = ended(operator, run)
        assert state["state"] == "completed", state["reason"]
        assert all(float(spend["spent_epsilon"]) <= 0.5 for spend in state["spends"])
        for name in SITES:
            assert "The record's hash chain holds." in fedtwin(
                "site", "spent", "--home", home / name / "site"
            )
        auditor = login(told, "auditor")
        ApiClient(auditor["FEDTWIN_URL"], auditor["FEDTWIN_KEY"]).download(
            "/ledger/export", tmp_path / "ledger.zip"
        )
        key = json.loads((home / "coordinator" / "federation.json").read_text())["ledger_key"]
        fedtwin("audit", "verify", tmp_path / "ledger.zip", "--key", key)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("demo")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_hospital_ends_the_demo_with_its_name_and_log(tmp_path):
    home = tmp_path / "demo"
    demo, lines = start(home, "--exit"), []
    read_until(demo, "done  Processes", lines)
    victim = str(home / "hillcrest" / "site").encode()
    for entry in Path("/proc").glob("[0-9]*"):
        if b"site\0up\0" in (words := entry.joinpath("cmdline").read_bytes()) and victim in words:
            os.kill(int(entry.name), signal.SIGKILL)
    assert end(demo, lines) == 1
    told = "".join(lines)
    assert "The process that failed is 'hillcrest'" in told
    assert str(home / "logs" / "hillcrest.log") in told
    assert processes_of(home) == []
