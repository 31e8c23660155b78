"""What every command that speaks to the coordinator's API has: where it is, with which key, and how its errors read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from privacy.cli.problem import say_problem

Url = Annotated[
    str,
    typer.Option(
        envvar="FEDTWIN_URL",
        help="The coordinator's API, for example https://coordinator.example.org or http://127.0.0.1:8000.",
    ),
]
Key = Annotated[
    str, typer.Option(envvar="FEDTWIN_KEY", help="Your API key; better in FEDTWIN_KEY than typed.")
]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDTWIN_CA",
        help="PEM file of the coordinator's own authority, for https; the system's authorities by default.",
    ),
]


class ApiCommands(TyperGroup):
    """A group whose commands end with the coordinator's own sentence when it refuses."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from server.coordinator_error import CoordinatorError

        try:
            return super().invoke(ctx)
        except CoordinatorError as error:
            raise say_problem(error) from None
