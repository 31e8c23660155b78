"""A researcher's client over real HTTP: catalogue, previews, cohorts, connections that drop, and the command line."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import uvicorn
from typer.testing import CliRunner

from privacy.merkle import LedgerVerificationError
from server import cohorts, jobs, releases
from server.api.app import create_app
from server.cli.cohort import app
from server.keys import create_key
from server.researcher import Coordinator, CoordinatorError, Pictures, UnreadableCohortError, verify_folder
from server.researcher.progress import bar_html
from server.researcher.rendering import Listing
from server.store import Store

ROOT = Path(__file__).parents[2]
OLDER_WOMEN = "age >= 60 and sex == 'female'"


class NoFlower:
    """Starts no run; nothing here trains."""

    def start(self, run_id: str) -> str:
        raise AssertionError(run_id)

    def admit_sites(self) -> None:
        pass


@dataclass
class Cutter:
    """A way to the API that drops connections.

    Attributes:
        cut: of a request's line, after how many bytes of the answer's body to hang up; None: never.
        seen: (request line, Range header, bytes of the body that were let through), in order.
    """

    upstream: int
    cut: Callable[[str], int | None] = lambda _: None
    seen: list[tuple[str, str | None, int]] = field(default_factory=list)

    def serve(self) -> http.server.ThreadingHTTPServer:
        cutter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                line = f"{self.command} {self.path}"
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                back = http.client.HTTPConnection("127.0.0.1", cutter.upstream)
                back.request(self.command, self.path, body, dict(self.headers))
                answer = back.getresponse()
                data = answer.read()
                most = cutter.cut(line)
                let_through = data if most is None else data[:most]
                cutter.seen.append((line, self.headers.get("range"), len(let_through)))
                if most == 0:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(let_through)
                if most is not None:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            do_GET = do_POST = do_DELETE = pass_on  # noqa: N815 - as http.server names them

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@dataclass
class Served:
    """The real API on a port, and its release."""

    url: str
    port: int
    key: str
    release: str
    store: Store
    stopped: threading.Event = field(default_factory=threading.Event)

    def hub(self, **options: object) -> Coordinator:
        return Coordinator(self.url, key=self.key, **options)

    def start_jobs(self) -> threading.Thread:
        worker = threading.Thread(target=jobs.work, args=(self.store, self.stopped))
        worker.start()
        return worker

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "FEDTWIN_URL": self.url,
            "FEDTWIN_KEY": self.key,
            "COLUMNS": "200",
        }

    def fedtwin(self, *arguments: str, status: int = 0, cwd: Path, typed: str = "") -> str:
        with contextlib.chdir(cwd):
            ended = CliRunner().invoke(app, arguments, env=self.environment(), input=typed)
        assert ended.exit_code == status, ended.output
        return ended.output


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"  # what is tested here does not depend on the kind


@pytest.fixture
def served(store: Store, scenario, facts) -> Iterator[Served]:
    release = scenario.release().digest
    key = create_key(store, role="researcher", owner="rita", lifetime=None).text
    config = uvicorn.Config(
        create_app(store=store, starter=NoFlower(), facts=facts), port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    made = Served(url=f"http://127.0.0.1:{port}", port=port, key=key, release=release, store=store)
    try:
        yield made
    finally:
        made.stopped.set()
        server.should_exit = True
        thread.join()
        listening.close()
        config.app.state.previewer.close()


@pytest.fixture
def hub(served: Served) -> Iterator[Coordinator]:
    worker = served.start_jobs()
    yield served.hub()
    served.stopped.set()
    worker.join()


@pytest.fixture
def behind(served: Served) -> Iterator[tuple[Cutter, Coordinator]]:
    cutter = Cutter(upstream=served.port)
    server = cutter.serve()
    worker = served.start_jobs()
    yield cutter, Coordinator(f"http://127.0.0.1:{server.server_port}", key=served.key)
    server.shutdown()
    server.server_close()
    served.stopped.set()
    worker.join()


def test_it_imports_no_framework_and_no_torch_until_and_after_a_table_is_wanted() -> None:
    heavy = "{'torch', 'flwr', 'sqlalchemy', 'fastapi', 'opacus', 'client', 'models'}"
    program = (
        "import sys; from server.researcher import Coordinator, verify_folder\n"
        f"assert not ({heavy} | {{'pandas', 'pyarrow'}}) & set(sys.modules)\n"
        "import pandas, pyarrow.parquet, privacy.cohort_certificate\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.stdout.strip() == "[]", ended.stderr


def test_from_the_catalogue_to_a_table(hub: Coordinator, served: Served) -> None:
    (release,) = hub.releases("heart hospitals", column="age")
    assert not hub.releases("no such words")
    assert release.digest == served.release
    cohort = hub.request(release, 500, where=OLDER_WOMEN, seed=7)
    table = cohort.table()
    assert list(table.columns) == ["sex", "age", "ill"]
    assert len(table) == 500
    assert table["age"].min() >= 60
    assert set(table["sex"]) == {"female"}
    assert table.attrs["fedtwin"]["synthetic"] is True
    assert cohort.arrow().schema.metadata[b"fedtwin.synthetic"] == b"true"
    again = hub.request(served.release, 500, where=[OLDER_WOMEN], seed=7)
    assert again.id != cohort.id
    pd.testing.assert_frame_equal(again.table(), table)


def test_what_is_shown_says_what_it_is_and_escapes(hub: Coordinator) -> None:
    details = hub.release(hub.releases()[0])
    assert "epsilon 4 at delta 1e-05" in repr(details)
    assert [one.name for one in details.columns] == ["sex", "age", "ill"]
    assert "0 to 99 years" in repr(details.columns)
    assert "true, false; may be absent" in details._repr_html_()
    cohort = hub.request(details, 20, where="age < 50")
    assert "age &lt; 50" in cohort._repr_html_()
    assert "age < 50" in repr(hub.cohorts())
    assert "age &lt; 50" in hub.cohorts()._repr_html_()
    assert repr(Listing()) == "(none)"
    assert bar_html("<b>", 33.3, "2 s left").startswith("&lt;b&gt; <progress")
    cohort.wait()


def test_a_preview_is_a_table_at_once(hub: Coordinator, served: Served) -> None:
    shown = hub.preview(served.release, where=OLDER_WOMEN, columns=["age"])
    assert shown.shape == (20, 1)
    assert shown["age"].min() >= 60
    assert 0 < shown.attrs["share_of_release"] < 1
    assert not hub.cohorts()


def test_errors_carry_the_problem_and_read_well(hub: Coordinator, served: Served) -> None:
    with pytest.raises(
        CoordinatorError, match=r"^num_patients is 0: .*greater than or equal to 1$"
    ) as caught:
        hub.request(served.release, 0)
    error = caught.value
    assert (error.status, error.type, error.title) == (422, "urn:fedtwin:problem:invalid", "Invalid request")
    assert [one.field for one in error.errors] == ["num_patients"]
    with pytest.raises(CoordinatorError, match="weight"):
        hub.preview(served.release, where="weight > 3")
    with pytest.raises(CoordinatorError, match="not a key of this coordinator"):
        Coordinator(served.url, key="ftw_nobody").releases()
    with pytest.raises(CoordinatorError, match="no release"):
        hub.release("sha256:" + "0" * 64)
    with pytest.raises(CoordinatorError, match="neither encrypted"):
        Coordinator("http://coordinator.example.org", key="ftw_x")
    with pytest.raises(CoordinatorError, match=r"there is no key; give key=..., or set FEDTWIN_KEY"):
        Coordinator(served.url)
    with pytest.raises(CoordinatorError, match="https://coordinator"):
        Coordinator("coordinator.example.org", key="ftw_x")
    with pytest.raises(CoordinatorError, match="read from parquet"):
        hub.request(served.release, 5, formats=("csv",)).table()


def test_who_has_the_wrong_address_hears_so_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(CoordinatorError, match="nobody answers"):
            Coordinator(f"http://127.0.0.1:{taken.getsockname()[1]}", key="ftw_x").releases()
        assert time.monotonic() - began < 5


def test_a_cohort_can_be_cancelled_and_says_so(served: Served) -> None:
    cohort = served.hub().request(served.release, 50)
    with pytest.raises(CoordinatorError, match=r"queued at 0 % .*wait again"):
        cohort.wait(timeout_seconds=0.1)
    cohort.cancel()
    assert cohort.last_status.state == "cancelled"
    with pytest.raises(CoordinatorError, match="is cancelled"):
        cohort.table()


def test_what_is_no_longer_needed_is_deleted_and_its_certificate_stays(hub, served: Served, tmp_path) -> None:
    cohort = hub.request(served.release, 30, seed=4)
    patients = cohort.table()
    cohort.delete()
    assert cohort.last_status.state == "deleted"
    assert "deleted" in repr(cohort)
    assert cohort.certificate()["statement"]["cohort"] == cohort.id
    with pytest.raises(CoordinatorError, match=r"is deleted: its files were removed.* seed 4"):
        cohort.download(tmp_path)
    with pytest.raises(CoordinatorError, match="is deleted; only a queued or running one"):
        cohort.cancel()
    assert hub.request(served.release, 30, seed=4).table().equals(patients)
    with pytest.raises(CoordinatorError, match="FEDTWIN_LEDGER_KEY"):
        cohort.verify()


def test_pictures_of_a_release_are_shown_by_a_notebook(hub, served: Served) -> None:
    with pytest.raises(CoordinatorError, match="no picture of release"):
        hub.pictures(served.release)
    shown = Pictures(png=b"\x89PNG")
    assert shown._repr_png_() == b"\x89PNG"
    assert "4 bytes of PNG" in repr(shown)


def test_a_request_whose_answer_is_lost_makes_one_cohort(behind) -> None:
    cutter, hub = behind
    lost = iter([0, 0])
    cutter.cut = lambda line: next(lost, None) if line == "POST /v1/cohorts" else None
    cohort = hub.request(hub.releases()[0], 30)
    unheard = iter([0, 20])
    cutter.cut = lambda line: next(unheard, None) if line == f"GET /v1/cohorts/{cohort.id}" else None
    assert len(cohort.table()) == 30
    assert [line for line, _, _ in cutter.seen].count("POST /v1/cohorts") == 3
    assert [one.id for one in hub.cohorts()] == [cohort.id]
    assert (
        hub.request(hub.releases()[0], 30, name="mine").id
        == hub.request(hub.releases()[0], 30, name="mine").id
    )


def test_a_download_that_breaks_off_goes_on_and_loads_nothing_twice(behind, served, tmp_path: Path) -> None:
    cutter, hub = behind
    cohort = hub.request(served.release, 20_000, formats=("csv", "parquet")).wait()
    size = {one.name: one.num_bytes for one in cohort.last_status.files}["cohort.csv"]
    cuts = iter([size // 3, size // 3])
    cutter.cut = lambda line: next(cuts, None) if line.endswith("cohort.csv") else None
    folder = cohort.download(tmp_path)
    asked = [(where, sent) for line, where, sent in cutter.seen if line.endswith("cohort.csv")]
    assert [where for where, _ in asked] == [None, f"bytes={size // 3}-", f"bytes={2 * (size // 3)}-"]
    assert sum(sent for _, sent in asked) == size
    assert len(pd.read_csv(folder / "cohort.csv")) == 20_000
    assert not list(folder.glob("*.part"))
    cutter.seen.clear()
    cohort.download(tmp_path)  # all is here
    cohort.table()
    assert not [line for line, _, _ in cutter.seen if "/files/" in line]


def test_a_download_ends_as_the_file_that_was_promised_or_not_at_all(hub, served, tmp_path: Path) -> None:
    cohort = hub.request(served.release, 200, formats=("csv",)).wait()
    draft = tmp_path / cohort.id / "cohort.csv.part"
    draft.parent.mkdir()
    draft.write_bytes(b"another file's beginning")
    with pytest.raises(CoordinatorError, match=r"cohort.csv arrived with the digest"):
        cohort.download(tmp_path)
    assert not draft.exists()
    assert not (draft.parent / "cohort.csv").exists()
    folder = cohort.download(tmp_path)
    whole = (folder / "cohort.csv").read_bytes()
    (folder / "cohort.csv").unlink()
    draft.write_bytes(whole)  # ended just before it got its name
    assert (cohort.download(tmp_path) / "cohort.csv").read_bytes() == whole


def test_a_file_name_that_leads_elsewhere_is_refused(hub, served, tmp_path: Path, store) -> None:
    cohort = hub.request(served.release, 5).wait()
    with store.database.write() as session:
        row = session.get(cohorts.CohortRow, cohort.id)
        row.files = [{**one, "name": "../../evil"} for one in row.files]
    with pytest.raises(CoordinatorError, match="would lie outside"):
        cohort.download(tmp_path / "in")
    assert not (tmp_path / "evil").exists()


def test_what_was_downloaded_is_checked_offline(hub, served, tmp_path: Path) -> None:
    key = served.store.key.public.text
    cohort = hub.request(served.release, 40, formats=("csv",))
    with pytest.raises(CoordinatorError, match="call download"):
        cohort.verify(key)
    folder = cohort.download(tmp_path)
    checked = cohort.verify(key)
    assert "cohort.csv" in checked.checked
    assert repr(checked).startswith(f"Holds: cohort {cohort.id}, 40 synthetic patients")
    assert cohort.certificate()["statement"]["cohort"] == cohort.id
    with (folder / "cohort.csv").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(LedgerVerificationError, match=r"cohort\.csv"):
        verify_folder(folder, key)
    with pytest.raises(UnreadableCohortError, match=r"no certificate\.json in it"):
        verify_folder(tmp_path, key)
    other = hub.request(served.release, 40).download(tmp_path)
    with pytest.raises(CoordinatorError, match="holds cohort"):
        cohort.verify(key, other)


def test_the_commands_of_a_researcher(hub, served, tmp_path: Path, monkeypatch) -> None:
    assert served.release in served.fedtwin("releases", "--search", "heart", cwd=tmp_path)
    assert "0 to 99 years" in served.fedtwin("release", served.release, cwd=tmp_path)
    shown = served.fedtwin("preview", "--release", served.release, "--where", OLDER_WOMEN, cwd=tmp_path)
    assert "of the release's patients" in shown.casefold()
    wanted = ["--release", served.release, "-n", "50", "--seed", "3", "--columns", "age, sex", "--to", "here"]
    first = served.fedtwin("request", *wanted, "--format", "csv", "--format", "parquet", cwd=tmp_path)
    (folder,) = (path for path in (tmp_path / "here").iterdir() if path.is_dir())
    assert sorted(pd.read_csv(folder / "cohort.csv").columns) == ["age", "sex"]
    assert f"here/{folder.name}/cohort.parquet" in first
    assert [path.name for path in (tmp_path / "here").iterdir()] == [folder.name]  # no mark is left
    assert "50" in served.fedtwin("list", cwd=tmp_path)
    assert "all synthetic" in served.fedtwin("show", folder.name, cwd=tmp_path)
    told = served.fedtwin("cancel", folder.name, cwd=tmp_path, status=1)
    assert told.startswith("fedtwin: ")
    assert "completed" in told
    assert "give it with --key" in served.fedtwin("verify", str(folder), cwd=tmp_path, status=1)
    monkeypatch.setenv("FEDTWIN_LEDGER_KEY", served.store.key.public.text)
    assert "Holds: cohort" in served.fedtwin("verify", str(folder), cwd=tmp_path)
    told = served.fedtwin("delete", folder.name, cwd=tmp_path, typed="n\n", status=1)
    assert "Remove the files of 50 patients" in told
    assert "seed 3 gives the same" in told
    for _ in range(2):
        assert "its files are removed" in served.fedtwin("delete", folder.name, "--yes", cwd=tmp_path)
    assert "deleted" in served.fedtwin("show", folder.name, cwd=tmp_path)
    told = served.fedtwin("resume", folder.name, cwd=tmp_path, status=1)
    assert "ask for it again with seed 3" in told


def test_a_release_is_named_by_its_study_or_not_at_all_where_it_is_the_only_one(
    hub, served, tmp_path
) -> None:
    wanted = ["request", "-n", "5", "--format", "csv", "--seed", "1"]
    first = served.fedtwin(*wanted, cwd=tmp_path)
    assert f"Release {served.release}: Heart disease at three hospitals" in first
    served.fedtwin(*wanted, "--release", "heart", "--to", "other", cwd=tmp_path)
    one, other = tmp_path.glob("cohort-*/cohort.csv"), tmp_path.glob("other/*/cohort.csv")
    assert next(one).read_bytes() == next(other).read_bytes()
    told = served.fedtwin(*wanted, "--release", "hart", cwd=tmp_path, status=1)
    assert "no published release of a study 'hart'" in told
    assert "Studies with one: heart" in told
    releases.withdraw_release(served.store, served.release, reason="for the test")
    assert "Studies with one: none yet" in served.fedtwin(*wanted, cwd=tmp_path, status=1)


def test_a_command_that_was_stopped_goes_on_with_the_same_cohort(served, tmp_path: Path) -> None:
    wanted = ["request", "--release", served.release, "-n", "60", "--format", "csv"]
    first = subprocess.Popen(
        ["fedtwin", "cohort", *wanted],
        env=served.environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    assert "is requested" in first.stdout.readline()
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    assert first.returncode not in (0, None)
    (mark,) = tmp_path.glob(".fedtwin-*")
    key, served.key = served.key, "ftw_nobody"
    served.fedtwin(*wanted, cwd=tmp_path, status=1)
    assert mark.exists()  # a wrong key meanwhile does not make it another request
    served.key = key
    worker = served.start_jobs()
    try:
        second = served.fedtwin(*wanted, cwd=tmp_path)
        assert "going on with cohort" in second
        (made,) = cohorts.list_cohorts(served.store, owner="rita")
        assert (tmp_path / made.id / "cohort.csv").is_file()
        assert served.fedtwin("resume", made.id, cwd=tmp_path).count(made.id) >= 2
        assert "is requested" in served.fedtwin(*wanted, cwd=tmp_path)  # it was whole: another one
    finally:
        served.stopped.set()
        worker.join()


def test_a_request_that_was_refused_leaves_no_mark(served, tmp_path: Path) -> None:
    told = served.fedtwin(
        "request", "--release", served.release, "-n", "5", "--where", "weight > 3", cwd=tmp_path, status=1
    )
    assert "weight" in told
    assert list(tmp_path.glob(".fedtwin-*")) == []
