"""The bounds of the canary audit against closed forms and numbers of jax-privacy 2.0.0 (`auditing.py`)."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from scipy import stats

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.audit import bounds
from fedpriv.privacy.audit.plan import make_plan
from fedpriv.privacy.audit.tables import RATIO, Claim, Envelope, member, step_law
from fedpriv.privacy.events import PublicChoiceDpEvent
from fedpriv.privacy.units import Relation

ZERO, REPLACE = Relation.ZERO_OUT, Relation.REPLACE_ONE
GAUSSIAN = Claim.of([(dp_event.GaussianDpEvent(4.0), 20)], ZERO, 1e-5)
POISSON = Claim.of([(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(1.4)), 100)], ZERO, 1e-5)


class GaussianCurve:
    def __init__(self, mu):
        self.mu = mu

    def beta(self, alpha):
        return float(stats.norm.cdf(stats.norm.ppf(1 - alpha) - self.mu))


# ---- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "m, guesses, correct, significance, delta, bound, p_value",
    [
        (1000, 100, 90, 0.05, 1e-5, 1.6261436787042223, 0.0008412885614385309),
        (10000, 200, 195, 0.05, 1e-5, 2.832480027167533, 0.0032346870689395147),
        (10000, 1000, 700, 0.001, 1e-5, 0.14062888174079732, 0.9875482163758674),
        (500, 500, 300, 0.05, 0.0, 0.25168496202741125, 0.99999999992107),
        (10000, 400, 400, 0.05, 1e-6, 4.863611160655742, 0.0001565240783554899),
    ],
)
def test_steinke_equals_jax_privacy(m, guesses, correct, significance, delta, bound, p_value):
    assert bounds.one_run_p_value(m, guesses, correct, 1.0, delta) == pytest.approx(p_value, rel=1e-9)
    found = bounds.steinke_bound(m, guesses, correct, delta=delta, significance=significance, tolerance=1e-7)
    assert found == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize(
    "m, guesses, correct, significance, bound",
    [
        (1000, 100, 90, 0.05, 2.4564050672094146),
        (10000, 200, 195, 0.05, 3.7316910538705166),
        (10000, 1000, 700, 0.001, 0.6881752699753686),
        (500, 500, 300, 0.05, 0.5200228208185904),
        (10000, 400, 400, 0.05, 6.919795887447553),
    ],
)
def test_fdp_equals_jax_privacy_on_gaussian_curves(m, guesses, correct, significance, bound):
    low, high = 1e-3, 20.0
    for _ in range(60):  # mu at which the guesses stop refuting
        middle = (low + high) / 2
        refuted = bounds.fdp_refutes(GaussianCurve(middle), m, guesses, correct, significance)
        low, high = (middle, high) if refuted else (low, middle)
    assert bounds.gaussian_epsilon(low, 1e-5) == pytest.approx(bound, abs=2e-4)


def test_fdp_bound_on_the_claims_own_curves():
    # A Gaussian claim's curves are Gaussian, so the same golden applies, less one step of the grid.
    found = bounds.fdp_bound(GAUSSIAN, 10000, 200, 195, significance=0.05, lowest=-277)
    assert 3.7316910538705166 * 0.985 < found <= 3.7316910538705166 + 1e-3


@pytest.mark.parametrize("tp, fp, bound", [(2493, 498, 1.5138770830414694), (898, 22, 3.2400387385424247)])
def test_clopper_pearson_equals_jax_privacy(tp, fp, bound):
    seen = bounds.Rates(fp, 3000, 3000 - tp, 3000)
    alpha, beta = seen.limits(0.05)
    assert math.log((1 - beta - 1e-5) / alpha) == pytest.approx(bound, rel=1e-6)
    assert bounds.clopper_pearson_bound(seen, delta=1e-5, significance=0.05) >= bound - 1e-9


def test_clopper_pearson_limit_is_exact():
    for count, trials in ((0, 10), (3, 50), (49, 50), (50, 50), (120, 5000)):
        p = bounds.clopper_pearson_upper(count, trials, 0.01)
        assert p == 1.0 if count == trials else stats.binom.cdf(count, trials, p) == pytest.approx(0.01, rel=1e-6)
    assert bounds.clopper_pearson_upper(0, 0, 0.05) == 1.0


def test_gaussian_epsilon_agrees_with_the_accountant():
    for mu in (0.25, 1.0, 3.0):
        exact = bounds.gaussian_epsilon(mu, 1e-5)
        assert epsilon(dp_event.GaussianDpEvent(1 / mu), 1, 1e-5, ZERO) == pytest.approx(exact, abs=2e-3)
    assert bounds.gaussian_epsilon(0.0, 1e-5) == 0.0


# ---- curves ---------------------------------------------------------------------------------------


def test_curve_of_a_gaussian_is_the_closed_form_from_below():
    mu = math.sqrt(20) / 4
    curve = GAUSSIAN.curve(0)
    for alpha in (0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.9, 1.0):
        exact = GaussianCurve(mu).beta(alpha)
        assert exact - 1e-5 <= curve.beta(alpha) <= exact + 1e-12


def test_curve_of_a_subsampled_step_against_the_neyman_pearson_test():
    claim = Claim.of([(dp_event.PoissonSampledDpEvent(0.3, dp_event.GaussianDpEvent(0.8)), 1)], ZERO, 1e-5)
    curve = claim.curve(0)
    for cut in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0):  # the ratio rises with y, so half-lines are optimal
        alpha = float(stats.norm.sf(cut / 0.8))
        beta = float(0.7 * stats.norm.cdf(cut / 0.8) + 0.3 * stats.norm.cdf((cut - 1) / 0.8))
        assert beta - 1e-3 <= curve.beta(alpha) <= beta + 1e-9
        assert claim.symmetric_curve(0).beta(alpha) <= curve.beta(alpha) + 1e-12


def test_envelope_is_the_maximum_of_its_lines():
    rng = np.random.default_rng(0)
    slopes, intercepts = rng.exponential(3.0, 200), rng.random(200)
    curve = Envelope(intercepts, slopes)
    for alpha in np.linspace(0, 1, 101):
        assert curve.beta(alpha) == pytest.approx(max(0.0, (intercepts - slopes * alpha).max()), abs=1e-12)


def test_more_noise_raises_the_curve():
    for alpha in (1e-4, 1e-2, 0.3):
        betas = [POISSON.curve(i).beta(alpha) for i in (-80, -20, 0, 20, 80)]
        assert betas == sorted(betas)


@pytest.mark.parametrize("relation", [ZERO, REPLACE])
def test_epsilon_of_a_claim_is_the_accountants(relation):
    gaussian = dp_event.GaussianDpEvent(2.0)
    mixture = dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 1.0, 2.0], [0.8, 0.15, 0.05])
    choice = PublicChoiceDpEvent([dp_event.PoissonSampledDpEvent(0.1, gaussian), mixture], [0.6, 0.4])
    parts = [(gaussian, 1), (dp_event.PoissonSampledDpEvent(0.1, gaussian), 7), (mixture, 3), (choice, 2)]
    from fedpriv.privacy.accounting import epsilon_of

    claim = Claim.of(parts, relation, 1e-5)
    assert claim.epsilon() == pytest.approx(epsilon_of(parts, 1e-5, relation), rel=1e-4)


# ---- family ---------------------------------------------------------------------------------------


def test_members_of_the_family():
    gaussian = dp_event.GaussianDpEvent(2.0)
    assert member(gaussian, 1.5, 1.0) == dp_event.GaussianDpEvent(3.0)
    assert member(gaussian, 1.0, 0.5) == dp_event.PoissonSampledDpEvent(0.5, gaussian)
    assert member(gaussian, 1.0, 2.0) == dp_event.GaussianDpEvent(1.0)
    sampled = dp_event.PoissonSampledDpEvent(0.4, gaussian)
    assert member(sampled, 1.0, 0.5) == dp_event.PoissonSampledDpEvent(0.2, gaussian)
    assert member(sampled, 1.0, 5.0) == dp_event.GaussianDpEvent(1.0)
    thinned = step_law(member(dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0, 2.0], [0.5, 0.2, 0.3]), 1.0, 0.5))
    assert thinned.mean == pytest.approx(0.4) and thinned.weights.sum() == pytest.approx(1.0)
    with pytest.raises(InputError, match="Laplace"):
        member(dp_event.LaplaceDpEvent(1.0), 1.0, 1.0)
    with pytest.raises(InputError, match="Laplace"):
        step_law(dp_event.LaplaceDpEvent(1.0))
    with pytest.raises(InputError, match="delta"):
        Claim.of([(gaussian, 1)], ZERO, 0.0)


def test_less_noise_or_more_contribution_costs_more():
    base = POISSON.epsilon()
    assert POISSON.epsilon(0.8) > base > POISSON.epsilon(1.2)
    assert POISSON.epsilon(1.0, 1.2) > base > POISSON.epsilon(1.0, 0.8)
    assert POISSON.epsilon(1.0, 0.0) == 0.0


@pytest.mark.parametrize("relation", [ZERO, REPLACE])
def test_log_ratio_is_that_of_the_densities(relation):
    law = step_law(dp_event.MixtureOfGaussiansDpEvent(0.7, [0.0, 1.0, 3.0], [0.5, 0.3, 0.2]))
    y = np.linspace(-3, 4, 15)

    def density(sign):
        means = zip(sign * law.counts, law.weights, strict=True)
        return sum(w * stats.norm.pdf(y, m, 0.7) for m, w in means)

    away = density(-1) if relation is REPLACE else stats.norm.pdf(y, 0, 0.7)
    assert law.log_ratio(y, relation) == pytest.approx(np.log(density(1) / away), abs=1e-9)


@pytest.mark.parametrize("truth", [-250, -100, -3, 0, 1, 40, 700, 1399])
def test_first_rejected_finds_the_edge(truth):
    asked = []

    def rejects(index):
        asked.append(index)
        return index >= truth

    assert bounds.first_rejected(rejects, -277) == truth
    assert len(asked) < 30 and min(asked) >= -277 - 512


def test_first_rejected_at_the_ends():
    assert bounds.first_rejected(lambda i: True, -50) == -50
    assert bounds.first_rejected(lambda i: False, -50) is None


def test_t3_never_exceeds_what_the_rates_allow():
    # Exact rates of the true mechanism and no sampling error: the answer lies within one step below the truth.
    mu, trials = math.sqrt(20) / 4, 1e9
    alpha = float(stats.norm.sf(mu / 2))
    seen = bounds.Rates(trials * alpha, trials, trials * alpha, trials)
    found = bounds.t3_bound(GAUSSIAN, seen, 0.05, lowest=-277)
    assert GAUSSIAN.epsilon(RATIO**2) <= found <= GAUSSIAN.epsilon() + 1e-9
    useless = bounds.Rates(trials / 2, trials, trials / 2, trials)
    assert bounds.t3_bound(GAUSSIAN, useless, 0.05, lowest=-277) == 0.0


def simulated(seed, *, scale=1.0, prob=0.1, steps=40, m=2000, relation=ZERO):
    rng = np.random.default_rng(seed)
    inserted = rng.random(m) < 0.5
    side = np.where(inserted, 1.0, -1.0 if relation is REPLACE else 0.0)
    y = side * (rng.random((steps, m)) < prob) + 1.4 * scale * rng.standard_normal((steps, m))
    return inserted, y.sum(axis=0), ((y / 1.4) ** 2).sum(axis=0)


@pytest.mark.parametrize("relation", [ZERO, REPLACE])
def test_fit_covers_the_true_parameters(relation):
    misses = 0
    for seed in range(200):
        found = bounds.fit(
            *simulated(seed, scale=0.9, prob=0.12, relation=relation), steps=40, expected=4.0,
            expected_square=40 * 0.1 / 1.4**2, relation=relation, significance=0.1,
        )  # fmt: skip
        misses += found.scale < 0.9 or found.thin > 1.2
        assert found.scale < 1.0 and found.thin > 0.6
    assert misses <= 33  # 20 are expected; binomial tail below 1e-3


def test_fit_without_canaries_shows_nothing():
    found = bounds.fit(
        np.array([True]), np.zeros(1), np.zeros(1), steps=1, expected=1.0, expected_square=1.0,
        relation=ZERO, significance=0.05,
    )  # fmt: skip
    assert bounds.t2_bound(GAUSSIAN, found, lowest=-277) == 0.0


def test_significance_is_checked():
    seen = bounds.Rates(1, 10, 1, 10)
    for bad in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(InputError, match="significance"):
            bounds.t3_bound(GAUSSIAN, seen, bad, lowest=-277)


def test_plans_are_deterministic_and_expect_enough():
    plan = make_plan(POISSON, 10_000, 0.05)
    assert make_plan.__wrapped__(POISSON, 10_000, 0.05) == plan
    assert 0.85 * POISSON.epsilon() < plan.expected_t3 < POISSON.epsilon()
    small = make_plan(POISSON, 300, 0.05)
    assert small.expected_t3 < plan.expected_t3
