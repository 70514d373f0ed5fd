"""Private ridge: closed form in the limit, repair under noise, forecasts and their bands."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fedpriv.coherence import fading_factor
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.designs import LagDesign, ProfileDesign, cosine_basis
from fedpriv.models.moments import clamp_eigenvalues, noise_norm, pack, packed_size, unpack
from fedpriv.models.ridge import CORRELATION_LIMIT, RidgeBaseline, RidgeModel, RidgeOptions

CONTEXT, HORIZON, PERIOD = 28, 8, 8
LAGS = LagDesign(context=CONTEXT, horizon=HORIZON, cosines=0)
PROFILE = ProfileDesign(context=CONTEXT, horizon=HORIZON, period=PERIOD, blocks=4)
DESIGNS = [
    LAGS,
    PROFILE,
    LagDesign(context=CONTEXT, horizon=HORIZON, cosines=3, tau=math.inf),
    ProfileDesign(context=CONTEXT, horizon=2 * PERIOD, period=PERIOD, blocks=2, weekend_shift=None),
]


def examples(design, rows: int = 200, channels: int = 1, seed: int = 0) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    length = design.context + design.horizon
    time = torch.arange(length)[None, :, None] + torch.randint(0, 50, (rows, 1, 1), generator=rng)
    values = torch.sin(2 * math.pi * time / PERIOD) + 0.3 * torch.randn(rows, length, channels, generator=rng)
    values = values + 0.5 * torch.randn(rows, 1, channels, generator=rng)
    given = torch.ones(rows, length, channels, dtype=torch.bool)
    given[:, design.context :] = False
    baseline = values.clone()
    step = torch.arange(design.horizon)
    baseline[:, design.context :] = values[:, design.context - PERIOD + step % PERIOD]
    phase = 2 * math.pi * (time[..., 0].float() / (7 * PERIOD))
    calendar = torch.stack([phase * 0, phase * 0, phase.sin(), phase.cos(), *[phase * 0] * 3], dim=-1)
    return Examples(
        values=values,
        given=given,
        target=~given,
        calendar=calendar,
        baseline=baseline,
        loc=torch.full((rows, 1, channels), 50.0),
        scale=torch.full((rows, 1, channels), 4.0),
    )


@pytest.mark.parametrize("q", [1, 2, 7])
def test_packing_keeps_norms_and_inverts(q: int) -> None:
    half = torch.randn(3, q, q, dtype=torch.float64, generator=torch.Generator().manual_seed(q))
    matrix = half + half.mT
    packed = pack(matrix)
    assert packed.shape == (3, packed_size(q))
    torch.testing.assert_close(packed.norm(dim=1), matrix.flatten(1).norm(dim=1))
    torch.testing.assert_close(unpack(packed, q), matrix)


def test_noise_norm_is_the_largest_eigenvalue_of_unpacked_noise() -> None:
    rng = np.random.default_rng(0)
    q, stddev = 120, 0.7
    noise = unpack(torch.from_numpy(stddev * rng.standard_normal((5, packed_size(q)))), q)
    largest = torch.linalg.eigvalsh(noise)[:, -1]
    assert largest.mean() == pytest.approx(noise_norm(stddev, q), rel=0.08)
    clamped = clamp_eigenvalues(noise, 0.1)
    assert torch.linalg.eigvalsh(clamped).min() >= 0.1 - 1e-9
    torch.testing.assert_close(torch.linalg.eigvalsh(clamped)[:, -1], largest)
    assert clamp_eigenvalues(clamped, 0.05) is clamped


def test_cosines_are_orthonormal() -> None:
    basis = cosine_basis(24, 24)
    torch.testing.assert_close(basis.T @ basis, torch.eye(24).double())
    with pytest.raises(InputError):
        cosine_basis(24, 25)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("design", DESIGNS)
def test_without_noise_the_fit_is_least_squares(design, channels: int) -> None:
    data = examples(design, channels=channels)
    baseline = RidgeBaseline(design=design)
    rows = baseline.rows(data)
    assert rows.shape == (200, baseline.size)
    model = baseline.fit(baseline.aggregate([rows[:90].sum(0), rows[90:].sum(0)]), stddev=0.0)
    blocks, p, m = design.shape
    x = design.inputs(data).movedim(2, 0).reshape(blocks, -1, p)
    y = design.outputs(data).movedim(2, 0).reshape(blocks, -1, m)
    for b in range(blocks):
        exact = np.linalg.lstsq(x[b].numpy(), y[b].numpy(), rcond=None)[0]
        residual = y[b].numpy() - x[b].numpy() @ exact
        predicted = x[b] @ model.coefficients[b]
        scored = design.scored
        np.testing.assert_allclose(predicted[:, :scored].numpy(), (y[b].numpy() - residual)[:, :scored], atol=2e-4)
        np.testing.assert_allclose(model.variance[b, :scored].numpy(), (residual[:, :scored] ** 2).mean(0), rtol=1e-3)
        assert float(model.typical[b]) == pytest.approx(float(x[b].square().sum(1).mean()), rel=1e-6)


@pytest.mark.parametrize("design", DESIGNS)
def test_zero_coefficients_forecast_the_baseline_and_given_entries_stay(design) -> None:
    data = examples(design, rows=6, channels=2)
    data.given[2, 5] = False  # a gap in the context: filled from the baseline
    data.values[2, 5] = 0.0
    blocks, p, m = design.shape
    model = RidgeModel(
        design, torch.zeros(blocks, p, m).double(), torch.ones(blocks, m).double(), torch.ones(blocks).double(), 0.5
    )
    band = model.forecast(data)
    torch.testing.assert_close(band.point, data.baseline * 4.0 + 50.0)
    assert (band.stddev[data.given] == 0).all()
    assert (band.stddev[:, design.context :] > 0).all()
    band.sample(3, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("design", DESIGNS)
def test_inputs_do_not_look_at_hidden_entries(design) -> None:
    data = examples(design, rows=5)
    other = replace(data, values=torch.where(data.given, data.values, torch.full_like(data.values, 99.0)))
    torch.testing.assert_close(design.inputs(data), design.inputs(other))


def test_the_forecast_is_the_regression_in_physical_units() -> None:
    data = examples(LAGS)
    baseline = RidgeBaseline(design=LAGS)
    model = baseline.fit(baseline.rows(data).sum(0), stddev=0.0)
    fitted = (LAGS.inputs(data)[:, 0, 0, 0] @ model.coefficients[0]) / LAGS.output_scale
    expected = (data.baseline[:, CONTEXT:, 0].double() + fitted) * 4.0 + 50.0
    torch.testing.assert_close(model.forecast(data).point[:, CONTEXT:, 0].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_bands_cover(share: float) -> None:
    baseline = RidgeBaseline(design=PROFILE, options=RidgeOptions(band_share=share))
    model = baseline.fit(baseline.rows(examples(PROFILE, rows=3000)).sum(0), stddev=0.0)
    fresh = examples(PROFILE, rows=1500, seed=9)
    band = model.forecast(fresh)
    z = ((fresh.values * 4.0 + 50.0 - band.point) / band.stddev)[fresh.target]
    assert float((z.abs() < 1.645).float().mean()) == pytest.approx(0.9, abs=0.025)  # of normal errors


@pytest.mark.parametrize("rule", ["fixed", "adassp"])
@pytest.mark.parametrize("stddev", [1.0, 30.0, 1e4])
def test_noise_of_any_size_leaves_finite_forecasts_that_fall_back_to_the_baseline(rule: str, stddev: float) -> None:
    data = examples(PROFILE, rows=100)
    baseline = RidgeBaseline(design=PROFILE, options=RidgeOptions(rule=rule, ridge=4.0))  # pyright: ignore
    exact = baseline.rows(data).sum(0)
    for seed in range(3):
        noise = torch.randn(baseline.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        band = baseline.fit(exact + stddev * noise, stddev=stddev).forecast(data)
        assert band.point.isfinite().all()
        assert band.stddev.isfinite().all()
        off = float(((band.point - data.baseline * 4.0 - 50.0)[data.target] / 4.0).square().mean().sqrt())
        assert off < (3.0 if stddev < 1e3 else 1.0)


def test_adassp_adds_ridge_only_where_the_noise_needs_it() -> None:
    weak = RidgeBaseline(design=PROFILE, options=RidgeOptions(rule="adassp", ridge=1.0, smooth=0.0, clamp=0.0))
    none = RidgeBaseline(design=PROFILE, options=RidgeOptions(rule="fixed", ridge=0.0, smooth=0.0, clamp=0.0))
    total = (
        weak.rows(examples(PROFILE, rows=2000)).sum(0) + 50.0 * pack(torch.eye(15).double().expand(4, 15, 15)).flatten()
    )
    torch.testing.assert_close(weak.fit(total, stddev=1e-3).coefficients, none.fit(total, stddev=1e-3).coefficients)
    assert weak.fit(total, stddev=1e4).coefficients.norm() < 0.5 * none.fit(total, stddev=1e4).coefficients.norm()


def lasting(correlation: float, rows: int) -> Examples:
    """Windows whose distance to the baseline is a stationary autoregression over the horizon."""
    data, rng = examples(PROFILE, rows=rows, channels=2), torch.Generator().manual_seed(3)
    white = torch.randn(rows, HORIZON, 2, generator=rng)
    error = torch.einsum("ij,bjc->bic", fading_factor(HORIZON, correlation), white)
    values = torch.where(data.given, data.values, data.baseline + torch.nn.functional.pad(error, (0, 0, CONTEXT, 0)))
    return replace(data, values=values)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_how_long_errors_last_is_found_and_drawn(correlation: float) -> None:
    baseline = RidgeBaseline(design=PROFILE)
    data = lasting(correlation, 4000)
    total = baseline.rows(data).sum(0)
    model = baseline.fit(total, stddev=0.0)
    assert model.correlation == pytest.approx(correlation, abs=0.05)
    some = data.rows(slice(0, 3))
    band = model.forecast(some)
    drawn = (band.sample(3000, torch.Generator().manual_seed(1)) - band.point)[:, :, CONTEXT:] / band.stddev[
        :, CONTEXT:
    ]
    for apart in (1, HORIZON - 1):  # Kendall's tau is 2/pi arcsin(correlation), however heavy the tails
        seen = stats.kendalltau(drawn[:, 0, 0, 0].numpy(), drawn[:, 0, apart, 0].numpy()).statistic
        assert seen == pytest.approx(2 / math.pi * math.asin(model.correlation**apart), abs=5 / math.sqrt(3000))
    noise = torch.randn(baseline.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert baseline.fit(total + 1e6 * noise, stddev=1e6).correlation < 0.5  # unknown: towards white
    assert 0.0 <= baseline.fit(total + 30.0 * noise, stddev=30.0).correlation <= CORRELATION_LIMIT


def test_smoothness_pulls_neighbouring_blocks_together() -> None:
    total = RidgeBaseline(design=PROFILE).rows(examples(PROFILE)).sum(0)
    spread = []
    for smooth in (0.0, 1e4):
        options = RidgeOptions(smooth=smooth, ridge=0.0, clamp=0.0)
        spread.append(
            float(RidgeBaseline(design=PROFILE, options=options).fit(total, stddev=1.0).coefficients.var(0).sum())
        )
    assert spread[1] < 0.05 * spread[0]


def test_border() -> None:
    baseline = RidgeBaseline(design=LAGS)
    with pytest.raises(InputError, match="nothing was fitted"):
        baseline.aggregate([])
    with pytest.raises(InputError):
        baseline.aggregate([torch.zeros(3)])
    with pytest.raises(InputError):
        baseline.aggregate([torch.full((baseline.size,), math.nan)])
    with pytest.raises(InputError):
        baseline.fit(torch.zeros(baseline.size), stddev=-1.0)
    for bad in ({"cosines": 9}, {"tau": 0.0}, {"floor": 0.0}, {"context": 0}):
        with pytest.raises(InputError):
            LagDesign(**{"context": CONTEXT, "horizon": HORIZON, **bad})
    for bad in ({"blocks": 3}, {"period": 3}, {"context": 20}):
        with pytest.raises(InputError):
            ProfileDesign(**{"context": CONTEXT, "horizon": HORIZON, "period": PERIOD, **bad})
    with pytest.raises(InputError, match="calendar"):
        PROFILE.inputs(replace(examples(PROFILE), calendar=torch.zeros(200, CONTEXT + HORIZON, 2)))


def test_weekend_terms_mark_the_change_of_weekend_status() -> None:
    # period 8 steps a day, week of 56 steps: step 40 is Saturday 0 h
    design = ProfileDesign(context=32, horizon=8, period=8, weekend_shift=0.0)
    step = torch.arange(40)[None] + torch.tensor([[0], [8], [16], [24]])
    phase = 2 * math.pi * step / 56
    calendar = torch.stack([phase * 0, phase * 0, phase.sin(), phase.cos()], dim=-1)
    data = examples(design, rows=4)
    change = design._weekend(replace(data, calendar=calendar.float()))
    # horizons start on Friday, Saturday, Sunday, Monday
    torch.testing.assert_close(change, torch.tensor([0.0, 1.0, 0.0, -1.0]).double()[:, None].expand(4, 8))
