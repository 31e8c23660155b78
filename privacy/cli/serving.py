"""What `fedtwin site up` and `fedtwin server up` have in common: the processes' environment, and keeping them up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from privacy.cli.problem import say_problem
from privacy.cli.proxies import without_proxy
from privacy.cli.supervisor import ProcessFailedError, ProcessSpec, Supervisor


def process_environment(home: Path) -> dict[str, str]:
    """What every process of a home is started with, beside the environment of the person who starts it.

    Args:
        home: the site's or the coordinator's folder; Flower's own files go into its `flower/`.
    """
    return {
        **without_proxy(os.environ),
        "FEDTWIN_HOME": str(home),
        "FLWR_HOME": str(home / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        # Torch's threads spin while they wait; on busy cores a fit of seconds then takes many minutes.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def keep_running(specs: Sequence[ProcessSpec], logs: Path) -> None:
    """Run the processes until Ctrl-C and say what happens to each; ends the command where one fails for good."""
    try:
        Supervisor(specs, logs).run(
            on_event=lambda event: typer.echo(f"{event.name}: {event.kind} {event.detail}".rstrip())
        )
    except ProcessFailedError as error:
        raise say_problem(error) from None
