"""The demo's processes: the coordinator's and each hospital's `up` command under one supervisor."""

from __future__ import annotations

import re
import time
from pathlib import Path

from privacy.cli.supervisor import ProcessEvent, ProcessSpec, Supervisor
from server.demo.display import PhaseLine
from server.demo.parties import Parties
from server.demo.surface import SHARED_CORES, fedtwin_command, poll

READY_SECONDS = 120.0
TAIL_LINES = 15
_PARTS = {"server": ("superlink", "worker", "api", "gateway", "jobs"), "site": ("supernode", "worker")}


class DemoProcesses:
    """Starts and stops `fedtwin server up` and one `fedtwin site up` per hospital.

    Args:
        parties: their homes.
        logs: folder for what each of the commands prints.
    """

    def __init__(self, parties: Parties, logs: Path) -> None:
        self._homes = {"coordinator": parties.coordinator, **parties.sites}
        self._groups = {name: "server" if name == "coordinator" else "site" for name in self._homes}
        self._logs = logs
        self._supervisor = Supervisor(
            [
                ProcessSpec(
                    name=name,
                    command=fedtwin_command(self._groups[name], "up", "--home", home),
                    environment={"PYTHONUNBUFFERED": "1", **SHARED_CORES},
                    max_failures=1,
                    stop_seconds=20.0,
                )
                for name, home in self._homes.items()
            ],
            self._logs,
        )
        self._failed: str | None = None
        self._started = False

    def start(self, line: PhaseLine) -> None:
        """Start all and return once each says that its parts are ready.

        Raises:
            ProcessFailedError: one ended.
            SurfaceError: one was not ready in time.
        """
        self._started = True
        self._supervisor.start(on_event=self._notice)

        def waiting() -> list[str]:
            left = [name for name in self._homes if not self._is_ready(name)]
            line.say("waiting for " + ", ".join(left))
            return left

        poll(
            waiting,
            until=lambda left: not left,
            alive=self.check,
            what="the start of the processes",
            timeout_seconds=READY_SECONDS,
        )
        parts = sum(len(_PARTS[group]) for group in self._groups.values())
        line.say(f"{parts} processes of {len(self._homes)} parties are up; logs in each party's logs/")

    def check(self) -> None:
        """Raise if a process has ended for good.

        Raises:
            ProcessFailedError: names it.
        """
        self._supervisor.check()

    def wait(self) -> None:
        """Stay until interrupted, or until a process has ended.

        Raises:
            ProcessFailedError: names the process.
        """
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop all and wait for the end. Again is harmless."""
        if self._started:
            self._supervisor.stop()

    def explain(self, message: str) -> str:
        """What a person needs to find the cause: which process failed, last lines of logs, and where those are.

        Args:
            message: of the error; logs that it names are quoted.
        """
        told, logs = [], []
        if self._failed is not None:
            told.append(f"The process that failed is {self._failed!r}.")
            own = self._logs / f"{self._failed}.log"
            inner = sorted((self._homes[self._failed] / "logs").glob("*.log"))
            logs += [own, *(log for log in inner if _mentioned(log, own))]
        named = [f"{name}.log" for name in re.findall(r"logs/(\w+)\.log", message)]
        if message.startswith("run "):
            named.append("worker.log")
        logs += [self._homes["coordinator"] / "logs" / name for name in named]
        told += [f"{log}, last lines:\n{_tail(log)}" for log in dict.fromkeys(logs) if log.exists()]
        return "\n\n".join(told)

    def _notice(self, event: ProcessEvent) -> None:
        if event.kind == "failed" and self._failed is None:
            self._failed = event.name

    def _is_ready(self, name: str) -> bool:
        log = self._logs / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return all(f"{part}: ready" in text for part in _PARTS[self._groups[name]])


def _mentioned(log: Path, own: Path) -> bool:
    return own.exists() and f"{log.stem} failed" in own.read_text(errors="replace")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)
