"""D2 for steps that ask two questions: each answer has its own noise, and they are independent."""

import math

import torch
from dp_accounting import dp_event
from scipy import stats

from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.joint import Query, gradient_noise, release_jointly
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.seeding import stream

SIGMA, BOUND, SIZE, SIGNIFICANCE = 1.5, 0.4, 20_000, 1e-3


class Sampler:
    def amplify(self, inner, unit, relation):
        return dp_event.PoissonSampledDpEvent(0.1, inner)


def test_noise_of_gradient_and_queries():
    mechanism = Mechanism(
        sampler=Sampler(), clipper=make_clipper("flat", bound=BOUND), noise_multiplier=SIGMA, unit="reading",
        relation="zero-out",
    )  # fmt: skip
    bits = Query(torch.zeros(SIZE, dtype=torch.float64), 0.5, 2.0)
    error = Query(torch.zeros(SIZE, dtype=torch.float64), 3.6, 3.6 * 4.5)
    left = gradient_noise(SIGMA, [(0.5 / 2.0) ** 2, 4.5**-2])
    assert left**-2 + 0.25**2 + 4.5**-2 == SIGMA**-2 or math.isclose(left**-2 + 0.25**2 + 4.5**-2, SIGMA**-2)
    released = release_jointly(
        mechanism, ClippedSum(torch.zeros(SIZE), BOUND), [bits, error], denominator=8.0, rng=stream(5, "noise")
    )
    assert released.event == dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(SIGMA))
    parts = [released.grad.double() * 8.0 / (left * BOUND), released.answers[0] / 2.0, released.answers[1] / 16.2]
    for part in parts:
        assert stats.kstest(part.numpy(), "norm").pvalue > SIGNIFICANCE
        spread = float(part.square().sum())
        assert SIGNIFICANCE / 2 < stats.chi2(SIZE).cdf(spread) < 1 - SIGNIFICANCE / 2
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(torch.corrcoef(torch.stack([parts[i], parts[j]]))[0, 1])) < 4 / SIZE**0.5


def test_without_a_query_the_step_is_the_plain_one():
    mechanism = Mechanism(
        sampler=Sampler(), clipper=make_clipper("flat", bound=BOUND), noise_multiplier=SIGMA, unit="reading",
        relation="zero-out",
    )  # fmt: skip
    clipped = ClippedSum(torch.ones(100), BOUND)
    alone = mechanism.release(clipped, denominator=8.0, rng=stream(5, "noise"))
    joint = release_jointly(mechanism, clipped, [], denominator=8.0, rng=stream(5, "noise"))
    assert torch.equal(alone.grad, joint.grad) and alone.event == joint.event and joint.answers == ()
