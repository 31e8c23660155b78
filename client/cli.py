"""`fedtwin site`: what a hospital's IT does on its own machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client import check_command, join_command, leave_command
from client.opened import Home, open_home
from client.page import command as page_command
from privacy.cli.problem import say_problem

if TYPE_CHECKING:
    from client.guard import Guard
    from client.home import SiteHome
    from client.policy import SitePolicy

app = typer.Typer(
    help="A hospital: create, check, start and stop a site; see what it spent.", no_args_is_help=True
)
join_command.add_commands(app)
check_command.add_commands(app)
leave_command.add_commands(app)
page_command.add_commands(app)


@app.command()
def requests(home: Home) -> None:
    """List the studies that asked: columns, what they would spend of which cap, and your decision."""
    from rich.console import Console
    from rich.table import Table

    site = open_home(home)
    with _in_words():
        found = _guard(site).requests()
    if not found:
        typer.echo("No study has asked yet.")
        return
    undecided = "none yet" if _policy(site).approval == "manual" else "none needed: the policy is automatic"
    table = Table(title=f"Studies that asked site {site.name}", show_lines=True)
    for heading in ("study", "columns", "would reach epsilon", "cap", "delta", "decision"):
        table.add_column(heading, overflow="fold")  # a digest or a column's name that is cut off is none
    for asked in found:
        decision = asked.decision or undecided
        table.add_row(
            f"{asked.study_name}\n{asked.study_digest}",
            ", ".join(asked.columns),
            f"{float(asked.projected_epsilon):.4f}",
            f"{float(asked.cap_epsilon):g}",
            str(asked.delta),
            f"{decision} by {asked.decided_by}" if asked.decision else decision,
        )
    Console().print(table)


Study = Annotated[str, typer.Argument(help="A study's name or digest, as `fedtwin site requests` lists it.")]
By = Annotated[str, typer.Option("--by", help="Who decides; it goes into the site's own record.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stays in the site's own record.")]


@app.command()
def approve(home: Home, study: Study, by: By, reason: Reason = "") -> None:
    """Allow a study that asked, within the policy's caps."""
    _decide(home, study, "approved", by, reason)


@app.command()
def deny(home: Home, study: Study, by: By, reason: Reason) -> None:
    """Forbid a study."""
    _decide(home, study, "denied", by, reason)


@app.command()
def withdraw(home: Home, study: Study, by: By, reason: Reason) -> None:
    """Take an approval back; what was spent stays spent."""
    _decide(home, study, "withdrawn", by, reason)


def _decide(home: Path, study: str, decision: Any, by: str, reason: str) -> None:
    from client.decisions import decide

    with _in_words():
        asked = decide(_guard(open_home(home)), study, decision, by=by, reason=reason)
    typer.echo(f"Study {asked.study_name!r} is {decision}.")


@app.command()
def up(home: Home) -> None:
    """Start the site and keep it running until Ctrl-C; logs are in the folder's logs/."""
    from client.processes import site_processes
    from privacy.cli.serving import keep_running

    opened = open_home(home)
    typer.echo(f"Starting site {opened.name!r}; Ctrl-C stops it. Logs: {opened.logs}")
    keep_running(site_processes(opened), opened.logs)


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

    opened = open_home(home)
    try:
        load_patients(opened, Study.from_toml(study.read_text()))
    except (OSError, StudyError, DataSourceError, TableFaultsError) as error:
        raise say_problem(error) from None
    typer.echo("The data fits the study. Nothing was sent anywhere.")


@app.command()
def spent(home: Home) -> None:
    """Show the site's own record: what was debited, for which study and round; checks its hash chain first."""
    from rich.console import Console
    from rich.table import Table

    site = open_home(home)
    guard = _guard(site)
    with _in_words():
        guard.verify()
    table = Table(title=f"What site {site.name} has spent, per patient; nothing is ever refunded")
    for heading in ("time (UTC)", "study", "run", "round", "mechanism", "epsilon so far"):
        table.add_column(heading, overflow="fold")
    for entry in guard.history():
        if entry.kind == "debit":
            body = entry.body
            what = ", ".join(f"{event['phase']} ({event['kind']})" for event in body["events"])
            table.add_row(
                f"{entry.at:%Y-%m-%d %H:%M:%S}",
                body["study_name"],
                body["run"],
                str(body["round"]),
                what,
                f"{float(body['spend_epsilon']):.4f} at delta {body['delta']}",
            )
    Console().print(table)
    typer.echo("The record's hash chain holds.")


@contextmanager
def _in_words() -> Iterator[None]:
    """End the command with a sentence where the record cannot be used, or a decision cannot be written down."""
    from client.debits import RefusedError
    from client.decisions import DecisionError
    from client.record import RecordError

    try:
        yield
    except (DecisionError, RecordError, RefusedError) as error:
        raise say_problem(error) from None


def _policy(site: SiteHome) -> SitePolicy:
    from client.policy import PolicyError, load_policy

    try:
        return load_policy(site.policy_file)
    except PolicyError as error:
        raise say_problem(error) from None


def _guard(site: SiteHome) -> Guard:
    from client.guard import Guard

    return Guard(site.record_file, _policy(site))
