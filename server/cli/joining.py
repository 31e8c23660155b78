"""`fedtwin server sites, approve, deny, remove`: who takes part, by the operator's word."""

from __future__ import annotations

from typing import Annotated

import typer

from privacy.cli.problem import say_problem
from server.cli.opened import Home, open_home, open_store

Name = Annotated[str, typer.Argument(help="The site's name, as `fedtwin server sites` lists it.")]
By = Annotated[str, typer.Option("--by", help="Who decides; it is kept.")]


def add_commands(app: typer.Typer) -> None:
    """Put the commands into `fedtwin server`."""
    for command in (sites, approve, deny, remove):
        app.command()(command)


def sites(home: Home) -> None:
    """List the sites, the invitations that nobody answered yet, and the cards that wait for you."""
    import datetime as dt

    from rich.console import Console
    from rich.table import Table

    from privacy.signing import VerifyKey
    from server import invitations
    from server.sites import list_sites

    with open_store(open_home(home)) as store:
        enrolled = list_sites(store)
        invited = [one for one in invitations.list_invitations(store) if one.state in ("open", "pending")]
    if not enrolled and not invited:
        typer.echo("No site yet; invite one: fedtwin server invite --site NAME")
        return
    table = Table(title="Sites")
    for heading in ("site", "state", "receipt key", "since (UTC)", "epsilon per study, in total"):
        table.add_column(heading)
    for site in enrolled:
        caps = f"{site.policy.get('epsilon_per_study')}, {site.policy.get('epsilon_total')}"
        table.add_row(
            site.name, site.state, site.key.key_id().hex(), f"{site.enrolled_at:%Y-%m-%d %H:%M}", caps
        )
    now = dt.datetime.now(dt.UTC)
    for one in invited:
        if one.card is not None and one.answered_at is not None:
            policy = one.card["policy"]
            table.add_row(
                one.site,
                "pending: approve or deny",
                VerifyKey.from_text(one.card["receipt_key"]).key_id().hex(),
                f"{one.answered_at:%Y-%m-%d %H:%M}",
                f"{policy.get('epsilon_per_study')}, {policy.get('epsilon_total')}",
            )
        else:
            state = (
                "invitation expired"
                if one.expires_at <= now
                else f"invited until {one.expires_at:%m-%d %H:%M}"
            )
            table.add_row(one.site, state, "", f"{one.created_at:%Y-%m-%d %H:%M}", "")
    Console().print(table)


def approve(
    home: Home,
    name: Name,
    by: By = "operator",
    key: Annotated[
        str, typer.Option("--key", help="The eight digits of the receipt key that the site read to you.")
    ] = "",
) -> None:
    """Admit a site whose card waits: its keys become a ledger entry, and its node may connect."""
    from privacy.signing import VerifyKey
    from server import invitations

    with open_store(open_home(home)) as store:
        if key:
            waiting = [
                one for one in invitations.list_invitations(store, state="pending") if one.site == name
            ]
            shown = [
                VerifyKey.from_text(one.card["receipt_key"]).key_id().hex() for one in waiting if one.card
            ]
            if shown and shown != [key.strip().lower()]:
                raise say_problem(
                    f"the card of site {name!r} has the key {shown[0]}, not {key}; somebody else may have used the "
                    "invitation: deny it, and invite the site again"
                )
        invitations.approve(store, name, by=by)
    typer.echo(f"Site {name!r} is enrolled; its node may connect once the coordinator is up.")


def deny(
    home: Home,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; the site is told.")],
    by: By = "operator",
) -> None:
    """Turn a site down whose card waits, or take back an invitation that nobody answered; it may be invited again."""
    from server import invitations

    with open_store(open_home(home)) as store:
        taken = invitations.deny(store, name, by=by, reason=reason)
    told = "The invitation of" if taken.state == "withdrawn" else "The card of"
    typer.echo(f"{told} site {name!r} is {taken.state}; it is good for nothing any more.")


def remove(home: Home, name: Name) -> None:
    """Revoke a site, for good: nothing of it counts from now on, and its node is shut out. A ledger entry."""
    from server.sites import set_state

    with open_store(open_home(home)) as store:
        site = set_state(store, name, "left", reason="revoked")
    typer.echo(f"Site {site.name!r} is out; what it spent stays in the ledger.")
