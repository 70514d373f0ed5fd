"""Scores merge: any split of the windows gives the score of all."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.metrics import METRICS, POINT_METRICS, Score, score

B, L, C, S = 7, 5, 2, 6


def _data(seed: int):
    g = torch.Generator().manual_seed(seed)
    truth = 100 + 10 * torch.randn(B, L, C, generator=g)
    samples = 100 + 10 * torch.randn(S, B, L, C, generator=g)
    mask = torch.rand(B, L, C, generator=g) < 0.6
    mask[2] = False
    return truth, samples, mask


@given(seed=st.integers(0, 10_000), cut=st.integers(0, B), other=st.integers(0, B))
@settings(max_examples=30, deadline=None)
def test_merging_equals_scoring_together(seed, cut, other):
    truth, samples, mask = _data(seed)
    unit = torch.tensor([2.0, 5.0])
    whole = score(truth, samples.mean(0), samples, mask, unit)
    edges = [0, *sorted((cut, other)), B]
    parts = [
        score(truth[i:j], samples.mean(0)[i:j], samples[:, i:j], mask[i:j], unit) for i, j in itertools.pairwise(edges)
    ]
    for names in (parts, parts[::-1]):
        together = reduce(Score.merge, names, Score())
        for f in fields(Score):
            assert math.isclose(getattr(together, f.name), getattr(whole, f.name), rel_tol=1e-12, abs_tol=1e-12)


@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_units_cancel(seed, factor):
    """The same forecasts in MW and in kW have the same scores, given the unit."""
    truth, samples, mask = _data(seed)
    truth, samples = truth.double(), samples.double()
    one = score(truth, samples[0], samples, mask, 10.0).finalize()
    other = score(truth * factor, samples[0] * factor, samples * factor, mask, 10.0 * factor).finalize()
    assert one == pytest.approx(other, rel=1e-9)


def test_the_flat_form_round_trips_through_message_numbers():
    truth, samples, mask = _data(0)
    one = score(truth, samples[0], samples, mask, 3.0)
    flat = one.to_dict()
    assert all(type(v) is float for v in flat.values())
    assert Score.from_dict({**flat, "other": "ignored"}) == one
    assert set(one.finalize()) == set(METRICS)


def test_without_samples_only_point_metrics_exist():
    truth, samples, mask = _data(0)
    assert set(score(truth, samples[0], None, mask, 3.0).finalize()) == set(POINT_METRICS)
    assert Score().finalize() == {}
