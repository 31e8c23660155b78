"""What the demo's parties type: the `fedtwin` command, run as a process; and waiting for what an API says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

COMMANDS_AT_ONCE = 2
PARTIES = 4
# A coordinator and three hospitals share this machine: threads beyond its cores only wait for each other.
SHARED_CORES = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // PARTIES))}
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class SurfaceError(RuntimeError):
    """A command did not do what it should; the message quotes what it said."""


def fedtwin_command(*arguments: str | Path) -> tuple[str, ...]:
    """The argument list of a `fedtwin` command of this very installation."""
    script = Path(sys.executable).with_name("fedtwin")
    start = (
        (str(script),)
        if script.exists()
        else (sys.executable, "-c", "from privacy.cli import main; raise SystemExit(main())")
    )
    return (*start, *map(str, arguments))


def shown_command() -> str:
    """What a person types here to get this very `fedtwin`: the bare name where the shell finds it."""
    script = Path(sys.executable).with_name("fedtwin")
    found = shutil.which("fedtwin")
    if found is not None and Path(found).resolve() == script.resolve():
        return "fedtwin"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def fedtwin(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a `fedtwin` command to its end and return what it printed.

    Raises:
        SurfaceError: its exit status is not 0; quotes the last lines.
    """
    ended = subprocess.run(
        fedtwin_command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **SHARED_CORES, "COLUMNS": "200", **(environment or {})},
        timeout=300,
        check=False,
    )
    if ended.returncode != 0:
        said = "\n".join((ended.stderr.strip() or ended.stdout.strip()).splitlines()[-15:])
        shown = " ".join(map(str, arguments))
        raise SurfaceError(f"`fedtwin {shown}` ended with status {ended.returncode}:\n{said}")
    return ended.stdout


def at_once(work: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """Do `work` on all items, a few commands at a time; what has not begun is dropped once one fails."""
    pool = ThreadPoolExecutor(COMMANDS_AT_ONCE)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def poll(
    ask: Callable[[], Any],
    *,
    until: Callable[[Any], bool],
    alive: Callable[[], None],
    what: str,
    timeout_seconds: float,
    pause_seconds: float = 0.3,
) -> Any:
    """Ask again and again until the answer will do; `alive` raises when something has died meanwhile.

    Raises:
        SurfaceError: the time is over; names `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not until(answer := ask()):
        alive()
        if time.monotonic() > deadline:
            raise SurfaceError(f"{what} took longer than {timeout_seconds:.0f} s; last seen: {answer}")
        time.sleep(pause_seconds)
    return answer
