"""The demo's progress display: live in a terminal, one line per phase in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from server.demo.report import PhaseTime


@dataclass(kw_only=True)
class PhaseLine:
    """One phase as it goes on; set `detail` and `percent` at will."""

    title: str
    detail: str = ""
    percent: float | None = None
    state: str = "running"
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def say(self, detail: str, *, percent: float | None = None) -> None:
        """Replace what stands beside the title."""
        self.detail, self.percent = detail, percent


class Display:
    """Phases with their elapsed time, each in its line."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lines: list[PhaseLine] = []
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=8, transient=False)

    @property
    def times(self) -> list[PhaseTime]:
        """The phases that have ended, in order."""
        return [
            PhaseTime(title=line.title, detail=line.detail, seconds=line.seconds)
            for line in self._lines
            if line.state == "done"
        ]

    @contextmanager
    def running(self) -> Iterator[Display]:
        """Show until the block ends."""
        if not self.console.is_terminal:
            yield self
            return
        with self._live:
            yield self

    @contextmanager
    def phase(self, title: str) -> Iterator[PhaseLine]:
        """One phase: done when the block ends, failed when it raises."""
        line = PhaseLine(title=title)
        self._lines.append(line)
        line.state = "failed"
        try:
            line.state = "running"
            yield line
        except BaseException:
            line.state = "failed"
            raise
        else:
            line.state = "done"
        finally:
            line.seconds, line.percent = time.monotonic() - line.started, None
            if not self.console.is_terminal:
                mark = "done" if line.state == "done" else "FAILED"
                self.console.print(
                    f"{line.seconds:6.1f} s  {mark}  {line.title}: {line.detail}", markup=False
                )

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for line in self._lines:
            mark = {"done": Text("✓", "green"), "failed": Text("✗", "red")}.get(line.state, self._spinner)
            elapsed = line.seconds or time.monotonic() - line.started
            detail: Text | ProgressBar | Table = Text(line.detail, "dim")
            if line.percent is not None:
                detail = Table.grid(padding=(0, 1))
                detail.add_row(
                    ProgressBar(total=100, completed=line.percent, width=24), Text(line.detail, "dim")
                )
            table.add_row(mark, Text(line.title), Text(f"{elapsed:6.1f} s", "cyan"), detail)
        return table
