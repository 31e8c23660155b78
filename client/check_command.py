"""`fedtwin site check`: PASSED, or what to do, per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.opened import Home

if TYPE_CHECKING:
    from client.checks import CheckResult
    from models.study import Study

USAGE = 2


def add_commands(app: typer.Typer) -> None:
    """Put the command into `fedtwin site`."""
    app.command()(check)


def check(
    home: Home,
    study: Annotated[
        Path | None, typer.Option(help="A study.toml to hold your data, and the dry run, against.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for scripts; faults of the table are not in it.")
    ] = False,
) -> None:
    """Check that this site can take part: folder, machine, network, data, and a round on made-up patients.

    Exit status 0: all passed. 1: something is to be done. 2: it could not be checked.
    """
    from client.checks import check_site
    from client.home import SiteHome
    from privacy.cli.folders import HomeError

    try:
        site = SiteHome.open(home)
    except HomeError as error:
        raise _usage(error) from None
    asked = _read(study)
    results = []
    for result in check_site(site, study=asked):
        results.append(result)
        if not as_json:
            _show(result)
    good = all(result.passed for result in results)
    if as_json:
        typer.echo(json.dumps({"passed": good, "checks": [one.to_dict() for one in results]}, indent=2))
    elif good:
        if asked is None:
            typer.echo(
                "With --study FILE your data are held against a study, and their number against your minimum."
            )
        typer.echo("Everything passed. Next: fedtwin site up")
    else:
        typer.echo(f"To be done: {', '.join(one.name for one in results if not one.passed)}")
    if not good:
        raise typer.Exit(1)


def _show(result: CheckResult) -> None:
    if result.passed:
        typer.echo(f"{result.name:<12} PASSED   {result.detail}")
        return
    typer.echo(f"{result.name:<12} TO DO    {result.detail}")
    for line in result.private:
        typer.echo(f"{'':<21} {line}")
    typer.echo(f"{'':<21} -> {result.advice}")


def _read(file: Path | None) -> Study | None:
    from models.study import Study, StudyError

    if file is None:
        return None
    try:
        return Study.from_toml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StudyError) as error:
        raise _usage(error) from None


def _usage(error: object) -> typer.Exit:
    typer.echo(f"fedtwin: {error}", err=True)
    return typer.Exit(USAGE)
