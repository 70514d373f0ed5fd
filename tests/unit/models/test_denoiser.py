"""The denoiser: starts as the baseline, treats rows apart, works under the per-row gradient transforms."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch.func import functional_call, grad, vmap

from fedpriv.config import Scenario
from fedpriv.diffusion import draw, make_loss, make_schedule, point_forecast
from fedpriv.diffusion.sampling import physical
from fedpriv.examples import Draws, Examples
from fedpriv.models import Denoiser, build_denoiser
from fedpriv.models.denoiser import cosines


def _build(scenario: Scenario, seed: int = 1) -> Denoiser:
    return build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(seed))


def _shake(model: Denoiser, seed: int = 5, size: float = 0.3) -> Denoiser:
    """Random values in every parameter, so that no part is at its zero start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return model


TASKS = ["forecast", "imputation", "mixed"]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
@pytest.mark.parametrize("kind", TASKS)
def test_an_untrained_model_is_the_baseline_exactly(small, windows, kind, prediction, schedule):
    scenario = small.override({"task.kind": kind, "diffusion.prediction": prediction, "diffusion.schedule": schedule})
    examples = windows(5, scenario)
    forecast = point_forecast(_build(scenario), examples, scenario.diffusion)
    baseline = examples.baseline * examples.scale + examples.loc
    read = examples.values * examples.scale + examples.loc
    assert torch.equal(forecast, torch.where(examples.given, read, baseline))


@pytest.mark.parametrize("modulation", ["adaln-zero", "dp-aware"])
@pytest.mark.parametrize("gamma_mode", ["residual", "multiplicative"])
def test_an_untrained_model_is_the_baseline_in_all_modulations(small, windows, modulation, gamma_mode):
    scenario = small.override({"model.modulation": modulation, "model.gamma_mode": gamma_mode})
    examples = windows(3, scenario)
    forecast = point_forecast(_build(scenario), examples, scenario.diffusion)
    zero = torch.zeros_like(examples.values)
    assert torch.equal(forecast, physical(examples, zero, scenario.diffusion.data_scale))


@pytest.mark.parametrize("kind", TASKS)
def test_shape_and_zero_outside_the_targets(small, windows, kind):
    scenario = small.override({"task.kind": kind})
    examples = windows(4, scenario)
    out = _shake(_build(scenario))(torch.randn(4, 32, 2), torch.tensor([0, 1, 50, 99]), examples)
    assert out.shape == (4, 32, 2)
    assert torch.isfinite(out).all()
    assert (out[~examples.target] == 0).all()
    assert (out[examples.target] != 0).all()


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_a_zero_correction_leaves_the_wiener_estimate(small, windows, prediction):
    scenario = small.override({"diffusion.prediction": prediction})
    model, examples = _build(scenario), windows(6, scenario)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.skip.linear.weight.copy_(torch.randn(model.skip.linear.weight.shape, generator=g) * 0.1)
        model.log_scale.raw.copy_(torch.randn(8, generator=g) * 0.5)
    time = torch.tensor([0, 3, 20, 50, 90, 99])
    y_t = torch.randn(6, 32, 2, generator=g)
    abar = make_schedule(scenario.diffusion).alpha_bar[time][:, None, None]
    a, v = abar.sqrt(), model.stddev().detach().double()[None, :, None] ** 2
    m = model.mean(examples).detach().double()
    expected = m + a * v / (a**2 * v + 1 - abar) * (y_t[:, 24:].double() - a * m)
    got = model(y_t, time, examples).detach().double()[:, 24:]
    torch.testing.assert_close(got, expected * examples.target[:, 24:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_hidden_values_are_never_read(small, windows, kind):
    scenario = small.override({"task.kind": kind})
    model, examples = _shake(_build(scenario)), windows(4, scenario)
    changed = replace(examples, values=torch.where(examples.given, examples.values, 1e3))
    y_t, time = torch.randn(4, 32, 2), torch.tensor([3, 30, 60, 99])
    noise_elsewhere = torch.where(examples.target, y_t, 777.0)
    assert torch.equal(model(y_t, time, examples), model(noise_elsewhere, time, changed))


@pytest.mark.parametrize("modulation", ["adaln-zero", "dp-aware"])
def test_rows_do_not_see_each_other(small, windows, modulation):
    scenario = small.override({"model.modulation": modulation})
    model, examples = _shake(_build(scenario)), windows(5, scenario)
    draws = draw(examples, 3, make_schedule(scenario.diffusion), torch.Generator().manual_seed(0))
    loss = make_loss(scenario.diffusion)
    together = loss(model, examples, draws)
    for i in range(5):
        alone = loss(model, examples.rows(slice(i, i + 1)), draws.rows(slice(i, i + 1)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)
    others = windows(5, scenario, seed=9)
    mixed = Examples(*(torch.cat([getattr(examples, f.name)[:1], getattr(others, f.name)[1:]]) for f in fields(others)))
    torch.testing.assert_close(loss(model, mixed, draws)[0], together[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["tanh", "soft", "hard", "ste"])
def test_per_row_gradients_by_vmap_match_autograd(small, windows, operator):
    scenario = small.override({"model.modulation": "dp-aware", "model.bound_operator": operator})
    model, examples = _shake(_build(scenario)), windows(4, scenario)
    draws = draw(examples, 2, make_schedule(scenario.diffusion), torch.Generator().manual_seed(0))
    loss = make_loss(scenario.diffusion)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tensors = [getattr(examples, f.name) for f in fields(examples)]

    def one(weights, row, time, noise):
        def call(*args):
            return functional_call(model, weights, args)

        return loss(call, Examples(*(x[None] for x in row)), Draws(time[None], noise[None]))[0]  # pyright: ignore

    rows = vmap(grad(one), in_dims=(None, 0, 0, 0))(parameters, tensors, draws.time, draws.noise)
    for i in range(4):
        model.zero_grad()
        loss(model, examples.rows(slice(i, i + 1)), draws.rows(slice(i, i + 1))).sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(rows[name][i], p.grad, rtol=1e-3, atol=1e-5)


def test_building_is_deterministic_and_leaves_the_global_generator_alone(small):
    before = torch.get_rng_state()
    one, same, other = _build(small, 1), _build(small, 1), _build(small, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_frozen_zero_transformer_is_skipped_without_a_difference(small, windows):
    scenario = small.override({"model.trainable": "skip"})
    model, examples = _build(scenario), windows(4, scenario)
    assert model.transformer is not None and not model.run_transformer
    with torch.no_grad():
        model.skip.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    y_t, time = torch.randn(4, 32, 2), torch.tensor([3, 30, 60, 99])
    without = model(y_t, time, examples)
    model.run_transformer = True
    assert torch.equal(model(y_t, time, examples), without)


def test_depth_zero_has_no_transformer(small, windows):
    scenario = small.override({"model.depth": 0})
    model = _build(scenario)
    assert model.transformer is None and not model.run_transformer
    assert model(torch.randn(2, 32, 2), torch.tensor([1, 2]), windows(2, scenario)).shape == (2, 32, 2)


def test_the_point_forecast_is_the_skip_and_does_not_depend_on_noise(small, windows):
    model, examples = _shake(_build(small)), windows(4, small)
    time = torch.full((4,), 99)
    one, other = (model(torch.randn(4, 32, 2) * s, time, examples) for s in (0.0, 1.0))
    assert (one - other).abs().max() < 0.01 * one.abs().max()
    with torch.no_grad():
        model.transformer.output.weight.zero_()
        model.transformer.output.bias.zero_()
    got = point_forecast(model, examples, small.diffusion)
    skip = torch.nn.functional.pad(model.mean(examples).detach(), (0, 0, 24, 0)) * examples.target
    torch.testing.assert_close(got, physical(examples, skip, small.diffusion.data_scale), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("length", "count"), [(24, 8), (24, 24), (1, 1), (7, 3)])
def test_cosines_are_orthonormal(length, count):
    table = cosines(length, count)
    torch.testing.assert_close(table @ table.T, torch.eye(count), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("rank", [0, 1, 3, 8, 50])
def test_the_skip_forms_as_many_cosines_as_it_may(small, rank, kind):
    scenario = small.override({"model.skip_rank": rank, "task.kind": kind})
    model = _shake(_build(scenario))
    steps = 8 if kind == "forecast" else 32
    matrix = model.skip(torch.eye(model.inputs.stop)[None])[0]  # [inputs, H]
    assert matrix.shape == (24 if kind == "forecast" else 32, steps)
    most = steps if rank == 0 else min(rank * steps // 8, steps)  # as fine per step in every task
    assert int(torch.linalg.matrix_rank(matrix - matrix.mean(dim=0))) in (most, min(most, len(matrix) - 1))


def test_recent_steps_weigh_more_in_forecasts_only(small):
    weight = _build(small.override({"model.skip_memory": 5.0})).skip.weight
    assert weight[-1] == 1 and (weight.diff() >= 0).all() and weight.min() > 0
    assert (_build(small.override({"model.skip_memory": 0.0})).skip.weight == 1).all()
    assert (_build(small.override({"model.skip_memory": 5.0, "task.kind": "imputation"})).skip.weight == 1).all()


@pytest.mark.parametrize("operator", ["tanh", "soft", "hard", "ste"])
@pytest.mark.parametrize("gamma_mode", ["residual", "multiplicative"])
def test_the_whole_model_is_vanilla_as_its_bounds_go_to_infinity(small, windows, operator, gamma_mode):
    small = small.override({"model.gamma_mode": gamma_mode})
    far = {f"model.{name}_max": 1e7 for name in ("c", "gamma", "beta", "alpha")}
    aware = small.override({"model.modulation": "dp-aware", "model.bound_operator": operator} | far)
    models = []
    for scenario in (small, aware):
        model = build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(1))
        g = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=g))
        models.append(model)
    examples, time = windows(3, small), torch.tensor([5, 50, 95])
    x = torch.randn(3, 32, 2)
    want, got = (model(x, time, examples) for model in models)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
