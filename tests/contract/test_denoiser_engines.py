"""The denoiser under every gradient engine: the same clipped sums, and norms that split by parameter group."""

from __future__ import annotations

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.diffusion import draw, make_loss, make_schedule
from fedpriv.examples import Examples
from fedpriv.models import build_denoiser, trainable_names, trainable_vector
from fedpriv.models.parameters import is_conditioning
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine

ROWS = 5


def _case(**changes: object):
    scenario = Scenario().override(
        {
            "task.context": 24,
            "task.horizon": 8,
            "model.width": 16,
            "model.depth": 2,
            "model.heads": 2,
            "model.patch": 4,
            "model.trainable": "all",
            "diffusion.steps": 100,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    g = torch.Generator().manual_seed(0)
    model = build_denoiser(scenario, channels=2, calendar_features=3, generator=g)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    target = torch.zeros(ROWS, 32, 2, dtype=torch.bool)
    target[:, 24:] = True
    values, baseline = torch.randn(2, ROWS, 32, 2, generator=g)
    calendar, one = torch.randn(ROWS, 32, 3, generator=g), torch.ones(ROWS, 1, 2)
    examples = Examples(values, ~target, target, calendar, baseline, one, one)
    draws = draw(examples, 3, make_schedule(scenario.diffusion), g)
    return model, make_loss(scenario.diffusion), examples, draws


CASES = [
    {"model__trainable": "all"},
    {"model__trainable": "all", "model__modulation": "dp-aware", "model__gamma_mode": "multiplicative"},
    {"model__trainable": "skip"},
    {"model__trainable": "transformer", "diffusion__prediction": "v"},
    {"model__trainable": "modulation", "model__modulation": "dp-aware"},
    {"model__trainable": "bias"},
    {"model__trainable": "all", "task__kind": "mixed"},
]


@pytest.mark.parametrize("name", ["functional", "ghost", "opacus", "auto"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_engines_agree_with_one_row_at_a_time(name, case):
    model, loss, examples, draws = _case(**case)
    clipper = make_clipper("flat", bound=1.0)
    expected = make_engine("single", model, loss).clipped_sum(examples, draws, clipper).total
    assert expected.shape == trainable_vector(model).shape and expected.abs().max() > 0
    got = make_engine(name, model, loss).clipped_sum(examples, draws, clipper).total
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-6)


def test_squared_norms_add_over_conditioning_and_the_rest():
    model, loss, examples, draws = _case(model__modulation="dp-aware")
    clipper = make_clipper("flat", bound=1e6)
    flags = torch.cat(
        [torch.full((torch.Size(shape).numel(),), is_conditioning(name)) for name, shape in trainable_names(model)]
    )
    for i in range(ROWS):
        row = slice(i, i + 1)
        out = make_engine("functional", model, loss).clipped_sum(examples.rows(row), draws.rows(row), clipper)
        gradient = out.total.double()
        assert out.norms is not None
        parts = gradient[flags].square().sum() + gradient[~flags].square().sum()
        assert float(parts) == pytest.approx(float(out.norms[0]) ** 2, rel=1e-4)
        assert gradient[flags].abs().max() > 0 and gradient[~flags].abs().max() > 0
