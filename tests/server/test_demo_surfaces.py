"""The demo's folder, display and surfaces: one demo at a time, nothing foreign removed, failures in words."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from server.api_client import ApiClient
from server.coordinator_error import CoordinatorError
from server.demo.display import Display
from server.demo.folder import LOCK_FILE, FolderError, demo_folder
from server.demo.surface import SurfaceError, at_once, fedtwin, poll


def test_a_second_demo_starts_fresh(tmp_path):
    home = tmp_path / "demo-run"
    with demo_folder(home) as folder:
        (folder / "site").mkdir()
        (folder / "site" / "old.csv").write_text("old")
    with demo_folder(home) as folder:
        assert [entry.name for entry in folder.iterdir()] == [LOCK_FILE]


def test_keep_moves_the_earlier_demo_aside(tmp_path):
    home = tmp_path / "demo-run"
    for run in ("first", "second", "third"):
        with demo_folder(home, keep=True) as folder:
            (folder / "name").write_text(run)
    assert (tmp_path / "demo-run-1" / "name").read_text() == "first"
    assert (tmp_path / "demo-run-2" / "name").read_text() == "second"
    assert (home / "name").read_text() == "third"


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="no demo made"), demo_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_link_in_an_old_folder_does_not_lead_the_cleaning_elsewhere(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    with demo_folder(tmp_path / "demo") as folder:
        (folder / "link").symlink_to(tmp_path / "kept")
    with demo_folder(tmp_path / "demo"):
        pass
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_a_demo_that_is_alive_keeps_its_folder_from_another_process(tmp_path):
    program = (
        "import sys, pathlib; from server.demo.folder import demo_folder\n"
        "with demo_folder(pathlib.Path(sys.argv[1])): pass"
    )
    with demo_folder(tmp_path / "demo") as folder:
        (folder / "file").write_text("in use")
        other = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
        )
        assert other.returncode != 0
        assert f"a demo is running in {folder} (process {os.getpid()})" in other.stderr
        assert (folder / "file").exists()


def test_a_phase_is_timed_and_a_failed_one_is_not_counted_as_done():
    display = Display(Console(file=io.StringIO(), force_terminal=False))
    with display.running():
        with display.phase("first") as line:
            line.say("all well")
        with pytest.raises(KeyError), display.phase("second"):
            raise KeyError
    assert [(time.title, time.detail) for time in display.times] == [("first", "all well")]


def test_the_live_display_draws_every_phase(capsys):
    console = Console(force_terminal=True, width=100)
    display = Display(console)
    with display.running(), display.phase("Measure") as line:
        line.say("round 1 of 4", percent=25.0)
    assert "Measure" in capsys.readouterr().out


def test_a_command_that_fails_is_quoted():
    with pytest.raises(
        SurfaceError, match=r"(?s)`fedtwin nonsense` ended with status 2:.*no group 'nonsense'"
    ):
        fedtwin("nonsense")


def test_a_command_that_works_gives_its_output():
    assert fedtwin("--version").startswith("fedtwin ")


class Problem(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"detail": f"no {self.path}", "auth": self.headers["Authorization"]}).encode()
        self.send_response(404 if self.path == "/v1/missing" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_an_answer_that_is_an_error_is_quoted_and_the_key_is_sent():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Problem)
    threading.Thread(target=server.serve_forever).start()
    try:
        api = ApiClient(f"http://127.0.0.1:{server.server_port}", "ftw_key")
        assert api.get("/there")["auth"] == "Bearer ftw_key"
        with pytest.raises(CoordinatorError, match="no /v1/missing"):
            api.get("/missing")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(CoordinatorError, match="nobody answers"):
        ApiClient(f"http://127.0.0.1:{server.server_port}", "ftw_key").get("/v1/there")


def test_polling_ends_when_something_has_died():
    def dead() -> None:
        raise SurfaceError("the site died")

    with pytest.raises(SurfaceError, match="the site died"):
        poll(lambda: 1, until=lambda _: False, alive=dead, what="the run", timeout_seconds=5)


def test_polling_ends_when_the_time_is_over():
    with pytest.raises(SurfaceError, match="the run took longer than 0 s; last seen: 7"):
        poll(lambda: 7, until=lambda _: False, alive=lambda: None, what="the run", timeout_seconds=0)


def test_work_that_has_not_begun_is_dropped_once_one_fails():
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise SurfaceError("the first failed")
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(SurfaceError, match="the first failed"):
        at_once(work, list(range(100)))
    assert len(done) < 50
    assert at_once(lambda number: number + 1, [1, 2, 3]) == [2, 3, 4]
