"""The Gaussian mechanism: event, noise, divisor, refusals."""

import math

import numpy as np
import pytest
import torch
from dp_accounting import dp_event

from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.audit.probe import Probe, made_up, probe_loss, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.mechanism import Mechanism, plain_mean
from fedpriv.seeding import SystemRandom, keyed_stream, stream


class Sampler:
    """Remembers what it was asked."""

    def amplify(self, inner, unit, relation):
        assert unit == "day" and relation == "zero-out"
        return dp_event.PoissonSampledDpEvent(0.25, inner)


def mechanism(sigma=1.5, clipper="psasc", bound=1.0):
    return Mechanism(
        sampler=Sampler(), clipper=make_clipper(clipper, bound=bound), noise_multiplier=sigma, unit="day",
        relation="zero-out",
    )  # fmt: skip


class Fixed:
    """Noise that is all ones, to see where it goes."""

    def standard_normal(self, size):
        return np.ones(size)


def test_the_event_comes_from_the_parts():
    want = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.5))
    assert mechanism().step_event() == want
    released = mechanism().release(ClippedSum(torch.zeros(3), 2.0), denominator=4.0, rng=stream(1, "noise"))
    assert released.event == want


def test_noise_follows_the_bound_is_added_to_the_sum_and_then_divided():
    made = mechanism()  # psasc: bound 1 / 0.5 = 2
    got = made.release(ClippedSum(torch.tensor([1.0, -2.0]), 2.0), denominator=4.0, rng=Fixed())
    assert made.stddev == 3.0
    assert got.grad.tolist() == [(1 + 3) / 4, (-2 + 3) / 4] and got.grad.dtype == torch.float32


def test_an_empty_batch_is_released_with_noise():
    model, clipper = Probe(), make_clipper("psasc", bound=1.0)
    clipped = make_engine("ghost", model, probe_loss).clipped_sum(*made_up(0, torch.Generator()), clipper)
    got = mechanism().release(clipped, denominator=5.0, rng=stream(1, "noise")).grad
    assert float(got.double().std()) == pytest.approx(3.0 / 5.0, rel=0.05)


def test_the_sum_is_left_alone_and_noise_is_fresh():
    total, rng = torch.ones(1000), stream(1, "noise")
    one = mechanism().release(ClippedSum(total, 2.0), denominator=1.0, rng=rng).grad
    two = mechanism().release(ClippedSum(total, 2.0), denominator=1.0, rng=rng).grad
    assert torch.equal(total, torch.ones(1000)) and not torch.equal(one, two)


class Plain:
    """A source that is not known to hand out pieces."""

    def __init__(self, rng):
        self.standard_normal = rng.standard_normal


@pytest.mark.parametrize("size", [1, 40_001])
def test_noise_by_the_piece_is_the_same_to_the_bit(size):
    clipped = ClippedSum(torch.sin(torch.arange(float(size))), 2.0)
    got = [mechanism().release(clipped, denominator=13.7, rng=rng).grad
           for rng in (keyed_stream(1, "noise"), Plain(keyed_stream(1, "noise")))]  # fmt: skip
    assert torch.equal(*got) and got[0].dtype == torch.float32 and len(got[0]) == size


def test_system_randomness_serves_as_well():
    got = mechanism().release(ClippedSum(torch.zeros(200_000), 2.0), denominator=1.0, rng=SystemRandom()).grad
    assert float(got.double().std()) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_noise_must_be_positive(sigma):
    with pytest.raises(InputError, match="noise_multiplier"):
        mechanism(sigma=sigma)


@pytest.mark.parametrize("denominator", [0.0, -1.0, math.inf, math.nan])
def test_the_divisor_must_be_positive(denominator):
    with pytest.raises(InputError, match="denominator"):
        mechanism().release(ClippedSum(torch.zeros(2), 2.0), denominator=denominator, rng=Fixed())


def test_a_sum_clipped_otherwise_is_refused():
    with pytest.raises(CheckFailed, match="nothing was released"):
        mechanism().release(ClippedSum(torch.zeros(2), 1.0), denominator=1.0, rng=Fixed())


def test_a_sum_that_is_not_finite_is_refused():
    with pytest.raises(CheckFailed, match="not finite"):
        mechanism().release(ClippedSum(torch.tensor([math.nan]), 2.0), denominator=1.0, rng=Fixed())


def test_plain_mean_is_the_gradient_of_the_mean_loss():
    torch.manual_seed(0)
    model = randomised(Probe(), torch.Generator().manual_seed(0))
    examples, draws = made_up(5, torch.Generator().manual_seed(1), draws=2)
    probe_loss(model, examples, draws).mean().backward()
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    for microbatch in (0, 2):
        got = plain_mean(model, probe_loss, examples, draws, microbatch=microbatch)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert not plain_mean(model, probe_loss, *made_up(0, torch.Generator())).any()
    examples.values[1] = math.nan
    assert plain_mean(model, probe_loss, examples, draws).isfinite().all()
