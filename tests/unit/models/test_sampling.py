"""Sampling: given entries exact, seeds, solvers agree with the exact Gaussian."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE
from fedpriv.diffusion import point_forecast, sample
from fedpriv.diffusion import sampling as module
from fedpriv.diffusion.sampling import exact_law
from fedpriv.errors import InputError
from fedpriv.models import build_denoiser
from fedpriv.models.gaussian import GaussianModel, toeplitz
from fedpriv.models.reference import Reference

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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("trainable", ["skip", "all"])
def test_a_warm_start_draws_from_its_own_posterior(small, windows, solver, trainable):
    """Covariance over a gap, with the untrained transformer on and off, against the Gaussian's exact conditional."""
    changes = {"diffusion.solver": solver, "model.trainable": trainable, "task.kind": "imputation"}
    scenario = small.override(changes | {"diffusion.steps": 1000, "diffusion.sampling_steps": 100})
    model = build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(1))
    gaussian = GaussianModel(torch.zeros(32).double(), toeplitz(0.95 ** torch.arange(32).double()))
    model.reference = Reference("gaussian", gaussian, torch.zeros(0))
    examples = windows(1, scenario)
    given = torch.ones_like(examples.given)
    given[:, 10:22] = False
    examples = replace(examples, given=given, target=~given)
    drawn = _draw(model, examples, scenario, count=4000)
    point = point_forecast(model, examples, scenario.diffusion)
    mean, exact = gaussian.conditional(examples.values[0].T.double(), given[0, :, 0])
    size = exact.diagonal().sqrt()
    expected = 2.0 / math.pi * torch.arcsin(exact / (size[:, None] * size).clamp(min=1e-12))
    for channel in range(2):
        scale = examples.scale[0, 0, channel]
        torch.testing.assert_close(
            (point[0, 10:22, channel] - examples.loc[0, 0, channel]).double() / scale,
            mean[channel],
            rtol=1e-3,
            atol=1e-3,
        )
        error = ((drawn - point)[:, 0, 10:22, channel] / scale).numpy()
        # Kendall's tau of a law with elliptical contours is 2/pi arcsin(correlation), however heavy its tails
        for i, j in ((0, 1), (0, 11), (4, 7)):
            seen = stats.kendalltau(error[:, i], error[:, j]).statistic
            assert abs(seen - float(expected[i, j])) < 5 * 0.011
        spread = np.quantile(np.abs(error), [0.5, 0.9], axis=0)
        law = TAIL_SCALE * stats.t.ppf([0.75, 0.95], TAIL_DOF)[:, None] * size.numpy()
        np.testing.assert_allclose(spread, law, rtol=0.1 if solver == "ddpm" else 0.07)


@pytest.mark.parametrize("kind", ["forecast", "imputation"])
@pytest.mark.parametrize(("warm", "guidance"), [(False, 1.0), (True, 1.0), (False, 2.5)])
def test_the_exact_law_is_that_of_the_samples(small, windows, kind, warm, guidance):
    scenario = small.override(
        {"task.kind": kind, "diffusion.condition_dropout": 0.1, "diffusion.guidance": guidance, "model.depth": 0}
    )
    model, examples = _build(scenario), windows(2, scenario)
    if warm:
        gaussian = GaussianModel(torch.zeros(32).double(), toeplitz(0.95 ** torch.arange(32).double()))
        model.reference = Reference("gaussian", gaussian, torch.zeros(0))
    law = exact_law(model, examples, scenario.diffusion)
    drawn = _draw(model, examples, scenario, count=4000)
    assert law is not None and torch.equal(law.centre[examples.given], drawn[0][examples.given])
    target = examples.target
    assert (law.spread[~target] == 0).all() and (law.spread[target] > 0).all()
    if guidance == 1.0:
        torch.testing.assert_close(law.centre, point_forecast(model, examples, scenario.diffusion))
    standard = (drawn[:, target] - law.centre[target]) / law.spread[target]
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = (standard <= law.standard_quantile(level)).double().mean(dim=0)
        assert (below - level).abs().max() < 5.5 * math.sqrt(level * (1 - level) / 4000)


def test_a_transformer_has_no_exact_law(small, windows):
    scenario = small.override({"model.trainable": "all"})
    assert exact_law(_build(scenario), windows(2, scenario), scenario.diffusion) is None


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
