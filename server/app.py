"""The Flower ServerApp that a run names: hands the run's Grid to the round loop, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.flower_adapter import FlowerFederation
from server.home import CoordinatorHome
from server.rounds import run_rounds
from server.store import Store

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study's rounds; the home is this process's, only the run's id comes with the run."""
    home = CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))
    run_rounds(FlowerFederation(grid), Store.open(home), str(context.run_config["run"]))
