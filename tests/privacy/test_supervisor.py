"""A few processes kept running, and an end without orphans or zombies whichever way it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from privacy.cli import supervisor as module
from privacy.cli.folders import free_port
from privacy.cli.supervisor import ProcessEvent, ProcessFailedError, ProcessSpec, Supervisor

SLEEP = "import time; print('here', flush=True); time.sleep(600)"


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *map(str, arguments))


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], timeout_seconds: float = 10) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Running:
    """Supervisors of one test, stopped at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[ProcessEvent] = []
        self.started: list[Supervisor] = []

    def __call__(self, *specs: ProcessSpec) -> Supervisor:
        supervisor = Supervisor(specs, self.folder)
        supervisor.start(on_event=self.events.append)
        self.started.append(supervisor)
        return supervisor

    def kinds(self, name: str) -> list[str]:
        return [event.kind for event in self.events if event.name == name]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "home" / "logs")
    yield running
    for supervisor in running.started:
        supervisor.stop()
    assert not any(alive(event.pid) for event in running.events if event.pid)


def test_processes_start_in_order_of_readiness_and_log_to_files(running: Running) -> None:
    port = free_port()
    listen = (
        "import socket, sys, time; time.sleep(0.3); s = socket.socket(); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); time.sleep(600)"
    )
    supervisor = running(
        ProcessSpec(name="second", command=python(SLEEP), ready_line="here", after=("first",)),
        ProcessSpec(name="first", command=python(listen, port), ready_address=("127.0.0.1", port)),
    )
    supervisor.wait_until_ready(10)
    assert [(one.name, one.kind) for one in running.events] == [
        ("first", "starting"),
        ("first", "ready"),
        ("second", "starting"),
        ("second", "ready"),
    ]
    assert (running.folder / "second.log").read_text() == "here\n"
    supervisor.stop()
    assert running.kinds("second")[-2:] == ["stopping", "stopped"]


def test_a_killed_process_is_started_again(running: Running) -> None:
    supervisor = running(ProcessSpec(name="one", command=python(SLEEP), ready_line="here"))
    supervisor.wait_until_ready(10)
    before = supervisor.pids["one"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: running.kinds("one").count("ready") == 2)
    assert supervisor.pids["one"] != before
    assert any("SIGKILL" in event.detail for event in running.events)


def test_a_process_that_ends_well_is_started_again_without_delay_or_blame(running: Running) -> None:
    code = "import time; print('here', flush=True); time.sleep(0.3)"
    running(ProcessSpec(name="one", command=python(code), ready_line="here", max_failures=1))
    wait_for(lambda: running.kinds("one").count("ready") >= 3)


def test_a_process_that_keeps_failing_ends_everything_and_says_why(running: Running) -> None:
    supervisor = running(
        ProcessSpec(name="good", command=python(SLEEP), ready_line="here"),
        ProcessSpec(name="bad", command=python("raise SystemExit('no such setting')"), max_failures=2),
    )
    wait_for(lambda: "failed" in running.kinds("bad"))
    wait_for(lambda: running.kinds("good")[-1] == "stopped")
    supervisor.stop()
    with pytest.raises(ProcessFailedError, match=r"bad failed 2 times: exit status 1; .*no such setting"):
        supervisor.check()


def test_a_process_without_a_limit_is_tried_for_ever(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BACK_OFF_SECONDS", 0.01)
    supervisor = running(ProcessSpec(name="one", command=python("exit(3)"), max_failures=None))
    wait_for(lambda: running.kinds("one").count("exited") >= 7)
    supervisor.check()


def test_a_port_that_another_process_holds_is_named(running: Running) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = holder.getsockname()
        supervisor = running(
            ProcessSpec(name="one", command=python(SLEEP), ready_address=address, max_failures=1)
        )
        with pytest.raises(ProcessFailedError, match="in use by another process"):
            supervisor.wait_until_ready(10)


def test_grandchildren_and_the_deaf_end_too(running: Running, tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
        "open(sys.argv[1], 'w').write(str(child.pid)); print('here', flush=True); time.sleep(600)"
    )
    note = tmp_path / "grandchild"
    supervisor = running(
        ProcessSpec(name="deaf", command=python(code, note), ready_line="here", stop_seconds=0.3)
    )
    supervisor.wait_until_ready(10)
    grandchild = int(note.read_text())
    assert alive(grandchild)
    supervisor.stop()
    wait_for(lambda: not alive(grandchild))


@pytest.mark.parametrize("watch", ["prctl", "parent"])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_supervisor(tmp_path: Path, watch: str, signal_number: int) -> None:
    if watch == "prctl" and sys.platform != "linux":
        pytest.skip("prctl is Linux's")
    code = (
        "import sys; from pathlib import Path; from privacy.cli import supervisor as m; "
        f"m._WATCH = {watch!r}; "
        f"spec = m.ProcessSpec(name='one', command=(sys.executable, '-S', '-c', {SLEEP!r}), ready_line='here'); "
        "show = lambda event: print(event.kind, event.pid, flush=True); "
        "m.Supervisor([spec], Path(sys.argv[1])).run(on_event=show)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        kind, pid = process.stdout.readline().split()
        assert kind == "starting"
        assert process.stdout.readline().split()[0] == "ready"
        assert alive(int(pid))
        process.send_signal(signal_number)
        process.stdout.read()
    assert process.wait(10) == (-signal.SIGKILL if signal_number == signal.SIGKILL else 0)
    wait_for(lambda: not alive(int(pid)))


def test_two_supervisors_never_run_the_same_processes(running: Running) -> None:
    spec = ProcessSpec(name="one", command=python(SLEEP), ready_line="here")
    running(spec).wait_until_ready(10)
    with pytest.raises(ProcessFailedError, match="another supervisor runs the processes of home"):
        Supervisor([spec], running.folder).run(threading.Event())


def test_a_display_that_fails_stops_everything_all_the_same(tmp_path: Path) -> None:
    pids = []

    def show(event: ProcessEvent) -> None:
        pids.append(event.pid)
        if event.kind != "starting":
            raise OSError("the terminal is gone")

    spec = ProcessSpec(name="one", command=python(SLEEP), ready_line="here")
    with pytest.raises(OSError, match="terminal"):
        Supervisor([spec], tmp_path).run(on_event=show)
    assert not alive(pids[0])


def test_a_log_that_has_grown_is_rotated_while_it_is_written(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_BYTES", 2000)
    monkeypatch.setattr(module, "_ROTATE_SECONDS", 0.0)
    code = "import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.001)"
    running(ProcessSpec(name="one", command=python(code)))
    wait_for((running.folder / "one.log.3").exists)
    assert (running.folder / "one.log").stat().st_size < 20_000
    assert not (running.folder / "one.log.4").exists()


def test_names_must_be_unique_and_known(tmp_path: Path) -> None:
    one = ProcessSpec(name="one", command=("true",))
    with pytest.raises(ValueError, match="unique"):
        Supervisor([one, one], tmp_path)
    with pytest.raises(ValueError, match="two"):
        Supervisor([ProcessSpec(name="one", command=("true",), after=("two",))], tmp_path)


def test_no_two_processes_of_one_set_up_are_given_one_port() -> None:
    ports = [free_port() for _ in range(500)]  # by chance alone, ten pairs of 500 would be alike
    assert len(set(ports)) == 500
    assert all(20_000 <= port < 32_000 for port in ports)
