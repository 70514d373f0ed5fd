from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.errors import InputError
from fedpriv.privacy.events import PublicChoiceDpEvent
from fedpriv.privacy.laws import binomial_law, event_of_law, marginal
from fedpriv.privacy.meter_samplers import MeterSampling, TwoLevelTiling, sampler_from_terms
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler, StridedWindows, disjoint_windows
from fedpriv.privacy.units import CLIENT, METER, READING, Relation, Unit, event_unit
from fedpriv.seeding import stream

GAUSS = dp_event.GaussianDpEvent(2.0)
ALL: list[Sampler] = [
    RandomPhaseTiling(24, 0.3),
    StridedWindows(24, 6, 0.04),
    disjoint_windows(24, 0.3),
    TwoLevelTiling(24, 0.5, 0.2),
    MeterSampling(24, 0.2, 4),
]


@given(window=st.integers(1, 40), extra=st.integers(0, 200), meters=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_expected_batch_is_the_exact_mean_over_phases(window: int, extra: int, meters: int):
    """Positions s = 0..n-L have phase s mod L each, so tile counts over all phases sum to n - L + 1."""
    n = window + extra
    tiles = sum((n - phase) // window for phase in range(window))
    assert tiles == n - window + 1
    mean = Fraction(1, 2) * meters * Fraction(tiles, window)
    stated = RandomPhaseTiling(window, 0.5).expected_batch_size(num_meters=meters, start=3, stop=3 + n)
    assert stated == pytest.approx(float(mean), rel=1e-14)


@given(window=st.integers(1, 30), w=st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_tiling_law_by_enumeration(window: int, w: int):
    """Phases at which w consecutive readings meet t tiles, counted one by one on a long calendar."""
    met = np.zeros(w + 2)
    for phase in range(window):
        tiles = {(t - phase) // window for t in range(1000, 1000 + w)}
        met[len(tiles)] += 1 / window
    expected = sum(met[t] * np.pad(binomial_law(t, 0.3), (0, w + 2 - t)) for t in range(w + 2) if met[t])
    law = RandomPhaseTiling(window, 0.3).law(event_unit(w))
    np.testing.assert_allclose(
        np.pad(law, (0, w + 3 - len(law))), np.pad(expected, (0, w + 3 - len(expected))), atol=1e-12
    )


def test_amplify_reading_is_plain_poisson_for_every_relation():
    for relation in (*Relation, *(r.neighboring for r in Relation)):
        event = RandomPhaseTiling(96, 0.25).amplify(GAUSS, READING, relation)
        assert event == dp_event.PoissonSampledDpEvent(0.25, GAUSS)
    assert RandomPhaseTiling(96, 1.0).amplify(GAUSS, READING, "zero-out") == GAUSS


def test_amplify_longer_units_conditions_on_the_phase():
    event = RandomPhaseTiling(96, 0.25).amplify(GAUSS, event_unit(24), "zero-out")
    assert isinstance(event, PublicChoiceDpEvent)
    assert list(event.probabilities) == pytest.approx([73 / 96, 23 / 96])
    one, two = event.events
    assert one == dp_event.PoissonSampledDpEvent(0.25, GAUSS)
    assert isinstance(two, dp_event.MixtureOfGaussiansDpEvent)
    assert list(two.sampling_probs) == pytest.approx([0.75**2, 2 * 0.25 * 0.75, 0.25**2])


def test_amplify_refuses_other_inner_events_and_gives_nothing_for_clients():
    with pytest.raises(InputError, match="Laplace"):
        ALL[0].amplify(dp_event.LaplaceDpEvent(1.0), READING, "zero-out")
    assert isinstance(ALL[0].amplify(GAUSS, CLIENT, "zero-out"), dp_event.NonPrivateDpEvent)
    with pytest.raises(InputError, match="calendar_steps"):
        ALL[0].amplify(GAUSS, METER, "zero-out")


@pytest.mark.parametrize("sampler", ALL, ids=lambda s: s.name)
def test_laws_are_laws_and_grow_with_the_unit(sampler: Sampler):
    tails = []
    for unit in (READING, event_unit(24), event_unit(168), METER):
        laws = sampler.laws(unit, calendar_steps=2000)
        assert sum(w for w, _ in laws) == pytest.approx(1)
        for _, law in laws:
            assert (law >= 0).all()
            assert law.sum() == pytest.approx(1)
        law = marginal(laws)
        tails.append(np.pad(np.cumsum(law[::-1])[::-1], (0, 600 - len(law))))
    for small, large in pairwise(tails):
        assert (small <= large + 1e-9).all()


@pytest.mark.parametrize("sampler", ALL, ids=lambda s: s.name)
def test_batches_inside_and_repeatable_and_terms_round_trip(sampler: Sampler):
    span = {"num_meters": 3, "start": 10, "stop": 200}
    first, second = (list(sampler.batches(**span, steps=50, rng=stream(7, "sampling"))) for _ in range(2))
    assert len(first) == 50
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.start, b.start)
        assert a.meter.dtype == a.start.dtype == a.group.dtype == np.int64
        assert ((a.start >= 10) & (a.start + 24 <= 200) & (a.meter < 3)).all()
        assert (np.diff(a.group) >= 0).all()
    assert sampler_from_terms(sampler.terms()) == sampler
    assert next(sampler.batches(num_meters=0, start=0, stop=100, steps=3, rng=stream(1, "s"))).meter.size == 0


def test_meter_sampling_groups_windows_of_one_meter():
    for tiles in MeterSampling(24, 0.5, 4).batches(num_meters=6, start=0, stop=100, steps=20, rng=stream(1, "s")):
        for group in np.unique(tiles.group):
            rows = tiles.meter[tiles.group == group]
            assert len(rows) == 4
            assert len(set(rows.tolist())) == 1


def test_refusals():
    with pytest.raises(InputError, match=r"1\.2 is not in"):
        RandomPhaseTiling(24, 1.2)
    with pytest.raises(InputError, match="window=0"):
        RandomPhaseTiling(0, 0.5)
    with pytest.raises(InputError, match="longer than the 23 calendar steps"):
        next(RandomPhaseTiling(24, 0.5).batches(num_meters=1, start=0, stop=23, steps=1, rng=stream(1, "s")))
    with pytest.raises(InputError, match="random-phase-tiling"):
        StridedWindows(96, 1, 0.008)
    StridedWindows(96, 1, 0.008, allow_overlap=True)
    StridedWindows(96, 1, 0.002)
    with pytest.raises(InputError, match="unknown"):
        sampler_from_terms({"sampler": "shuffle"})


def test_long_laws_are_replaced_by_dominating_ones():
    law = binomial_law(5000, 0.4)
    event = event_of_law(GAUSS, law)
    assert isinstance(event, dp_event.MixtureOfGaussiansDpEvent)
    assert len(event.sensitivities) <= 256
    short = np.zeros(5001)
    short[np.array(event.sensitivities, dtype=int)] = event.sampling_probs
    assert (np.cumsum(short) <= np.cumsum(law) + 1e-12).all()


def test_units_parse():
    assert Unit.parse("day", steps_per_day=48) == Unit("day", "event", 48)
    assert Unit.parse("week", steps_per_day=24).steps == 168
    assert Unit.parse("month", steps_per_day=24).steps == 744
    assert Unit.parse("event:36", steps_per_day=24) == event_unit(36)
    assert Unit.parse("meter", steps_per_day=24) == METER
    for bad in ("hour", "event:0", "event:x", ""):
        with pytest.raises(InputError):
            Unit.parse(bad, steps_per_day=24)
    for relation in Relation:
        assert Relation.parse(relation.value) is relation
        assert Relation.parse(relation.neighboring) is relation
    with pytest.raises(InputError, match="zero-out"):
        Relation.parse("substitute")
