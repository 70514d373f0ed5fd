"""Epsilons computed elsewhere (dp-accounting 0.6 at interval 1e-3, quadrature), reproduced within 1 %."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from scipy.stats import norm

from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.laws import binomial_law, event_of_law
from fedpriv.privacy.mixtures import GaussianMixtureLoss
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, event_unit

DELTA = 1e-5
gauss = dp_event.GaussianDpEvent


@pytest.mark.parametrize(
    ("sigma", "law", "steps", "zero_out", "replace_one"),
    [
        (1.0, binomial_law(1, 0.008), 1000, 1.4367, 2.2197),
        (5.2, binomial_law(1, 0.1138), 500, 1.9938, 4.2616),
        (1.0, binomial_law(4, 0.008), 1000, 6.868, 11.021),
        (1.0, binomial_law(24, 0.008), 1000, 68.35, 121.9),
        (5.2, RandomPhaseTiling(96, 0.1138).law(event_unit(24)), 500, 2.5387, 5.4701),
        pytest.param(1.0, binomial_law(96, 0.008), 1000, 586.0, 1030.0, marks=pytest.mark.slow),
    ],
)
def test_goldens(sigma: float, law: np.ndarray, steps: int, zero_out: float, replace_one: float):
    event = event_of_law(gauss(sigma), law)
    assert epsilon(event, steps, DELTA, "zero-out") == pytest.approx(zero_out, rel=0.01)
    assert epsilon(event, steps, DELTA, "add-remove") == pytest.approx(zero_out, rel=0.01)
    assert epsilon(event, steps, DELTA, "replace-one") == pytest.approx(replace_one, rel=0.01)


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "expected"), [(0.6, 0.01, 1000, 7.43), (0.8, 0.004, 1000, 1.28), (2.0, 0.25, 200, 9.56)]
)
def test_poisson_goldens(sigma: float, q: float, steps: int, expected: float):
    event = RandomPhaseTiling(96, q).amplify(gauss(sigma), READING, "zero-out")
    assert epsilon(event, steps, DELTA, "zero-out") == pytest.approx(expected, rel=0.01)


def test_one_step_deltas_of_the_mixtures():
    """k = 4, q = .1, sigma = .7. The values at 2 and 4 are those of the quadrature below and of dp-accounting."""
    eps, counts, weights = np.array([0.5, 1.0, 2.0, 4.0]), np.arange(5.0), binomial_law(4, 0.1)
    single = GaussianMixtureLoss(0.7, counts, weights, "remove").get_delta_for_epsilon(eps)
    double = GaussianMixtureLoss(0.7, counts, weights, "replace").get_delta_for_epsilon(eps)
    np.testing.assert_allclose(single, [0.119287, 0.0786096, 0.0371755, 0.00995717], rtol=1e-5)
    np.testing.assert_allclose(double, [0.173789, 0.110475, 0.0503177, 0.0129650], rtol=1e-5)


@pytest.mark.parametrize("side", ["remove", "add", "replace"])
def test_hockey_stick_by_quadrature(side: str):
    counts, weights, sigma = np.array([0.0, 1.0, 3.0]), np.array([0.5, 0.3, 0.2]), 1.3
    x = np.linspace(-25, 25, 400_001)
    shifted = [sum(w * norm.pdf(x, s * c, sigma) for w, c in zip(weights, counts, strict=True)) for s in (-1, 1)]
    zero = norm.pdf(x, 0, sigma)
    upper, lower = {"remove": (shifted[0], zero), "add": (zero, shifted[1]), "replace": tuple(shifted)}[side]
    eps = np.array([-1.0, -0.2, 0.0, 0.3, 0.6, 1.5])
    expected = [np.maximum(upper - np.exp(e) * lower, 0).sum() * (x[1] - x[0]) for e in eps]
    got = GaussianMixtureLoss(sigma, counts, weights, side).get_delta_for_epsilon(eps)  # pyright: ignore
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("relation", list(NeighboringRelation))
def test_agrees_with_dp_accounting_for_one_window(relation: NeighboringRelation):
    """Our mixtures with k = 1 and dp-accounting's own sampled Gaussian are the same thing."""
    ours = dp_event.MixtureOfGaussiansDpEvent(1.1, [0.0, 1.0], [0.95, 0.05])
    theirs = dp_event.PoissonSampledDpEvent(0.05, gauss(1.1))
    accountant = PLDAccountant(relation, 1e-3).compose(theirs, 200)
    assert epsilon(ours, 200, DELTA, relation) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert epsilon(theirs, 200, DELTA, relation) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)


def test_agrees_with_dp_accounting_for_several_windows():
    event = dp_event.MixtureOfGaussiansDpEvent(1.5, [0.0, 1.0, 2.0], [0.8, 0.15, 0.05])
    theirs = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3).compose(event, 50).get_epsilon(DELTA)
    assert epsilon(event, 50, DELTA, "zero-out") == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_double_mixture_by_simulation():
    """k = 4, one step, 4 million draws of the loss: delta(1) within four standard errors."""
    rng, weights, counts, sigma = np.random.default_rng(3), binomial_law(4, 0.1), np.arange(5), 0.7
    draws = rng.choice(counts, 4_000_000, p=weights) * -1.0 + sigma * rng.standard_normal(4_000_000)
    log = [
        np.log(sum(w * norm.pdf(draws, s * c, sigma) for w, c in zip(weights, counts, strict=True))) for s in (-1, 1)
    ]
    gain = np.maximum(0.0, 1 - np.exp(1.0 - (log[0] - log[1])))
    exact = GaussianMixtureLoss(sigma, counts.astype(float), weights, "replace").get_delta_for_epsilon(1.0)
    assert abs(gain.mean() - exact) < 4 * gain.std() / 2000
