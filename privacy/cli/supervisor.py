"""Keep a few processes running: what `fedtwin server up`, `fedtwin site up` and the demo have in common.

It lives beside the command because both sides need it and neither may import the other. It knows nothing
of federations: argument lists, a port or a log line that says "ready", logs in files, restarts with back-off,
and an end without orphans or zombies, whichever way the end comes.

Guarantees:
    When `run` returns or raises, no process that it started is left, nor any that those started in their
    process group. When the supervisor itself is killed with SIGKILL, the kernel kills each process
    (PR_SET_PDEATHSIG on Linux; elsewhere a small parent beside each process watches for it).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

WORKER_READY = "fedtwin worker is ready"  # both sides' workers log it once they have imported everything

EventKind = Literal["starting", "ready", "exited", "failed", "stopping", "stopped"]

_TICK_SECONDS = 0.1
_HEALTHY_SECONDS = 60.0  # a process that ran this long starts its back-off and its failures anew
_MAX_BACK_OFF_SECONDS = 15.0
_LOG_BYTES = 5_000_000
_LOG_FILES = 3
_ROTATE_SECONDS = 60.0
_WATCH: Literal["prctl", "parent"] = "prctl" if sys.platform == "linux" else "parent"

# Runs between fork and exec in a fresh interpreter, so that no Python code runs in a forked thread.
_LAUNCHER = """
import os, signal, sys
watch, parent, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
signal.signal(signal.SIGINT, signal.SIG_DFL)
if watch == "prctl":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.execvp(command[0], command)
import subprocess, time
child = subprocess.Popen(command)
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
while child.poll() is None:
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    time.sleep(0.1)
os._exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
"""


class ProcessFailedError(RuntimeError):
    """A process that everything else needs could not be kept running."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process to keep running.

    Attributes:
        name: names the process in events and its log file.
        command: argument list; never a shell line.
        environment: added to the supervisor's own.
        ready_address: (host, port) that accepts a connection once the process is ready.
        ready_line: text that the process's log holds once it is ready.
        ready_timeout_seconds: not ready by then counts as a failure.
        after: names of processes that must be ready before this one is started.
        max_failures: consecutive failures after which everything is stopped; None retries for ever.
        stop_seconds: time to end by itself after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_address: tuple[str, int] | None = None
    ready_line: str | None = None
    ready_timeout_seconds: float = 60.0
    after: tuple[str, ...] = ()
    max_failures: int | None = 5
    stop_seconds: float = 10.0


@dataclass(frozen=True, kw_only=True)
class ProcessEvent:
    """Something that happened to a process: for a progress display and for tests."""

    name: str
    kind: EventKind
    detail: str = ""
    pid: int | None = None


class Supervisor:
    """Runs processes until told to stop.

    Args:
        specs: the processes; `after` gives the order.
        log_folder: one `NAME.log` each, rotated by size; also holds the lock that keeps a second
            supervisor away from the same processes.
    """

    def __init__(self, specs: Sequence[ProcessSpec], log_folder: Path) -> None:
        names = [spec.name for spec in specs]
        unknown = {other for spec in specs for other in spec.after} - set(names)
        if len(set(names)) != len(names) or unknown:
            raise ValueError(f"process names must be unique and known, got {names} and {sorted(unknown)}")
        self._log_folder = log_folder
        self._units = {spec.name: _Unit(spec, log_folder / f"{spec.name}.log", self._emit) for spec in specs}
        self._on_event: Callable[[ProcessEvent], None] | None = None
        self._stop = threading.Event()
        self._stopping = False
        self._all_ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each process that is running now."""
        return {name: unit.pid for name, unit in self._units.items() if unit.pid is not None}

    def run(
        self,
        stop_event: threading.Event | None = None,
        on_event: Callable[[ProcessEvent], None] | None = None,
    ) -> None:
        """Start everything, keep it running, and stop it on SIGINT, SIGTERM, SIGHUP or `stop_event`.

        Raises:
            ProcessFailedError: a process failed for good; the others have been stopped.
        """
        self._on_event = on_event
        self._log_folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._log_folder / "supervisor.lock"), _signals_set(self._stop):
            rotate_at = time.monotonic() + _ROTATE_SECONDS
            try:
                while not self._stop.is_set() and not (stop_event and stop_event.is_set()):
                    self._step()
                    if time.monotonic() > rotate_at:
                        rotate_at = time.monotonic() + _ROTATE_SECONDS
                        for unit in self._units.values():
                            unit.rotate()
                    self._stop.wait(_TICK_SECONDS)
            finally:
                self._stop_all()

    def start(self, on_event: Callable[[ProcessEvent], None] | None = None) -> None:
        """Do `run` in a thread; `wait_until_ready` and `stop` are its other ends."""

        def body() -> None:
            try:
                self.run(on_event=on_event)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=body, name="supervisor")
        self._thread.start()

    def check(self) -> None:
        """Raise what ended a supervisor that was begun with `start`, if anything did."""
        if self._error is not None:
            raise self._error

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return once every process is ready.

        Raises:
            ProcessFailedError: one failed for good, or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._all_ready.wait(_TICK_SECONDS):
            self.check()
            if self._stop.is_set():
                raise ProcessFailedError("stopped before every process was ready")
            if time.monotonic() > deadline:
                waiting = sorted(name for name, unit in self._units.items() if not unit.ready)
                raise ProcessFailedError(f"not ready after {timeout_seconds:.0f} s: {', '.join(waiting)}")

    def stop(self) -> None:
        """Stop everything that `start` began and wait for the end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _step(self) -> None:
        for unit in self._units.values():
            unit.step(may_start=all(self._units[other].ready for other in unit.spec.after))
        if all(unit.ready for unit in self._units.values()):
            self._all_ready.set()

    def _stop_all(self) -> None:
        """End the processes, each group with SIGTERM first; a display that fails must not keep one alive."""
        self._stopping = True
        for unit in reversed(self._units.values()):
            unit.terminate()
        deadlines = {unit: time.monotonic() + unit.spec.stop_seconds for unit in self._units.values()}
        while pending := [unit for unit in self._units.values() if unit.pid is not None]:
            for unit in pending:
                unit.reap_or_kill(deadlines[unit])
            time.sleep(_TICK_SECONDS / 4)

    def _emit(self, event: ProcessEvent) -> None:
        if self._on_event is not None:
            with suppress(Exception) if self._stopping else nullcontext():
                self._on_event(event)


class _Unit:
    """One process over its restarts."""

    def __init__(self, spec: ProcessSpec, log: Path, emit: Callable[[ProcessEvent], None]) -> None:
        self.spec = spec
        self.ready = False
        self._log = log
        self._emit = emit
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._log_start = 0
        self._failures = 0
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def step(self, *, may_start: bool) -> None:
        now = time.monotonic()
        if self._process is None:
            if may_start and now >= self._restart_at:
                self._start(now)
        elif (status := self._process.poll()) is not None:
            self._exited(now, status)
        elif not self.ready:
            self._check_ready(now)
        elif now - self._started_at > _HEALTHY_SECONDS:
            self._failures = 0

    def rotate(self) -> None:
        """Copy and cut a log that has grown: writers append, so they go on at its new end."""
        if not self._log.exists() or self._log.stat().st_size < _LOG_BYTES:
            return
        for number in range(_LOG_FILES - 1, 0, -1):
            older = self._log.with_suffix(f".log.{number}")
            if older.exists():
                older.replace(self._log.with_suffix(f".log.{number + 1}"))
        shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
        os.truncate(self._log, 0)
        self._log_start = 0

    def terminate(self) -> None:
        if self._process is not None:
            self._send("stopping")
            _signal_group(self._process.pid, signal.SIGTERM)

    def reap_or_kill(self, deadline: float) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            if time.monotonic() > deadline:
                _signal_group(process.pid, signal.SIGKILL)
            return
        _signal_group(process.pid, signal.SIGKILL)  # whatever the process has left behind
        self._process, self.ready = None, False
        self._send("stopped")

    def _start(self, now: float) -> None:
        if self.spec.ready_address is not None and _answers(self.spec.ready_address):
            host, port = self.spec.ready_address
            self._fail(now, f"{host}:{port} is in use by another process; stop that, or change the port")
            return
        self.rotate()
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, _WATCH, str(os.getpid())]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launch, *self.spec.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.spec.environment},
                start_new_session=True,
            )
        self._started_at, self.ready = now, False
        self._send("starting")

    def _check_ready(self, now: float) -> None:
        ready = self.spec.ready_address is None or _answers(self.spec.ready_address)
        if ready and self.spec.ready_line is not None:
            ready = self.spec.ready_line in self._read_log()
        if ready:
            self.ready = True
            self._send("ready", f"after {now - self._started_at:.1f} s")
        elif now - self._started_at > self.spec.ready_timeout_seconds and self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def _exited(self, now: float, status: int) -> None:
        ran_seconds = now - self._started_at
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)
        was_ready, self._process, self.ready = self.ready, None, False
        text = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        self._send("exited", f"{text} after {ran_seconds:.1f} s")
        if status == 0 and was_ready:
            self._failures, self._restart_at = 0, now  # ended as it should: it is wanted again
        else:
            if ran_seconds > _HEALTHY_SECONDS:
                self._failures = 0
            self._fail(now, f"{text}; {self._log.name} ends: {_last_line(self._read_log())}")

    def _fail(self, now: float, reason: str) -> None:
        self._failures += 1
        self._restart_at = now + min(0.5 * 2 ** (self._failures - 1), _MAX_BACK_OFF_SECONDS)
        limit = self.spec.max_failures
        if limit is not None and self._failures >= limit:
            self._send("failed", reason)
            raise ProcessFailedError(f"{self.spec.name} failed {self._failures} times: {reason}")

    def _read_log(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read(_LOG_BYTES).decode(errors="replace")

    def _send(self, kind: EventKind, detail: str = "") -> None:
        self._emit(ProcessEvent(name=self.spec.name, kind=kind, detail=detail, pid=self.pid))


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=0.5):
            return True
    except OSError:
        return False


def _signal_group(pid: int, signal_number: int) -> None:
    try:
        os.killpg(pid, signal_number)
    except (ProcessLookupError, PermissionError):
        return


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing)"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ProcessFailedError(
                f"another supervisor runs the processes of {path.parent.parent.name}; stop it first"
            ) from error
        yield


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP set `stop`; only possible, and only needed, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
