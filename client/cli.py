"""`fedtwin site`: what a hospital's IT does on its own machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.home import SiteHome

app = typer.Typer(
    help="A hospital: create, check, start and stop a site; see what it spent.", no_args_is_help=True
)
Home = Annotated[Path, typer.Option("--home", help="The site's folder.")]


def fail(message: object) -> typer.Exit:
    """Say what is wrong on standard error; raise the result to end with status 1."""
    typer.echo(f"fedtwin: {message}", err=True)
    return typer.Exit(1)


@app.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="The site's name: lower-case letters, digits, hyphens.")],
    federation: Annotated[Path, typer.Option(help="The federation.json that the coordinator gave you.")],
    data: Annotated[Path, typer.Option(help="Your patients: a .csv or .parquet file on this machine.")],
    patient_id: Annotated[
        str, typer.Option(help="The column that names the patient; empty: every line is another patient.")
    ] = "",
    epsilon: Annotated[float, typer.Option(help="Cap of epsilon per study, for the policy.")] = 3.0,
    delta: Annotated[float, typer.Option(help="Ceiling of delta, for the policy.")] = 1e-5,
) -> None:
    """Create a site: own keys, a policy to edit, and card.json to hand to the coordinator's operator."""
    from client.connectors import DataSourceError, kind_of
    from client.home import SiteHome
    from client.policy import PolicyError, load_policy, policy_text
    from privacy.cli.folders import HomeError

    try:
        told: dict[str, Any] = json.loads(federation.read_text())
        made = SiteHome.create(
            home,
            name=name,
            superlink_address=told["superlink_address"],
            ca_certificate=told["ca_certificate"].encode(),
            coordinator_key=told["ledger_key"],
            data_path=data.resolve(),
            data_kind=kind_of(data),
            patient_id=patient_id or None,
        )
        made.policy_file.write_text(
            policy_text(epsilon_per_study=epsilon, max_delta=delta, app_digests=[told["app_digest"]])
        )
        policy = load_policy(made.policy_file)
    except (OSError, ValueError, KeyError) as error:
        raise fail(f"{federation} is no federation file ({error})") from None
    except (HomeError, DataSourceError, PolicyError) as error:
        raise fail(error) from None
    card = {
        "name": made.name,
        "receipt_key": made.receipt_key().public.text,
        "node_public_key": made.node_public_key,
        "policy": policy.public(),
    }
    card_file = made.path / "card.json"
    card_file.write_text(json.dumps(card, indent=2))
    typer.echo(f"Site {made.name!r} is in {made.path}. Its private keys were made here and stay here.")
    typer.echo(
        f"Coordinator's certificate, SHA-256: {told.get('ca_fingerprint', '?')}: compare it by telephone."
    )
    typer.echo(f"Next: read and edit {made.policy_file}; send {card_file} to the operator; fedtwin site up")


@app.command()
def up(home: Home) -> None:
    """Start the site and keep it running until Ctrl-C; logs are in the folder's logs/."""
    from client.processes import site_processes
    from privacy.cli.supervisor import ProcessFailedError, Supervisor

    opened = _open_home(home)
    typer.echo(f"Starting site {opened.name!r}; Ctrl-C stops it. Logs: {opened.logs}")
    try:
        Supervisor(site_processes(opened), opened.logs).run(
            on_event=lambda event: typer.echo(f"{event.name}: {event.kind} {event.detail}".rstrip())
        )
    except ProcessFailedError as error:
        raise fail(error) from None


@app.command()
def validate(
    home: Home,
    study: Annotated[Path, typer.Argument(help="A study.toml to hold your data against.")],
) -> None:
    """Hold your data against a study's schema; every fault with its row and column, on this screen only."""
    from client.connectors import DataSourceError
    from client.patients import load_patients
    from models.faults import TableFaultsError
    from models.study import Study, StudyError

    opened = _open_home(home)
    try:
        load_patients(opened, Study.from_toml(study.read_text()).table)
    except (OSError, StudyError, DataSourceError, TableFaultsError) as error:
        raise fail(error) from None
    typer.echo("The data fits the study. Nothing was sent anywhere.")


@app.command()
def spent(home: Home) -> None:
    """Show the site's own record: what was debited, for which study and round; checks its hash chain first."""
    from rich.console import Console
    from rich.table import Table

    from client.guard import Guard
    from client.policy import PolicyError, load_policy
    from client.record import RecordVerificationError

    opened = _open_home(home)
    try:
        guard = Guard(opened.record_file, load_policy(opened.policy_file))
        guard.verify()
    except (PolicyError, RecordVerificationError) as error:
        raise fail(error) from None
    table = Table(title=f"What site {opened.name} has spent (per patient; nothing is ever refunded)")
    for heading in ("time (UTC)", "study", "run", "round", "what", "epsilon so far"):
        table.add_column(heading)
    for line in guard.history():
        table.add_row(*(str(part) for part in line.cells()))
    Console().print(table)
    typer.echo("The record's hash chain holds.")


def _open_home(path: Path) -> SiteHome:
    from client.home import SiteHome
    from privacy.cli.folders import HomeError

    try:
        return SiteHome.open(path)
    except HomeError as error:
        raise fail(error) from None
