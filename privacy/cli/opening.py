"""A party's folder, named and opened for a command; what is wrong with it is a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer

from privacy.cli.folders import HomeError
from privacy.cli.problem import say_problem

H = TypeVar("H")


def home_option(default: str, what: str) -> Any:
    """The option that names it.

    Args:
        default: a folder below the present one.
        what: said by `--help`.
    """
    return typer.Option(
        "--home",
        envvar="FEDTWIN_HOME",
        default_factory=lambda: Path(default),
        show_default=default,
        help=what,
    )


def opened(open_home: Callable[[Path], H], path: Path) -> H:
    """The home there.

    Raises:
        typer.Exit: said why it cannot be opened.
    """
    try:
        return open_home(path)
    except HomeError as error:
        raise say_problem(error) from None
