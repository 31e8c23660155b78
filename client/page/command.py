"""`fedtwin site page`: the site's own web page, on this machine only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from client.opened import Home, open_home
from privacy.cli.problem import say_problem

if TYPE_CHECKING:
    import socket

HOST = "127.0.0.1"


def add_commands(app: typer.Typer) -> None:
    """Put the command into `fedtwin site`."""
    app.command()(page)


def page(
    home: Home,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On this machine only; a free one by default.")
    ] = 0,
) -> None:
    """Open a web page on this machine: see what is asked, decide, and see what left this building; until Ctrl-C."""
    import secrets

    import uvicorn

    from client.guard import Guard
    from client.page.app import create_page
    from client.policy import PolicyError, load_policy
    from client.record import RecordError

    site = open_home(home)
    try:
        # Also loads the accountants, so that the first page does not wait for them.
        Guard(site.record_file, load_policy(site.policy_file)).verify()
    except (PolicyError, RecordError) as error:
        typer.echo(f"fedtwin: {error}", err=True)
    listener = _listen(port)
    number = listener.getsockname()[1]
    token = secrets.token_urlsafe(32)
    config = uvicorn.Config(
        create_page(site, port=number, token=token),
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    typer.echo(f"Open http://{HOST}:{number}/?token={token}")
    typer.echo("The address is good until Ctrl-C, on this machine only. Give it to nobody.")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        typer.echo("The page is closed.")


def _listen(port: int) -> socket.socket:
    import socket

    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise say_problem(
            f"port {port} of this machine cannot be used ({error.strerror}); give another --port, or none"
        ) from None
