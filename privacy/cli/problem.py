"""How a command ends when something is wrong: one sentence on standard error, status 1."""

from __future__ import annotations

import typer


def say_problem(message: object) -> typer.Exit:
    """Say what is wrong on standard error; raise the result to end the command with status 1."""
    typer.echo(f"fedtwin: {message}", err=True)
    return typer.Exit(1)
