"""The loss of one example, and its draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedpriv.diffusion import draw, make_loss, make_schedule
from fedpriv.diffusion.loss import WEIGHT_CAP, loss_weights, residual
from fedpriv.examples import Draws


class _Constant(torch.nn.Module):
    """An estimate that is `value` everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t, time, examples):
        return torch.full_like(x_t, self.value)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_it_is_the_mse_of_the_named_quantity(small, windows, prediction):
    scenario = small.override({"diffusion.prediction": prediction})
    examples, schedule = windows(6, scenario), make_schedule(scenario.diffusion)
    draws = draw(examples, 4, schedule, torch.Generator().manual_seed(0))
    loss = make_loss(scenario.diffusion)(_Constant(0.3), examples, draws)
    y0 = residual(examples, scenario.diffusion.data_scale).double()
    for b in range(6):
        total = 0.0
        for k in range(4):
            abar = schedule.alpha_bar[draws.time[b, k]]
            a, s, e = abar.sqrt(), (1 - abar).sqrt(), draws.noise[b, k].double()
            y_t, guess = a * y0[b] + s * e, torch.full_like(y0[b], 0.3)
            wrong = {
                "x0": guess - y0[b],
                "epsilon": (y_t - a * guess) / s - e,
                "v": (a * y_t - guess) / s - (a * e - s * y0[b]),
            }[prediction]
            raw = wrong[examples.target[b]].square().mean()
            weight = {"x0": 1.0, "epsilon": abar / (1 - abar), "v": 1 / (1 - abar)}[prediction]
            total += float(raw * min(1.0, WEIGHT_CAP / weight))
        assert float(loss[b]) == pytest.approx(total / 4, rel=1e-4)


def test_weights_are_capped_and_positive(small):
    for schedule in ("linear", "cosine"):
        table = make_schedule(small.override({"diffusion.schedule": schedule}).diffusion)
        for prediction in ("x0", "epsilon", "v"):
            weights = loss_weights(prediction, table)
            assert (weights > 0).all() and weights.max() <= WEIGHT_CAP


def test_a_row_without_targets_costs_nothing(small, windows):
    examples = windows(3, small)
    target = examples.target.clone()
    target[1] = False
    examples = replace(examples, target=target)
    draws = draw(examples, 2, make_schedule(small.diffusion), torch.Generator().manual_seed(0))
    loss = make_loss(small.diffusion)(_Constant(0.3), examples, draws)
    assert loss[1] == 0 and loss[0] > 0 and torch.isfinite(loss).all()


def test_each_row_is_normalised_by_its_own_targets(small, windows):
    """Twice the same row, once with half of its targets: neither's loss knows of the other's count."""
    examples = windows(1, small).rows(torch.tensor([0, 0]))
    target = examples.target.clone()
    target[1, 28:] = False
    both = replace(examples, target=target)
    draws = draw(examples, 2, make_schedule(small.diffusion), torch.Generator().manual_seed(0))
    draws = Draws(draws.time[:1].repeat(2, 1), draws.noise[:1].repeat(2, 1, 1, 1))
    loss = make_loss(small.diffusion)(_Constant(0.0), both, draws)
    y0 = residual(both, small.diffusion.data_scale)
    for i in range(2):
        assert float(loss[i]) == pytest.approx(float(y0[i][target[i]].square().mean()), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_times_are_stratified_per_row(small, windows, count):
    draws = draw(windows(50, small), count, make_schedule(small.diffusion), torch.Generator().manual_seed(0))
    assert draws.time.shape == (50, count) and draws.noise.shape == (50, count, 32, 2)
    edges = torch.arange(count) * 100 / count
    assert (draws.time >= edges.floor()).all() and (draws.time <= edges + 100 / count).all()
    assert len({tuple(row.tolist()) for row in draws.time}) > 25  # rows have their own jitter


def test_draws_repeat_with_the_seed(small, windows):
    schedule = make_schedule(small.diffusion)
    one, same = (draw(windows(3, small), 4, schedule, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.time, same.time) and torch.equal(one.noise, same.noise)


@pytest.mark.parametrize("steps", [2, 10, 100, 1000, 4000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_last_time_is_noise_for_any_number_of_steps(small, name, steps):
    schedule = make_schedule(small.override({"diffusion.schedule": name, "diffusion.steps": steps}).diffusion)
    assert schedule.steps == steps
    assert (schedule.alpha_bar.diff() < 0).all() and 0 < schedule.alpha_bar[-1] < 1e-3
    for table in (schedule.signal, schedule.sigma, schedule.log_snr):
        assert table.shape == (steps,) and torch.isfinite(table).all()
