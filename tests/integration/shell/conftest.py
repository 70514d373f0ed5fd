"""A federation small enough to run in a second, and ways to break it."""

from __future__ import annotations

import pytest

from clients import client_app
from clients.node import forget
from fedpriv.config import Scenario
from fedpriv.reports.folder import RunFolder
from simulations.flower_internals import become_server
from simulations.inline_grid import InlineGrid
from simulations.launch import prepare
from strategies.federation import federation

TINY = {
    "data.days": 60,
    "partition.clients": 3,
    "task.context": 48,
    "model.depth": 0,
    "diffusion.multiplicity": 2,
    "diffusion.sampling_steps": 2,
    "privacy.sampling_prob": 0.3,
    "federation.rounds": 6,
    "evaluation.windows": 4,
    "evaluation.samples": 2,
    "evaluation.every": 3,
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """`tiny(**changes)` -> a prepared scenario with its own folder; dots are written as double underscores."""
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    become_server()
    forget()
    client_app.release()

    def make(name="run", **changes):
        overrides = TINY | {key.replace("__", "."): value for key, value in changes.items()}
        return prepare(Scenario(), overrides, out=tmp_path / name)

    yield make
    client_app.release()
    forget()


@pytest.fixture
def run_inline():
    """`run_inline(scenario, app=..., folder=...)` -> (model, folder): the federation without its write-up."""

    def run(scenario, *, app=client_app.app, folder=None, resume=False, listener=None, clients=3):
        folder = folder or RunFolder.create(scenario.run.out, scenario, resume=resume)
        grid = InlineGrid(app, clients, scenario.flat())
        try:
            return federation(grid, scenario, folder, listener=listener), folder
        finally:
            client_app.release()

    return run


@pytest.fixture
def kept():
    """`kept(scenario)` -> (round, model) of the checkpoint."""

    def read(scenario):
        found = RunFolder.open(scenario.run.out).load_checkpoint()
        assert found is not None
        return found[0], found[1]["model"]

    return read
