"""On Gaussian toys the truth is known: the model must find it, and its samples must be calibrated."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from fedpriv.config import Scenario
from fedpriv.diffusion import draw, make_loss, make_schedule, point_forecast, sample
from fedpriv.examples import Examples
from fedpriv.metrics import score
from fedpriv.models import Denoiser, build_denoiser
from fedpriv.models.baselines import last_value, seasonal_naive

CONTEXT, HORIZON = 6, 4
SPREAD = torch.tensor([0.3, 0.6, 1.0, 2.0])  # of the residual given the context, per step, in units of data_scale


def _scenario(**changes: object) -> Scenario:
    return Scenario().override(
        {
            "task.context": CONTEXT,
            "task.horizon": HORIZON,
            "model.depth": 0,
            "model.width": 16,
            "model.heads": 2,
            "model.patch": 2,
            "model.skip_rank": 0,
            "model.skip_memory": 0.0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def _toy(rows: int, data_scale: float, seed: int) -> tuple[Examples, torch.Tensor]:
    """Residual = data_scale * (context @ W + SPREAD * noise); also W, [H, context]."""
    g = torch.Generator().manual_seed(seed)
    weight = 0.5 * torch.randn(HORIZON, CONTEXT, generator=torch.Generator().manual_seed(99))
    seen = torch.randn(rows, CONTEXT, 1, generator=g)
    base = torch.randn(rows, HORIZON, 1, generator=g)
    rest = seen.transpose(1, 2) @ weight.T + SPREAD * torch.randn(rows, 1, HORIZON, generator=g)
    values = torch.cat([seen, base + data_scale * rest.transpose(1, 2)], dim=1)
    target = torch.zeros_like(values, dtype=torch.bool)
    target[:, CONTEXT:] = True
    baseline = torch.cat([torch.zeros_like(seen), base], dim=1)
    calendar, one = torch.zeros(rows, CONTEXT + HORIZON, 3), torch.ones(rows, 1, 1)
    return Examples(values, ~target, target, calendar, baseline, 5 * one, 3 * one), weight


def _train(scenario: Scenario, examples: Examples, steps: int = 800) -> Denoiser:
    model = build_denoiser(scenario, channels=1, calendar_features=3, generator=torch.Generator().manual_seed(1))
    loss, schedule = make_loss(scenario.diffusion), make_schedule(scenario.diffusion)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    g = torch.Generator().manual_seed(2)
    for _ in range(steps):
        rows = examples.rows(torch.randint(len(examples), (128,), generator=g))
        optimiser.zero_grad()
        loss(model, rows, draw(rows, 8, schedule, g)).mean().backward()
        optimiser.step()
        decay.step()
    return model


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_every_prediction_finds_mean_and_spread(prediction, schedule):
    scenario = _scenario(diffusion__prediction=prediction, diffusion__schedule=schedule)
    examples, weight = _toy(20_000, scenario.diffusion.data_scale, seed=0)
    model = _train(scenario, examples)
    matrix = model.skip(torch.eye(CONTEXT)[None])[0].T - model.skip(torch.zeros(1, 1, CONTEXT))[0].T
    assert (matrix - weight).abs().max() < 0.15
    torch.testing.assert_close(model.stddev().detach(), SPREAD, rtol=0.08, atol=0.0)

    # the gain at work is the Wiener gain of the truth
    log_snr, signal = model.log_snr, model.signal
    v = SPREAD.square()
    for time in (50, 300, 600):
        a2 = float(signal[time]) ** 2
        gain = model.log_scale(log_snr[time].reshape(1, 1)).detach()[0]
        torch.testing.assert_close(gain, a2 * v / (a2 * v + 1 - a2), rtol=0.15, atol=0.01)

    # held out: the point forecast is the conditional mean, and intervals cover what they say
    held, _ = _toy(2_000, scenario.diffusion.data_scale, seed=1)
    truth = held.values * held.scale + held.loc
    g = torch.Generator().manual_seed(3)
    drawn = sample(model, held, count=20, diffusion=scenario.diffusion, generator=g)
    unit = 3 * scenario.diffusion.data_scale
    result = score(truth, point_forecast(model, held, scenario.diffusion), drawn, held.target, unit).finalize()
    assert result["mse"] == pytest.approx(float(v.mean()), rel=0.06)
    assert 0.88 < result["coverage90"] < 0.92
    assert 0.47 < result["coverage50"] < 0.53
    best = float(SPREAD.mean()) / torch.pi**0.5  # CRPS of the true Gaussian
    assert best * 0.96 < result["crps"] < best * 1.06


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++"])
def test_solvers_are_calibrated_with_the_transformer_running(solver):
    """The same through the solvers: the transformer is there, untrained, and 50 steps are made."""
    scenario = _scenario(model__depth=1, diffusion__solver=solver, diffusion__sampling_steps=50, model__trainable="all")
    held, weight = _toy(300, scenario.diffusion.data_scale, seed=1)
    model = build_denoiser(scenario, channels=1, calendar_features=3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.skip.linear.weight.copy_(model.skip.basis @ weight)
        model.log_scale.raw.copy_(3.0 * torch.atanh(SPREAD.log() / 3.0))
    g = torch.Generator().manual_seed(3)
    drawn = sample(model, held, count=20, diffusion=scenario.diffusion, generator=g)
    truth = held.values * held.scale + held.loc
    result = score(truth, drawn.mean(0), drawn, held.target, 1.0).finalize()
    assert 0.86 < result["coverage90"] < 0.93


def test_coverage_of_few_calibrated_samples_is_nominal():
    """Truth and samples from one law: coverage is nominal for any number of samples that reaches the levels."""
    g = torch.Generator().manual_seed(0)
    n = 40_000
    for count in (20, 50):
        truth = torch.randn(n, 1, 1, generator=g)
        drawn = torch.randn(count, n, 1, 1, generator=g)
        got = score(truth, torch.zeros_like(truth), drawn, torch.ones(n, 1, 1, dtype=torch.bool), 1.0).finalize()
        for name, share in (("coverage50", 0.5), ("coverage90", 0.9)):
            z = (got[name] - share) / (share * (1 - share) / n) ** 0.5
            assert abs(z) < 4.0, (count, name, got[name])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_stratified_times_are_uniform(count):
    scenario = _scenario(diffusion__steps=20)
    examples, _ = _toy(4_000, 1.0, seed=0)
    draws = draw(examples, count, make_schedule(scenario.diffusion), torch.Generator().manual_seed(0))
    observed = torch.bincount(draws.time.flatten(), minlength=20).numpy()
    assert stats.chisquare(observed).pvalue > 1e-3  # stratified counts vary less than multinomial ones
    assert abs(float(draws.noise.mean())) < 4 / draws.noise.numel() ** 0.5
    assert float(draws.noise.std()) == pytest.approx(1.0, abs=4 / (2 * draws.noise.numel()) ** 0.5)


def test_baseline_bands_are_calibrated_where_their_model_holds():
    """A random walk for the last value, and a season plus white noise for the seasonal naive."""
    g = torch.Generator().manual_seed(0)
    rows, length, horizon, period = 500, 200, 8, 8
    noise = torch.randn(rows, length, 1, generator=g)
    season = torch.sin(torch.arange(length) * 2 * torch.pi / period)[None, :, None]
    given = (torch.arange(length) < length - horizon)[None, :, None].expand(rows, length, 1)
    one = torch.ones(rows, 1, 1)
    for values, make in ((noise.cumsum(1), last_value), (season + 0.3 * noise, seasonal_naive)):
        baseline = values.roll(period, dims=1)
        calendar = torch.zeros(rows, length, 0)
        band = make(Examples(values, given, ~given, calendar, baseline, 0 * one, one), period=period)
        drawn = band.sample(50, g)
        result = score(values, band.point, drawn, ~given, 1.0).finalize()
        assert 0.87 < result["coverage90"] < 0.93
