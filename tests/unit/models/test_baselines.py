"""Last value and seasonal naive, with their bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.baselines import (
    BASELINES,
    baselines_for,
    last_value,
    linear_interpolation,
    make_baseline,
    seasonal_naive,
)


def _row(values, given) -> Examples:
    v = torch.tensor(values).reshape(1, -1, 1)
    g = torch.tensor(given, dtype=torch.bool).reshape(1, -1, 1)
    one = torch.ones(1, 1, 1)
    return Examples(v, g, ~g, torch.zeros(1, v.shape[1], 0), torch.full_like(v, 0.5), 10 * one, 2 * one)


def test_last_value_looks_back_then_forward():
    band = last_value(_row([9.0, 1.0, 9.0, 2.0, 3.0, 9.0, 9.0], [0, 1, 0, 1, 1, 0, 0]))
    assert band.point.flatten().tolist() == [12, 12, 12, 14, 16, 16, 16]  # 2 x value + 10


def test_last_value_band_is_a_random_walk_of_the_given_part():
    values = torch.arange(20.0) % 4  # differences at lag 1 and 2 are known
    examples = _row([*values.tolist(), 0.0, 0.0], [1] * 20 + [0] * 2)
    spread = last_value(examples).stddev.flatten()[-2:] / 2
    lag1 = (values[1:] - values[:-1]).square().mean().sqrt()
    lag2 = (values[2:] - values[:-2]).square().mean().sqrt()
    assert torch.allclose(spread, torch.stack([lag1, lag2]))


def test_linear_interpolation_is_numpys_with_a_brownian_bridge():
    values, given = [9.0, 1.0, 9.0, 9.0, 4.0, 3.0, 9.0, 9.0], [0, 1, 0, 0, 1, 1, 0, 0]
    band = linear_interpolation(_row(values, given))
    where = [i for i, g in enumerate(given) if g]
    expected = np.interp(range(8), where, [values[i] for i in where])  # numpy repeats the ends, as we do
    assert np.allclose(band.point.flatten(), 2 * expected + 10)
    # one pair of neighbours only, so the spread of one step is the window's scale of 2
    bridge = [1, 0, 1 * 2 / 3, 2 * 1 / 3, 0, 0, 1, 2]
    assert np.allclose(band.stddev.flatten(), 2 * np.sqrt(bridge))


def test_interpolation_is_for_gaps_only():
    assert "linear-interpolation" in baselines_for("imputation") and "linear-interpolation" in baselines_for("mixed")
    assert "linear-interpolation" not in baselines_for("forecast")


def test_seasonal_naive_is_the_baseline(windows, small):
    examples = windows(4, small)
    band = seasonal_naive(examples, period=8)
    physical = examples.baseline * examples.scale + examples.loc
    assert torch.equal(band.point[~examples.given], physical[~examples.given])
    assert (band.stddev[~examples.given] > 0).all()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("kind", ["forecast", "imputation"])
def test_bands_keep_given_entries_and_never_read_hidden_ones(name, kind, windows, small):
    examples = windows(4, small.override({"task.kind": kind}))
    band = make_baseline(name, examples, period=8)
    read = examples.values * examples.scale + examples.loc
    drawn = band.sample(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 4, 32, 2) and torch.isfinite(drawn).all()
    assert torch.equal(drawn[:, examples.given], read[examples.given].expand(3, -1))
    changed = replace(examples, values=torch.where(examples.given, examples.values, 1e4))
    again = make_baseline(name, changed, period=8)
    assert torch.equal(again.point, band.point) and torch.equal(again.stddev, band.stddev)


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_with_nothing_given_is_finite(name):
    band = make_baseline(name, _row([1.0, 2.0, 3.0], [0, 0, 0]), period=1)
    assert torch.isfinite(band.point).all() and (band.stddev == 2).all()


def test_an_unknown_baseline_is_refused(windows, small):
    with pytest.raises(InputError, match="unknown baseline 'ridge'"):
        make_baseline("ridge", windows(1, small), period=8)
