"""Count, scaler and metrics: sensitivities replayed on neighbours, noise, accuracy, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.side_releases import (
    COUNT_SHARE,
    calibrate_side,
    private_count,
    private_metrics,
    private_scaler,
    scaler_rows,
    side_event,
    unit_readings,
    windows_touched,
)
from fedpriv.privacy.units import CLIENT, METER, READING, Relation, Unit

M, T, C = 3, 240, 2
DAY = Unit.parse("day", steps_per_day=24)
UNITS = [READING, DAY, Unit.parse("week", steps_per_day=24), METER]
COMMON = {"relation": Relation.ZERO_OUT, "noise_multiplier": 1.5}


class Silent:
    """No noise: shows the sums that the mechanism protects."""

    def random(self, size: int) -> np.ndarray:
        return np.zeros(size)

    def standard_normal(self, size: int) -> np.ndarray:
        return np.zeros(size)

    def integers(self, low: int, high: int) -> int:
        return low


def readings(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(50, 30, size=(M, T, C))
    values[rng.random((M, T, C)) < 0.05] = np.nan
    return values


def neighbours(values: np.ndarray, unit: Unit, content: float):
    """The data with one unit of one meter changed."""
    span = unit.steps if unit.kind == "event" else T
    for meter, at in ((0, 0), (1, 100), (2, T - min(span, T))):
        other = values.copy()
        other[meter, at : at + span] = content
        yield other


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_count_moves_by_no_more_than_stated(unit: Unit) -> None:
    args = {**COMMON, "unit": unit}
    full = np.ones((M, T, C), dtype=bool)
    values = readings()
    before = private_count(np.isfinite(values), **args, rng=Silent())
    sensitivity = before.stddev / 1.5
    for other in neighbours(values, unit, math.nan):
        after = private_count(np.isfinite(other), **args, rng=Silent())
        assert 0 <= before.value - after.value <= sensitivity
    base = private_count(full, **args, rng=Silent())
    assert base.value == M * T
    block = full.copy()
    block[1, : min(unit.steps or T, T)] = False
    assert base.value - private_count(block, **args, rng=Silent()).value == sensitivity  # attained


@given(st.floats(allow_nan=True, allow_infinity=True, width=64))
def test_no_reading_adds_more_than_its_bound_to_the_scaler(reading: float) -> None:
    row = scaler_rows(np.array([[[reading]]]), low=-20.0, high=180.0)
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) <= math.sqrt(COUNT_SHARE**2 + 1) * (1 + 1e-12)
    if not math.isfinite(reading):
        assert not row.any()


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
@pytest.mark.parametrize("content", [math.nan, 0.0, 1e30, -1e30, 80.0])
def test_scaler_sums_move_by_no_more_than_stated(unit: Unit, content: float) -> None:
    values = readings()
    sent = private_scaler(values, low=-20, high=180, **COMMON, unit=unit, rng=Silent())
    allowed = sent.stddev / 1.5 * (1 if math.isnan(content) else 2)  # zero-out, replace-one
    base = scaler_rows(values, low=-20, high=180).sum(axis=(0, 1)).ravel()
    for other in neighbours(values, unit, content):
        moved = scaler_rows(other, low=-20, high=180).sum(axis=(0, 1)).ravel()
        assert np.linalg.norm(moved - base) <= allowed * (1 + 1e-9)


def test_the_scaler_sensitivity_is_attained() -> None:
    values = np.full((1, T, 1), 180.0)
    sent = private_scaler(values, low=-20, high=180, **COMMON, unit=DAY, rng=Silent())
    gone = values.copy()
    gone[0, :24] = np.nan
    moved = (scaler_rows(values, low=-20, high=180) - scaler_rows(gone, low=-20, high=180)).sum(axis=(0, 1))
    assert np.linalg.norm(moved) == pytest.approx(sent.stddev / 1.5)


def test_the_scaler_is_right_without_noise_and_close_with_it() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 100, size=(1, 8640, 2))
    values[0, :500] = np.nan
    exact = private_scaler(values, low=0, high=100, **COMMON, unit=READING, rng=Silent()).value
    np.testing.assert_allclose(exact.mean, np.nanmean(values, axis=(0, 1)), rtol=1e-9)
    np.testing.assert_allclose(exact.std, np.nanstd(values, axis=(0, 1)), rtol=1e-9)
    np.testing.assert_allclose(exact.count, 8140)
    args = {"noise_multiplier": 20.0, "relation": "zero-out", "unit": READING}
    noisy = private_scaler(values, low=0, high=100, **args, rng=rng)
    # privacy spec section 3: sigma = 20 costs 0.23 and leaves the mean within a fraction of a per cent
    assert epsilon(noisy.event, 1, 1e-5, "zero-out") < 0.24
    np.testing.assert_allclose(noisy.value.mean, exact.mean, atol=1.0)
    np.testing.assert_allclose(noisy.value.std, exact.std, atol=1.0)


def test_releases_of_pure_noise_stay_in_range() -> None:
    values = np.full((1, 4, 1), np.nan)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scaler = private_scaler(values, low=0, high=10, **COMMON, unit=READING, rng=rng).value
        assert 0 <= scaler.mean[0] <= 10
        assert 0 < scaler.std[0] <= 5
        count = private_count(np.zeros((1, 4), dtype=bool), **COMMON, unit=READING, rng=rng).value
        assert 0 <= count <= 4


@pytest.mark.parametrize("stride", [1, 7, 24, 100])
@pytest.mark.parametrize("unit", UNITS[:3], ids=lambda u: u.name)
def test_windows_touched_is_the_worst_case(stride: int, unit: Unit) -> None:
    starts = np.concatenate([np.arange(0, 150, stride), np.arange(0, 150, 2 * stride)])
    meters = np.repeat([0, 1], [len(np.arange(0, 150, stride)), len(np.arange(0, 150, 2 * stride))])
    window = 48
    worst = max(
        int(((starts < at + unit.steps) & (starts + window > at) & (meters == m)).sum())
        for m in (0, 1)
        for at in range(-unit.steps, 250)
    )
    assert windows_touched(starts, meters, window=window, unit=unit) == worst
    assert windows_touched(starts, meters, window=window, unit=METER, calendar_steps=300) == (meters == 0).sum()


@pytest.mark.parametrize("unit", [READING, DAY], ids=lambda u: u.name)
def test_metric_sums_move_by_no_more_than_stated(unit: Unit) -> None:
    rng = np.random.default_rng(0)
    starts, meters, window = np.arange(0, 190, 10), np.zeros(19, dtype=np.int64), 48
    scores = rng.exponential(size=(19, 3))
    args = {**COMMON, "unit": unit, "window": window, "cap": 2.0}
    base = private_metrics(scores, starts, meters, **args, rng=Silent())
    np.testing.assert_allclose(base.value, np.minimum(scores, 2.0).mean(axis=0))
    for at in range(0, 230, 9):
        other = scores.copy()
        hit = (starts < at + unit.steps) & (starts + window > at)
        other[hit] = math.nan
        moved = private_metrics(other, starts, meters, **args, rng=Silent()).value
        assert np.linalg.norm((moved - base.value) * 19) <= base.stddev / 1.5 + 1e-9
        other[hit] = 1e30
        moved = private_metrics(other, starts, meters, **args, rng=Silent()).value
        assert np.linalg.norm((moved - base.value) * 19) <= 2 * base.stddev / 1.5 + 1e-9


def test_the_metric_sensitivity_is_attained() -> None:
    starts, meters = np.arange(0, 190, 10), np.zeros(19, dtype=np.int64)
    scores = np.full((19, 3), 9.0)
    args = {**COMMON, "unit": READING, "window": 48, "cap": 2.0, "rng": Silent()}
    base = private_metrics(scores, starts, meters, **args)
    scores[(starts <= 50) & (starts + 48 > 50)] = math.nan
    moved = private_metrics(scores, starts, meters, **args).value
    assert np.linalg.norm((moved - base.value) * 19) == pytest.approx(base.stddev / 1.5)


def test_noise_has_the_stated_size() -> None:
    full = np.ones((1, 100_000), dtype=bool)
    full[0, :50_000] = False
    args = {"noise_multiplier": 20.0, "relation": "zero-out", "unit": DAY}
    sent = [private_count(full, **args, rng=np.random.default_rng(s)) for s in range(400)]
    assert sent[0].stddev == 20 * 24
    z = (np.array([s.value for s in sent]) - 50_000) / sent[0].stddev
    low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], len(z))
    assert low < (z**2).sum() < high
    assert "day" in sent[0].note
    assert "24" in sent[0].note


def test_events_and_calibration() -> None:
    assert side_event(3.0) == dp_event.GaussianDpEvent(3.0)
    sigma = calibrate_side(epsilon=0.5, delta=1e-5, relation="zero-out", releases=10)
    assert epsilon(side_event(sigma), 10, 1e-5, "zero-out") <= 0.5
    assert epsilon(side_event(sigma * 0.99), 10, 1e-5, "zero-out") > 0.5
    # privacy spec section 3: one noisy count, sigma = 50: 0.06; sigma = 200: 0.0125
    assert epsilon(side_event(50.0), 1, 1e-5, "zero-out") == pytest.approx(0.06, abs=0.025)


def test_refusals_say_that_nothing_was_released() -> None:
    rng = np.random.default_rng(0)
    flat = np.ones((1, 5), dtype=bool)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="nothing was released"):
            private_count(flat, noise_multiplier=sigma, unit=READING, relation="zero-out", rng=rng)
    with pytest.raises(InputError, match="whole client"):
        private_count(flat, **COMMON, unit=CLIENT, rng=rng)
    with pytest.raises(InputError, match="calendar"):
        unit_readings(METER)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(InputError, match="nothing was released"):
            private_scaler(np.ones((1, 5, 1)), low=low, high=high, **COMMON, unit=READING, rng=rng)
    starts = meters = np.zeros(2, dtype=np.int64)
    args = {**COMMON, "unit": READING, "window": 4, "rng": rng}
    for scores, cap in ((np.ones((2, 1)), 0.0), (np.ones((2, 1)), math.inf), (np.ones(2), 1.0), (np.ones((3, 1)), 1.0)):
        with pytest.raises(InputError, match="nothing was released"):
            private_metrics(scores, starts, meters, **args, cap=cap)
