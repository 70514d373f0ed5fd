"""The Flower ServerApp: the federation of `strategies/federation.py` as Flower starts it."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpriv.config import Scenario
from fedpriv.messages import SIMULATION_VARIABLE
from fedpriv.reports.folder import RunFolder
from strategies.federation import federation
from strategies.lobby import AttentiveGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: the run folder was made by the launcher, its path is `run.out`."""
    import torch

    torch.set_num_threads(1)  # as on the clients: the start values are then the same everywhere
    scenario = Scenario.from_flat(context.run_config)
    folder = RunFolder.open(Path(scenario.run.out))
    if os.environ.get(SIMULATION_VARIABLE) == "1":
        federation(grid, scenario, folder)
    else:
        federation(AttentiveGrid(grid), scenario, folder, mode="deployment")
