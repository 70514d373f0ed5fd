"""Sampling: given entries exact, seeds, solvers agree with the exact Gaussian."""

from __future__ import annotations

import pytest
import torch

from fedpriv.diffusion import point_forecast, sample
from fedpriv.diffusion import sampling as module
from fedpriv.errors import InputError
from fedpriv.models import build_denoiser

SOLVERS = ["ddim", "dpm-solver++", "ddpm"]


def _build(scenario):
    model = build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.skip.linear.weight.copy_(0.1 * torch.randn(model.skip.linear.weight.shape, generator=g))
        model.log_scale.raw.copy_(torch.linspace(-1, 0.5, len(model.log_scale.raw)))
    return model


def _draw(model, examples, scenario, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, examples, count=count, diffusion=scenario.diffusion, generator=generator)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("trainable", ["skip", "all"])
@pytest.mark.parametrize("kind", ["forecast", "imputation"])
def test_given_entries_come_back_exactly(small, windows, solver, trainable, kind):
    scenario = small.override({"diffusion.solver": solver, "model.trainable": trainable, "task.kind": kind})
    model, examples = _build(scenario), windows(3, scenario)
    drawn = _draw(model, examples, scenario)
    assert drawn.shape == (4, 3, 32, 2) and torch.isfinite(drawn).all()
    read = (examples.values * examples.scale + examples.loc).expand(4, -1, -1, -1)
    base = (examples.baseline * examples.scale + examples.loc).expand(4, -1, -1, -1)
    given, target = examples.given.expand(4, -1, -1, -1), examples.target.expand(4, -1, -1, -1)
    assert torch.equal(drawn[given], read[given])
    assert torch.equal(drawn[~given & ~target], base[~given & ~target])
    assert drawn[:, examples.target].std(dim=0).min() > 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("trainable", ["skip", "all"])
def test_the_same_seed_gives_the_same_samples(small, windows, solver, trainable):
    scenario = small.override({"diffusion.solver": solver, "model.trainable": trainable})
    model, examples = _build(scenario), windows(3, scenario)
    assert torch.equal(_draw(model, examples, scenario), _draw(model, examples, scenario))
    assert not torch.equal(_draw(model, examples, scenario), _draw(model, examples, scenario, seed=1))


@pytest.mark.parametrize(("solver", "tolerance"), [("ddim", 0.02), ("dpm-solver++", 0.005)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_solvers_converge_to_the_exact_gaussian(small, windows, solver, tolerance, schedule):
    """With the transformer at zero the equation is linear: many steps lead to mean + stddev * starting noise."""
    scenario = small.override(
        {
            "diffusion.solver": solver,
            "diffusion.schedule": schedule,
            "diffusion.steps": 1000,
            "diffusion.sampling_steps": 250,
        }
    )
    model, examples = _build(scenario), windows(2, scenario)
    solved = _draw(model, examples, scenario)
    model.run_transformer = False
    exact = _draw(model, examples, scenario)
    size = (exact - point_forecast(model, examples, scenario.diffusion)).std()
    assert (solved - exact).abs().max() < 3.5 * tolerance * size


def test_chunks_do_not_change_the_point_forecast(small, windows, monkeypatch):
    model, examples = _build(small), windows(7, small)
    whole = point_forecast(model, examples, small.diffusion)
    drawn = _draw(model, examples, small)
    monkeypatch.setattr(module, "CHUNK", 1)
    torch.testing.assert_close(point_forecast(model, examples, small.diffusion), whole)
    # every chunk draws for itself, row by row: with an ODE solver the samples are those of the whole
    torch.testing.assert_close(_draw(model, examples, small), drawn)


def test_no_rows_and_every_step_count(small, windows):
    for solver in SOLVERS:
        for steps in (1, 2, 3, 99, 100):
            scenario = small.override({"diffusion.solver": solver, "diffusion.sampling_steps": steps})
            model = _build(scenario)
            assert torch.isfinite(_draw(model, windows(1, scenario), scenario, count=2)).all()
            assert _draw(model, windows(0, scenario), scenario, count=2).shape == (2, 0, 32, 2)
    assert point_forecast(_build(small), windows(0, small), small.diffusion).shape == (0, 32, 2)


def test_more_sampling_than_diffusion_steps_is_refused(small, windows):
    scenario = small.override({"diffusion.sampling_steps": 101})
    with pytest.raises(InputError, match=r"sampling_steps=101 exceeds diffusion\.steps=100"):
        _draw(_build(scenario), windows(1, scenario), scenario)
