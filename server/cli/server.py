"""`fedtwin server`: what the operator does on the coordinator's machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from privacy.cli.problem import say_problem
from server.cli import joining
from server.cli.opened import Home, open_home, open_store

app = typer.Typer(
    help="The coordinator: create, start and stop it; enrol sites; make API keys.", no_args_is_help=True
)


@app.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="Name of the coordinator and of its ledger.")] = "coordinator",
    database: Annotated[
        str, typer.Option(help="SQLAlchemy URL; a relative SQLite file lies in the folder.")
    ] = "sqlite:///fedtwin.db",
    api_port: Annotated[int | None, typer.Option(help="Port of the API; a free one by default.")] = None,
    address: Annotated[
        str | None, typer.Option(help="host:port that sites dial; this machine only by default.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="host:port of the public HTTPS port; 0.0.0.0:8443 listens to other machines."),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option(help="Only a reverse proxy reaches that port: believe its X-Forwarded-For.")
    ] = False,
    database_password_file: Annotated[
        Path | None, typer.Option(help="Holds the database's password, where the URL names a user only.")
    ] = None,
) -> None:
    """Create a coordinator: keys, certificates, settings and an empty database."""
    from privacy.cli.folders import HomeError
    from server.home import CoordinatorHome

    host, _, port = (listen or "127.0.0.1:").rpartition(":")
    if not host or (listen and not port.isdecimal()):
        raise say_problem(f"--listen {listen!r} is not host:port; give for example 0.0.0.0:8443")
    try:
        made = CoordinatorHome.create(
            home,
            name=name,
            database=database,
            database_password_file=database_password_file,
            api_port=api_port,
            gateway_host=host.strip("[]"),
            gateway_port=int(port) if port else None,
            trusted_proxies=("*",) if behind_proxy else (),
            superlink_address=address,
        )
    except HomeError as error:
        raise say_problem(error) from None
    with open_store(made):
        pass
    typer.echo(f"Coordinator {made.name!r} is in {made.path}; its API will be at {made.api_url}.")
    typer.echo(f"Certificate authority SHA-256 fingerprint: {made.ca_fingerprint}")
    typer.echo("Next: fedtwin server key, fedtwin server invite, fedtwin server up")


@app.command()
def up(home: Home) -> None:
    """Start the coordinator and keep it running until Ctrl-C; logs are in the folder's logs/."""
    from privacy.cli.serving import keep_running
    from server.processes import coordinator_processes

    opened = open_home(home)
    typer.echo(f"Starting the coordinator {opened.name!r}; Ctrl-C stops it. Logs: {opened.logs}")
    typer.echo(
        f"Pages: {opened.api_url}/ on this machine, {opened.public_url}/ for others; sign in with an API key."
    )
    keep_running(coordinator_processes(opened), opened.logs)


@app.command()
def key(
    home: Home,
    role: Annotated[str, typer.Option(help="operator, researcher or auditor.")],
    name: Annotated[str, typer.Option(help="Whom the key is for.")],
    days: Annotated[int, typer.Option(min=1, help="How long it is good.")] = 365,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Only this, such as releases:read or cohorts:write; may be repeated."),
    ] = None,
    rows_per_day: Annotated[
        int | None, typer.Option(min=0, help="Synthetic patients per day; as in server.toml by default.")
    ] = None,
) -> None:
    """Make an API key; it is shown this once and kept only as a hash."""
    import datetime as dt

    from server.errors import InvalidError
    from server.keys import create_key

    with open_store(open_home(home)) as store:
        try:
            made = create_key(
                store,
                role=role,  # type: ignore[arg-type]
                owner=name,
                lifetime=dt.timedelta(days=days),
                scopes=scope,
                rows_per_day=rows_per_day,
            )
        except InvalidError as error:
            raise say_problem(error) from None
    typer.echo(made.text)


@app.command()
def keys(home: Home) -> None:
    """List the API keys; no secret is among them."""
    from server.keys import list_keys

    with open_store(open_home(home)) as store:
        for one in list_keys(store):
            end = f"until {one.expires_at:%Y-%m-%d}" if one.expires_at else "for good"
            state = f"revoked on {one.revoked_at:%Y-%m-%d}" if one.revoked_at else end
            scopes = f"  {', '.join(one.scopes)}" if one.scopes is not None else ""
            typer.echo(f"{one.prefix}  {one.role:<10}  {one.owner}  {state}{scopes}")


@app.command()
def revoke_key(
    home: Home, prefix: Annotated[str, typer.Argument(help="The key's public part, after ftw_.")]
) -> None:
    """Make an API key worthless from now on."""
    from server.errors import NotFoundError
    from server.keys import revoke_key as revoke

    with open_store(open_home(home)) as store:
        try:
            revoke(store, prefix)
        except NotFoundError as error:
            raise say_problem(error) from None
    typer.echo(f"Key {prefix} is revoked.")


@app.command()
def rotate_key(home: Home) -> None:
    """Replace the key that signs the ledger; stop the server before, start it after. Again finishes what broke off."""
    from privacy.merkle import LedgerVerificationError
    from server.ledger_key import rotate_ledger_key

    opened = open_home(home)
    with open_store(opened) as store:
        try:
            new = rotate_ledger_key(opened, store)
        except LedgerVerificationError as error:
            raise say_problem(error) from None
    typer.echo(f"The ledger is signed by a new key from here on: {new.text}")
    typer.echo(
        "Sites follow by themselves. Tell auditors; the key they have pinned still verifies the whole ledger."
    )


@app.command()
def invite(
    home: Home,
    site: Annotated[
        str | None, typer.Option(help="Invite this one site; without it, write federation.json.")
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How long the invitation is good.")] = 72,
    url: Annotated[
        str | None,
        typer.Option(help="Where the site reaches the API; the coordinator's public address by default."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Where to write it; federation.json in the folder.")] = None,
) -> None:
    """Invite a site by name, with a text that is good once; or write federation.json for the offline way."""
    import datetime as dt

    from server.federation_facts import FederationFacts
    from server.invitations import invite_site

    opened = open_home(home)
    facts = FederationFacts.of(opened, api_url=url)
    if site is not None:
        with open_store(opened) as store:
            made = invite_site(store, facts, site=site, by="operator", lifetime=dt.timedelta(hours=hours))
        typer.echo(made.text)
        typer.echo(
            f"Send this line to {site} alone; it is good once, until {made.kept.expires_at:%Y-%m-%d %H:%M} UTC.\n"
            f"By telephone, compare: certificate SHA-256 {facts.ca_fingerprint}",
            err=True,
        )
        return
    target = to or opened.path / "federation.json"
    target.write_text(json.dumps(facts.to_dict(), indent=2))
    typer.echo(f"{target}: give it to a site for `fedtwin site init --federation`.")
    typer.echo(f"Let the site compare this by telephone, SHA-256: {opened.ca_fingerprint}")


@app.command()
def enrol(
    home: Home,
    card: Annotated[Path, typer.Argument(help="The card.json that `fedtwin site init` wrote at the site.")],
) -> None:
    """Admit a site: its keys become a ledger entry, and its node may connect."""
    from server import sites

    opened = open_home(home)
    try:
        data: dict[str, Any] = json.loads(card.read_text())
        name, receipt_key, node_key = data["name"], data["receipt_key"], data["node_public_key"]
        policy = data["policy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise say_problem(
            f"{card} is no site card ({error}); take the card.json of `fedtwin site init`"
        ) from None
    with open_store(opened) as store:
        sites.enrol_site(
            store,
            name=name,
            title=data.get("title", ""),
            receipt_key=receipt_key,
            node_public_key=node_key,
            policy=policy,
        )
    typer.echo(f"Site {name!r} is enrolled; its node may connect once the coordinator is up.")


joining.add_commands(app)
