"""Sketches of distributions merge, travel and refuse what they cannot use."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
import torch

from fedpriv.config import METRIC_NAMES, Scenario
from fedpriv.distances import DISTANCES, Distances, measure
from fedpriv.errors import InputError
from fedpriv.metrics import METRICS

B, L, C, S = 9, 24, 2, 4
ONE = torch.ones(C, dtype=torch.float64)


def _data(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    truth, samples = torch.randn(B, L, C, generator=g), torch.randn(S, B, L, C, generator=g)
    target = torch.rand(B, L, C, generator=g) < 0.6
    target[3] = False
    given = ~target & (torch.rand(B, L, C, generator=g) < 0.8)
    return truth, samples, target, given


def _measure(truth, samples, target, given, **options):
    return measure(truth, samples, target, given, loc=0 * ONE, scale=ONE, span=slice(0, L), **options)


def test_every_name_is_known_to_the_scenario():
    assert set(METRIC_NAMES) == set(METRICS) | set(DISTANCES)
    assert Scenario().override({"evaluation.metrics": ",".join(METRIC_NAMES)}).evaluation.metrics == METRIC_NAMES
    assert not set(Scenario().evaluation.metrics) & set(DISTANCES)  # the default stays light
    with pytest.raises(InputError, match=r"'dist_ws' is not known; the nearest is 'dist-ws'"):
        Scenario().override({"evaluation.metrics": "mse,dist_ws"})


@pytest.mark.parametrize("edges", list(itertools.combinations((0, 1, 4, 8, B), 2))[:6])
def test_merging_equals_measuring_together(edges):
    data = _data()
    whole, cuts = _measure(*data), [0, *edges, B]
    parts = [
        _measure(*(x[:, i:j] if x.dim() == 4 else x[i:j] for x in data))
        for i, j in itertools.pairwise(sorted(cuts))
        if j > i
    ]
    assert reduce(Distances.merge, parts).finalize() == pytest.approx(whole.finalize(), rel=1e-9)
    assert reduce(Distances.merge, parts[::-1]).finalize() == pytest.approx(whole.finalize(), rel=1e-9)
    assert set(whole.finalize()) == set(DISTANCES)


def test_the_flat_form_round_trips_through_message_numbers():
    one = _measure(*_data())
    flat = one.to_dict()
    assert all(type(value) is float for value in flat.values())
    again = Distances.from_dict({**flat, "sum.entries": 3.0})
    assert again.finalize() == one.finalize()


def test_only_what_is_asked_for_is_computed():
    found = _measure(*_data(), names=["dist-ks", "crps"])
    assert set(found.finalize()) == {"dist-kl", "dist-js", "dist-ws", "dist-ks"}  # one sketch serves all four
    assert Distances().finalize() == {} and Distances().to_dict() == {}


def test_hidden_and_unread_entries_may_be_anything():
    truth, samples, target, given = _data()
    before = _measure(truth, samples, target, given).to_dict()
    nan = torch.tensor(torch.nan)
    read = target | given
    after = _measure(torch.where(read, truth, nan), torch.where(target, samples, nan), target, given).to_dict()
    assert after == pytest.approx(before)


def test_a_shift_and_a_stretch_of_the_unit_cancel():
    truth, samples, target, given = (x.double() if x.is_floating_point() else x for x in _data())
    other = measure(truth * 7 + 100, samples * 7 + 100, target, given, loc=100 * ONE, scale=7 * ONE, span=slice(0, L))
    assert other.finalize() == pytest.approx(_measure(truth, samples, target, given).finalize(), rel=1e-6)


def test_the_truth_itself_has_no_distance():
    truth, _, target, given = _data()
    found = _measure(truth, truth.expand(S, -1, -1, -1), target, given).finalize()
    assert np.allclose(list(found.values()), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Distances().finalize(["dist-tv"]), "unknown distance 'dist-tv'"),
        (lambda: Distances.from_dict({"dist.truth.0": float("nan")}), "unknown or not finite"),
        (lambda: Distances.from_dict({"dist.bogus.0": 1.0}), "unknown or not finite"),
        (lambda: Distances.from_dict({"dist.truth.1": 1.0}), "lack some of the sums dist.truth"),
        (
            lambda: Distances(power_truth=np.ones(3)).merge(Distances(power_truth=np.ones(4))),
            "3 and 4 sums 'power_truth' do not merge",
        ),
        (lambda: _measure(*(x * torch.nan if x.dim() == 4 else x for x in _data())), "not finite at a target"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
