"""What a run with a side query costs (papers spec B.6, B.7): the epsilon of the TOTAL sigma, never of what is left."""

import math

import pytest
from dp_accounting import dp_event
from scipy import optimize, stats

from fedpriv.config import PrivacyConfig
from fedpriv.privacy.accounting import epsilon, rdp_epsilon
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import Recipe, make_rules

DELTA = 1e-5


class Poisson:
    def __init__(self, prob):
        self.prob = prob

    def amplify(self, inner, unit, relation):
        return dp_event.PoissonSampledDpEvent(self.prob, inner)


def recipe(sigma, prob, steps=1000, **privacy):
    rules = make_rules(PrivacyConfig.model_validate(privacy), steps_total=steps)
    mechanism = Mechanism(
        sampler=Poisson(prob), clipper=rules.clipper, noise_multiplier=sigma, unit="reading", relation="add-remove"
    )
    return Recipe(mechanism=mechanism, rules=rules)


# name, options, sigma, rate, steps, then (true, what recording the gradient's noise alone reports), by RDP and by PLD.
# The second: batches of 64 with the published default of the noise on the count, a twentieth of the batch; PLD of both
# by the library's own accountant.
CASES = [
    ("quantile", {"sigma_b": 0.8}, 1.0, 16 / 600, 1000, (5.92, 3.78), (5.368, 3.455)),
    ("quantile", {"sigma_b": 64 / 20}, 1.0, 64 / 6000, 1000, (2.24, 2.18), (1.9608, 1.9114)),
    ("dc-sgd-p", {"sigma_h": 6.0}, 5.0, 256 / 50_000, 2000, (0.171, 0.086), (0.1601, 0.0960)),
    ("dc-sgd-e", {"sigma_h": 6.0}, 5.0, 256 / 50_000, 2000, (0.171, 0.086), (0.1601, 0.0960)),
]


@pytest.mark.parametrize(("name", "options", "sigma", "prob", "steps", "by_rdp", "by_pld"), CASES)
def test_the_event_is_that_of_the_total_noise(name, options, sigma, prob, steps, by_rdp, by_pld):
    made = recipe(sigma, prob, steps, clipper=name, clipper_options=options)
    assert made.event() == dp_event.PoissonSampledDpEvent(prob, dp_event.GaussianDpEvent(sigma))
    left = made.rules.sigma_gradient(sigma)
    assert left > sigma
    # Negative control: two published implementations record the noise on the gradient alone (and use RDP).
    wrong = dp_event.PoissonSampledDpEvent(prob, dp_event.GaussianDpEvent(left))
    for event, place in ((made.event(), 0), (wrong, 1)):
        assert rdp_epsilon(event, steps, DELTA, "add-remove") == pytest.approx(by_rdp[place], rel=0.005)
        assert epsilon(event, steps, DELTA, "add-remove") == pytest.approx(by_pld[place], rel=0.005)


@pytest.mark.parametrize(
    ("name", "options", "sigma", "left"),
    [
        ("dc-sgd-p", {"sigma_h": 6.0}, 1.0, 1.0142),
        ("dc-sgd-p", {}, 1.0, 1.0142),
        ("quantile", {"sigma_b": 0.8}, 1.0, (1 - 1 / 1.6**2) ** -0.5),
        ("global-adapt", {"sigma_b": 10.0}, 1.0, (1 - 1 / 400) ** -0.5),
        ("error-feedback", {"error_noise": 3.0}, 2.0, 2.0 * (1 - 1 / 9) ** -0.5),
        ("dynamic", {}, 2.0, 2.0),
        ("bam", {}, 2.0, 2.0),
    ],
)
def test_the_split(name, options, sigma, left):
    made = recipe(sigma, 0.1, clipper=name, clipper_options=options)
    assert made.rules.sigma_gradient(sigma) == pytest.approx(left, rel=1e-4)
    assert made.rules.describe(sigma)["noise_multiplier_gradient"] == pytest.approx(
        made.rules.sigma_gradient(min(s for s, _ in made.rules.controller.noise(sigma)))
    )


def central_limit(sigma: float, prob: float, steps: int) -> float:
    """Epsilon by the limit theorem of Gaussian DP: mu = p sqrt(T (exp(1 / sigma^2) - 1)), then the exact Gaussian."""
    mu = prob * math.sqrt(steps * math.expm1(sigma**-2))

    def excess(eps):
        return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu) - DELTA

    return float(optimize.brentq(excess, 0.0, 50.0))


# sigma, rate, steps, then epsilon by the central limit, by PLD and by RDP (papers spec B.12, which rounds up).
LIMITS = [
    (0.8, 0.0533, 300, 8.75, 9.95, 11.18),
    (1.0, 0.0533, 500, 7.41, 8.09, 8.91),
    (0.7, 0.00427, 16_406, 6.57, 7.10, 7.84),
]


@pytest.mark.parametrize(("sigma", "prob", "steps", "limit", "by_pld", "by_rdp"), LIMITS)
def test_a_schedule_is_charged_by_composition_and_not_by_a_limit(sigma, prob, steps, limit, by_pld, by_rdp):
    level = {"clipper": "dynamic", "clipper_options": {"c_final": 1.0, "sigma_final": 1.0}}
    event = recipe(sigma, prob, steps, **level).event()
    pld, rdp = (found(event, steps, DELTA, "add-remove") for found in (epsilon, rdp_epsilon))
    assert pld == pytest.approx(by_pld, rel=0.002) and rdp == pytest.approx(by_rdp, rel=0.002)
    # Negative control: the published calibration, which is no upper bound.
    assert central_limit(sigma, prob, steps) == pytest.approx(limit, rel=0.002)
    assert limit < pld < rdp
