"""The site's folder, opened for a command; what is wrong with it is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.cli.problem import say_problem

if TYPE_CHECKING:
    from client.home import SiteHome

Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="FEDTWIN_HOME",
        default_factory=lambda: Path("site"),
        show_default="site",
        help="The site's folder.",
    ),
]


def open_home(path: Path) -> SiteHome:
    """The site's home.

    Raises:
        typer.Exit: said why it cannot be opened.
    """
    from client.home import SiteHome
    from privacy.cli.folders import HomeError

    try:
        return SiteHome.open(path)
    except HomeError as error:
        raise say_problem(error) from None
