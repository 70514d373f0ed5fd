"""The scenario at the size of arXiv:2602.22610 can be built and stepped, on series made up for it."""

import pytest
import torch

from fedpriv.data.clients import roster
from fedpriv.resolving import resolve
from fedpriv.training import LocalWorker
from simulations.scenarios import load


@pytest.mark.slow
def test_the_paper_size_scenario_makes_a_private_step():
    stated = load("dp-aware-paper")
    model, federation = stated.model, stated.federation
    assert (model.depth, model.width, model.heads, model.patch) == (8, 256, 8, 1)
    assert (stated.diffusion.steps, federation.rounds * federation.local_steps) == (1000, 20_000)
    assert model.warm_start == "" and model.trainable == "all" and stated.privacy.noise_multiplier == 0.1
    few = {"data.source": "synthetic", "data.clients": [], "data.days": 60, "privacy.sampling_prob": 0.1}
    scenario = resolve(load("dp-aware-paper").override(few | {"data.train_until": "", "data.validation_until": ""}))
    worker = LocalWorker(scenario)
    client, start = roster(scenario).names[0], worker.initial_parameters()
    done = worker.train(client, start, round=1, steps=1, mode="simulation")
    assert len(start) > 9_000_000 and done.parameters.shape == start.shape
    assert bool(torch.isfinite(torch.as_tensor(done.parameters)).all())
    moved = (torch.as_tensor(done.parameters) != torch.as_tensor(start)).float().mean()
    assert moved > 0.99  # noise reaches every parameter
