"""Bounds that follow the norms: to the true quantile from far above and far below, with the noise that is paid for."""

import math

import pytest
import torch

from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.controllers import QuantileController, StepFacts
from fedpriv.privacy.histogram_controllers import DcSgdPController
from fedpriv.privacy.joint import gradient_noise
from fedpriv.privacy.rule_state import read

BATCH, SIGMA = 200, 1.0


def follow(controller, start, steps, seed):
    """The bounds of the last third of a run on lognormal norms, Poisson batches, with noise on the statistic."""
    rng = torch.Generator().manual_seed(seed)
    state, base, bounds = controller.start(start), make_clipper("flat", bound=start), []
    stat_bound, stddev = controller.statistic_noise(SIGMA)
    left = gradient_noise(SIGMA, [(stat_bound / stddev) ** 2])
    for step in range(steps):
        clipper = controller.clipper(base, state, step)
        size = int(torch.poisson(torch.tensor(float(BATCH)), generator=rng))
        norms = torch.randn(size, generator=rng, dtype=torch.float64).exp()
        answer = controller.statistic(norms, clipper, state)
        answer = answer + stddev * torch.randn(answer.shape, generator=rng, dtype=torch.float64)
        facts = StepFacts(step=step, denominator=BATCH, sizes=(100,), sigma=SIGMA, sigma_gradient=left)
        state = controller.update(answer, clipper, state, facts)
        if step >= 2 * steps // 3:
            bounds.append(read(state["bound"]))
    return torch.tensor(bounds, dtype=torch.float64)


def lognormal_quantile(p):
    return math.exp(math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64))))


@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.8])
def test_quantile_converges_from_both_sides(gamma, factor):
    true = lognormal_quantile(gamma)
    bounds = follow(QuantileController(gamma=gamma), true * factor, 300, seed=7)
    # The estimate wanders by about eta * sd(share) per step; its mean over 100 steps is close.
    assert float(bounds.log().mean()) == pytest.approx(math.log(true), abs=0.1)
    assert float((bounds.log() - math.log(true)).abs().max()) < 0.5


@pytest.mark.parametrize("start", [0.1, 50.0])
def test_quantile_finds_equal_norms(start):
    """All norms 10: the bound goes to 10 from 0.1 and from 50 (papers spec B.6)."""
    controller, rng = QuantileController(), torch.Generator().manual_seed(3)
    state, base = controller.start(start), make_clipper("flat", bound=start)
    for step in range(300):
        clipper = controller.clipper(base, state, step)
        answer = controller.statistic(torch.full((BATCH,), 10.0, dtype=torch.float64), clipper, state)
        answer = answer + 3.0 * torch.randn(1, generator=rng, dtype=torch.float64)
        facts = StepFacts(step=step, denominator=BATCH, sizes=(1,), sigma=1.0, sigma_gradient=1.0)
        state = controller.update(answer, clipper, state, facts)
    assert read(state["bound"]) == pytest.approx(10.0, rel=0.15)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_histogram_quantile_converges_from_both_sides(factor):
    true = lognormal_quantile(0.5)
    bounds = follow(DcSgdPController(p=0.5), true * factor, 150, seed=11)
    assert float(bounds.log().mean()) == pytest.approx(math.log(true), abs=0.35)  # bins are coarse
