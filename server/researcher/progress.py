"""Progress of long work: a bar in a terminal, one in a notebook, and nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

Tell = Callable[[float, str], None]


@contextmanager
def progress_bar(title: str, *, wanted: bool = True) -> Iterator[Tell]:
    """Show progress while the block runs; call what is yielded with percent (0 to 100) and a few words.

    Args:
        wanted: False for silence.
    """
    notebook = _notebook_display()
    if not wanted or (notebook is None and not sys.stderr.isatty()):
        yield lambda _percent, _words: None
    elif notebook is not None:
        display, html = notebook
        shown = display(html(bar_html(title, 0, "")), display_id=True)
        yield lambda percent, words: shown.update(html(bar_html(title, percent, words)))
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[words]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=100, words="")
            yield lambda percent, words: progress.update(task, completed=percent, words=words)


def bar_html(title: str, percent: float, words: str) -> str:
    """A bar for a notebook."""
    told = f"{percent:.0f} %" + (f", {words}" if words else "")
    return f'{escape(title)} <progress max="100" value="{percent:.1f}"></progress> {escape(told)}'


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(8.2), duration(100), duration(7200)
    ('9 s', '1 min 40 s', '2 h 0 min')
    """
    whole = int(-(-seconds // 1))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: int) -> str:
    """Bytes in words.

    >>> size(950), size(1_234_567)
    ('1 kB', '1.2 MB')
    """
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{max(1, round(num_bytes / 1e3))} kB"


def _notebook_display() -> tuple[Any, Any] | None:
    """IPython's `display` and `HTML`, in a notebook; a notebook has imported IPython already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display  # type: ignore[import-not-found]

    return display, HTML
