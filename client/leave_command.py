"""`fedtwin site rotate-keys` and `fedtwin site leave`."""

from __future__ import annotations

from typing import Annotated

import typer

from client.opened import Home, open_home
from privacy.cli.problem import say_problem


def add_commands(app: typer.Typer) -> None:
    """Put the commands into `fedtwin site`."""
    app.command("rotate-keys")(rotate_keys)
    app.command()(leave)


def rotate_keys(home: Home) -> None:
    """Replace the key that signs receipts; the old one signs the new one, and both go into the ledger."""
    from client.joining import JoinError
    from client.leaving import rotate_receipt_key

    site = open_home(home)
    try:
        public = rotate_receipt_key(site)
    except JoinError as error:
        raise say_problem(error) from None
    typer.echo(
        f"Site {site.name!r} signs with {public.key_id().hex()} from now on. Restart it: fedtwin site up"
    )


def leave(
    home: Home,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; leaving is for good.")] = False,
) -> None:
    """Leave the federation, for good. What was spent stays spent; keep the folder, its record is your evidence."""
    from client.joining import JoinError
    from client.leaving import leave as tell

    site = open_home(home)
    if not yes:
        typer.confirm(
            f"Site {site.name!r} leaves for good; it could only come back under another name. Leave?",
            abort=True,
        )
    try:
        tell(site)
    except JoinError as error:
        raise say_problem(error) from None
    typer.echo(f"Site {site.name!r} has left. Stop it if it is up, and keep {site.record_file.name}.")
