"""The coordinator's folder and state, opened for a command; what is wrong with them is a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from privacy.cli.opening import home_option, opened
from privacy.cli.problem import say_problem

if TYPE_CHECKING:
    from server.home import CoordinatorHome
    from server.store import Store

Home = Annotated[Path, home_option("coordinator", "The coordinator's folder.")]


def open_home(path: Path) -> CoordinatorHome:
    """The coordinator's home.

    Raises:
        typer.Exit: said why it cannot be opened.
    """
    from server.home import CoordinatorHome

    return opened(CoordinatorHome.open, path)


@contextmanager
def open_store(home: CoordinatorHome) -> Iterator[Store]:
    """The coordinator's state for a block; an error in the coordinator's own words ends the command with them."""
    from server.errors import ServerError
    from server.store import Store

    store = Store.open(home)
    try:
        yield store
    except ServerError as error:
        raise say_problem(error) from None
    finally:
        store.close()
