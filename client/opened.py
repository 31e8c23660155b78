"""The site's folder, opened for a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from privacy.cli.opening import home_option, opened

if TYPE_CHECKING:
    from client.home import SiteHome

Home = Annotated[Path, home_option("site", "The site's folder.")]


def open_home(path: Path) -> SiteHome:
    """The site's home.

    Raises:
        typer.Exit: said why it cannot be opened.
    """
    from client.home import SiteHome

    return opened(SiteHome.open, path)
