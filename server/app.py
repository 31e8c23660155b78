"""The Flower ServerApp that a run names: hands the run's Grid to the round loop, and nothing else."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.flower_adapter import FlowerFederation
from server.home import CoordinatorHome
from server.rounds import run_rounds
from server.run_attempts import read_ticket
from server.store import Store

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study's rounds; the home is this process's, only the run's id and attempt come with the run."""
    home = CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))
    run_id, attempt = read_ticket(str(context.run_config["run"]))
    with closing(Store.open(home)) as store:
        federation = FlowerFederation(grid)
        run_rounds(federation, store, run_id, attempt=attempt, flower_run_id=str(context.run_id))
