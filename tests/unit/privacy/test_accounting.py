from __future__ import annotations

import math
import time

import numpy as np
import pytest
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedpriv.errors import InputError
from fedpriv.privacy import composition
from fedpriv.privacy.accounting import calibrate, epsilon, epsilon_curve, epsilon_of, ladder, ladders, rdp_epsilon
from fedpriv.privacy.events import PublicChoiceDpEvent, decode_event, encode_event
from fedpriv.privacy.laws import binomial_law, event_of_law
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, Relation, Unit, event_unit

DELTA = 1e-5
gauss = dp_event.GaussianDpEvent


def poisson(p: float, sigma: float) -> dp_event.DpEvent:
    return dp_event.PoissonSampledDpEvent(p, gauss(sigma))


EVENTS = [
    gauss(3.0),
    poisson(0.1, 2.0),
    event_of_law(gauss(2.0), binomial_law(3, 0.1)),
    RandomPhaseTiling(24, 0.2).amplify(gauss(2.0), event_unit(30), "zero-out"),
    dp_event.LaplaceDpEvent(2.0),
    dp_event.NoOpDpEvent(),
    dp_event.ComposedDpEvent([gauss(3.0), dp_event.SelfComposedDpEvent(poisson(0.1, 2.0), 4)]),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_survive_their_text(event: dp_event.DpEvent):
    text = encode_event(event)
    assert encode_event(decode_event(text)) == text
    assert " " not in text
    assert epsilon(decode_event(text), 3, DELTA, "zero-out") == epsilon(event, 3, DELTA, "zero-out")


def test_equal_events_have_equal_text():
    assert encode_event(gauss(2)) == encode_event(gauss(np.float64(2.0)))
    mixture = dp_event.MixtureOfGaussiansDpEvent
    assert encode_event(mixture(1, [0, 1], [0.5, 0.5])) == encode_event(mixture(1.0, (0.0, 1.0), np.array([0.5, 0.5])))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"@type":"Gaussian"}',
        '{"@type":"Gaussian","noise_multiplier":1,"extra":2}',
        '{"@type":"Gaussian","noise_multiplier":-1}',
        '{"@type":"Gaussian","noise_multiplier":NaN}',
        '{"@type":"Gaussian","noise_multiplier":"x"}',
        '{"@type":"PoissonSampled","sampling_probability":1.5,"event":{"@type":"Gaussian","noise_multiplier":1}}',
        '{"@type":"MixtureOfGaussians","standard_deviation":1,"sensitivities":[0,1],"sampling_probs":[0.5,0.6]}',
        '{"@type":"SelfComposed","count":0,"event":{"@type":"NoOp"}}',
        '{"@type":"Unsupported"}',
        '{"@type":"__class__"}',
    ],
)
def test_bad_event_texts_are_refused(text: str):
    with pytest.raises(InputError):
        decode_event(text)


def test_unknown_events_are_refused():
    for event in (
        dp_event.RepeatAndSelectDpEvent(dp_event.GaussianDpEvent(1.0), 1, 1),
        dp_event.UnsupportedDpEvent(),
        dp_event.SingleEpochTreeAggregationDpEvent(1, 2),
    ):
        with pytest.raises(InputError):
            encode_event(event)
        with pytest.raises(InputError):
            epsilon(event, 1, DELTA, "zero-out")


@given(sigma=st.floats(0.4, 20), count=st.integers(1, 2000), delta=st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=25, deadline=None)
def test_gaussians_match_the_closed_form(sigma: float, count: int, delta: float):
    mu = math.sqrt(count) / sigma
    eps = epsilon(gauss(sigma), count, delta, "zero-out")
    exact = norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu))
    assert exact <= delta * (1 + 1e-6) + 1e-14  # pessimistic
    below = max(eps - 0.01, 0)
    assert eps < 0.011 or norm.cdf(mu / 2 - below / mu) - math.exp(below + norm.logcdf(-mu / 2 - below / mu)) > delta


@pytest.mark.parametrize("relation", list(Relation))
def test_search_on_arrays_equals_dp_accountings_walk(relation: Relation):
    rng = np.random.default_rng(1)
    for event in EVENTS[:4]:
        for count in (1, 7, 300):
            key = encode_event(event)
            total = composition.composed(key, count, relation, composition.grid_interval(key, relation))
            for delta in (10 ** rng.uniform(-9, -1), 0.5):
                theirs = max(0.0, total.get_epsilon_for_delta(delta))
                assert composition.epsilon_at(total, delta) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_heterogeneous_lists():
    a, b = poisson(0.1, 2.0), poisson(0.2, 3.0)
    both = epsilon_of([(a, 50), (b, 50)], DELTA, "zero-out")
    assert max(epsilon(a, 50, DELTA, "zero-out"), epsilon(b, 50, DELTA, "zero-out")) < both
    assert both == epsilon_of([(b, 20), (a, 50), (b, 30)], DELTA, "zero-out")
    assert both == epsilon(dp_event.ComposedDpEvent([a, dp_event.SelfComposedDpEvent(b, 1)]), 50, DELTA, "zero-out")
    assert epsilon_of([], DELTA, "zero-out") == 0.0
    assert epsilon_of([(a, 0), (dp_event.NoOpDpEvent(), 9)], DELTA, "zero-out") == 0.0
    assert epsilon_of([(a, 1), (dp_event.NonPrivateDpEvent(), 1)], DELTA, "zero-out") == math.inf
    with pytest.raises(InputError):
        epsilon(a, -1, DELTA, "zero-out")
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(InputError):
            epsilon(a, 1, delta, "zero-out")


def test_public_choice_is_the_mixture():
    same = PublicChoiceDpEvent([poisson(0.1, 2.0)] * 3, [0.2, 0.3, 0.5])
    assert epsilon(same, 20, DELTA, "zero-out") == pytest.approx(
        epsilon(poisson(0.1, 2.0), 20, DELTA, "zero-out"), rel=1e-6
    )
    rare = PublicChoiceDpEvent([poisson(0.1, 2.0), dp_event.NoOpDpEvent()], [0.5, 0.5])
    assert 0 < epsilon(rare, 20, DELTA, "replace-one") < epsilon(poisson(0.1, 2.0), 20, DELTA, "replace-one")


def test_averaging_the_laws_of_a_recognisable_phase_would_promise_too_much():
    """Why day-level epsilons condition on the phase: the other tiles of a step may give it away.

    With the rest of the sum far apart in two phases (shift 0 or 40), the true divergence is the published mixture's,
    which the averaged law understates.
    """
    sigma, laws = 1.0, [(0.5, binomial_law(1, 0.3)), (0.5, binomial_law(4, 0.3))]
    x = np.linspace(-20, 70, 900_001)
    upper = sum(
        w * p * norm.pdf(x, shift + j, sigma)
        for (w, law), shift in zip(laws, (0, 40), strict=True)
        for j, p in enumerate(law)
    )
    lower = sum(w * norm.pdf(x, shift, sigma) for (w, _), shift in zip(laws, (0, 40), strict=True))
    true = np.maximum(upper - math.e * lower, 0).sum() * (x[1] - x[0])

    def delta_at_one(event: dp_event.DpEvent) -> float:
        return float(composition.composed(encode_event(event), 1, Relation.ZERO_OUT, 1e-3).get_delta_for_epsilon(1.0))

    averaged = event_of_law(gauss(sigma), sum(w * np.pad(law, (0, 5 - len(law))) for w, law in laws))
    published = PublicChoiceDpEvent([event_of_law(gauss(sigma), law) for _, law in laws], [0.5, 0.5])
    assert delta_at_one(averaged) < 0.99 * true
    assert delta_at_one(published) == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize(("event", "relation"), [(gauss(3.0), "replace-one"), (poisson(0.05, 1.2), "zero-out")])
def test_renyi_is_never_below(event: dp_event.DpEvent, relation: str):
    for count in (1, 30, 1000):
        exact, loose = epsilon(event, count, DELTA, relation), rdp_epsilon(event, count, DELTA, relation)
        assert exact <= loose + 2e-3


def test_opacus_agrees_where_it_applies():
    from opacus.accountants import PRVAccountant, RDPAccountant

    for sigma, q, steps in [(1.0, 0.008, 1000), (2.0, 0.1, 100)]:
        ours = epsilon(poisson(q, sigma), steps, DELTA, "add-remove")
        prv, rdp = PRVAccountant(), RDPAccountant()
        prv.history = rdp.history = [(sigma, q, steps)]
        assert ours == pytest.approx(prv.get_epsilon(DELTA), abs=0.02)
        assert ours <= rdp.get_epsilon(DELTA) + 1e-3


@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
@pytest.mark.parametrize(("unit", "target"), [("reading", 8.0), ("reading", 0.5), ("day", 4.0)])
def test_calibration_is_least_and_never_over(unit: str, target: float, relation: str):
    sampler, protected = RandomPhaseTiling(192, 0.467), Unit.parse(unit, steps_per_day=24)

    def event(sigma: float) -> dp_event.DpEvent:
        return sampler.amplify(gauss(sigma), protected, relation)

    begun = time.process_time()
    sigma = calibrate(event, count=300, epsilon=target, delta=DELTA, relation=relation)
    assert time.process_time() - begun < 20
    assert epsilon(event(sigma), 300, DELTA, relation) <= target
    assert epsilon(event(sigma * (1 - 2e-4)), 300, DELTA, relation) > target


def test_calibration_refuses_the_impossible():
    def event(sigma: float) -> dp_event.DpEvent:
        return gauss(sigma)

    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError):
            calibrate(event, count=3, epsilon=target, delta=DELTA, relation="zero-out")
    with pytest.raises(InputError, match="no noise multiplier"):
        calibrate(lambda s: gauss(1.0), count=3, epsilon=0.1, delta=DELTA, relation="zero-out")


def test_four_hundred_rounds_in_a_moment():
    event = RandomPhaseTiling(192, 0.467).amplify(gauss(5.0), READING, "zero-out")
    begun = time.process_time()
    curve = epsilon_curve(event, range(1, 401), DELTA, "zero-out")
    assert time.process_time() - begun < 20  # about 0.8 s on an idle core
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(epsilon(event, 400, DELTA, "zero-out"), rel=1e-6)
    begun = time.process_time()
    for _ in range(400):
        epsilon(event, 400, DELTA, "zero-out")
    assert time.process_time() - begun < 5  # remembered, not composed again


def test_ladder_is_ordered_and_cut_to_the_calendar():
    kw = {"noise_multiplier": 5.2, "steps": 100, "delta": DELTA, "steps_per_day": 24}
    rungs = ladder(sampler=RandomPhaseTiling(96, 0.1138), relation="zero-out", calendar_steps=2000, **kw)
    assert list(rungs) == ["reading", "day", "week", "month", "meter"]
    assert list(rungs.values()) == sorted(rungs.values())
    short = ladder(sampler=RandomPhaseTiling(96, 0.1138), relation="zero-out", calendar_steps=200, **kw)
    assert short["month"] == short["meter"] < rungs["week"]
    both = ladders(sampler=RandomPhaseTiling(96, 0.1138), calendar_steps=400, **kw)
    assert all(both["replace-one"][u] > both["zero-out"][u] for u in rungs)
