"""The Gaussian conditional model: exact conditionals for any mask, unbiased fits, calibrated samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.models.designs import ProfileDesign
from fedpriv.models.gaussian import GaussianBaseline, GaussianModel, StackedDesign, public_kernels
from fedpriv.models.ridge import RidgeBaseline, RidgeModel

LENGTH, PERIOD = 20, 8


def wrap(values: Tensor, given: Tensor) -> Examples:
    rows, length, channels = values.shape
    return Examples(
        values=values.float(),
        given=given,
        target=~given,
        calendar=torch.zeros(rows, length, 7),
        baseline=torch.zeros_like(values).float(),
        loc=torch.full((rows, 1, channels), 10.0),
        scale=torch.full((rows, 1, channels), 2.0),
    )


def random_model(seed: int = 0) -> GaussianModel:
    rng = torch.Generator().manual_seed(seed)
    half = torch.randn(LENGTH, LENGTH, generator=rng, dtype=torch.float64)
    return GaussianModel(torch.randn(LENGTH, generator=rng, dtype=torch.float64), half @ half.T + torch.eye(LENGTH))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_conditionals_are_those_of_brute_force(share: float) -> None:
    model, rng = random_model(), torch.Generator().manual_seed(3)
    values = torch.randn(7, LENGTH, 2, generator=rng)
    given = torch.rand(7, LENGTH, 2, generator=rng) < share
    given[3] = given[0]  # a mask that occurs twice
    band = model.forecast(wrap(values, given))
    precision = np.linalg.inv(model.covariance.numpy())
    for b in range(7):
        for c in range(2):
            g = given[b, :, c].numpy()
            z, h = values[b, :, c].double().numpy(), ~g
            # by the precision matrix, another route than the model's
            covariance = np.linalg.inv(precision[np.ix_(h, h)]) if h.any() else np.zeros((0, 0))
            mean = model.mean.numpy()[h] - covariance @ precision[np.ix_(h, g)] @ (z[g] - model.mean.numpy()[g])
            np.testing.assert_allclose(band.point[b, h, c].numpy(), mean * 2 + 10, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(band.stddev[b, h, c].numpy(), np.sqrt(np.diag(covariance)) * 2, rtol=1e-4)
            np.testing.assert_array_equal(band.point[b, g, c].numpy(), (values[b, :, c][g] * 2.0 + 10.0).numpy())
            assert not band.stddev[b, g, c].any()


def test_samples_have_the_conditional_covariance_and_keep_given_entries() -> None:
    model = random_model(1)
    values = torch.randn(1, LENGTH, 1, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(1, LENGTH, 1, dtype=torch.bool)
    given[0, :14] = True
    band = model.forecast(wrap(values, given))
    drawn = band.sample(20_000, torch.Generator().manual_seed(5))
    assert drawn.shape == (20_000, 1, LENGTH, 1)
    assert (drawn[:, given] == band.point[given]).all()
    _, exact = model.conditional(values[:, :, 0].double(), given[0, :, 0])
    size = exact.diagonal().sqrt().numpy()
    error = (drawn - band.point)[:, 0, 14:, 0].numpy() / 2.0
    # every entry by itself is a Student t; of any law with elliptical contours tau = 2/pi arcsin(correlation)
    for step in range(6):
        law = stats.t(TAIL_DOF, scale=TAIL_SCALE * size[step])
        assert stats.kstest(error[:, step], law.cdf).pvalue > 1e-3
    seen = [[stats.kendalltau(error[:4000, i], error[:4000, j]).statistic for j in range(6)] for i in range(6)]
    expected = 2 / math.pi * np.arcsin(np.clip(exact.numpy() / np.outer(size, size), -1, 1))
    np.testing.assert_allclose(seen, expected, atol=5 / math.sqrt(4000))
    # one scale for the whole window: a far entry comes with far neighbours, also where they do not correlate
    far = np.abs(error / size)
    assert stats.kendalltau(far[:4000, 0], far[:4000, 5]).statistic > 0.1
    repeat = band.sample(20_000, torch.Generator().manual_seed(5))
    assert torch.equal(drawn, repeat)


def test_all_given_is_returned_as_read() -> None:
    values = torch.randn(2, LENGTH, 1)
    band = random_model().forecast(wrap(values, torch.ones(2, LENGTH, 1, dtype=torch.bool)))
    torch.testing.assert_close(band.point, values * 2 + 10)
    assert not band.stddev.any()


def test_dense_without_noise_is_the_moment_estimate() -> None:
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD, structure="dense", floor=1e-9)
    values = torch.randn(400, LENGTH, 2, generator=torch.Generator().manual_seed(0)) + 0.3
    total = baseline.rows(wrap(values, torch.zeros(400, LENGTH, 2, dtype=torch.bool))).sum(0)
    model = baseline.fit(total, stddev=0.0)
    series = values.transpose(1, 2).reshape(800, LENGTH).double().numpy()
    np.testing.assert_allclose(model.mean.numpy(), series.mean(0), atol=1e-9)
    np.testing.assert_allclose(model.covariance.numpy(), np.cov(series.T, bias=True), atol=1e-9)


def test_dense_is_positive_definite_whatever_the_noise() -> None:
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD, structure="dense")
    for stddev in (0.1, 10.0, 1e5):
        noise = torch.randn(baseline.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        model = baseline.fit(stddev * noise, stddev=stddev)
        assert torch.linalg.eigvalsh(model.covariance).min() > 0


def test_every_kernel_is_a_covariance() -> None:
    for window, period in ((LENGTH, PERIOD), (192, 24), (96, 48), (10, 2)):
        kernels = public_kernels(window, period)
        assert torch.equal(kernels[:, 0], torch.ones(len(kernels)).double())
        step = torch.arange(window)
        eigenvalues = torch.linalg.eigvalsh(kernels[:, (step[:, None] - step).abs()])
        assert eigenvalues.min() > -1e-9 * window


def test_forms_are_quadratic_forms_in_the_guess() -> None:
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD)
    public = baseline._forms
    values = torch.randn(5, LENGTH, 2, generator=torch.Generator().manual_seed(0))
    rows = baseline.rows(wrap(values, torch.zeros(5, LENGTH, 2, dtype=torch.bool)))
    step = torch.arange(LENGTH)
    stack = public.kernels[:, (step[:, None] - step).abs()]
    y = torch.einsum("pq,bqc->bcp", public.precision, values.double())
    raw = torch.einsum("bcp,kpq,bcq->bk", y, stack, y) / 2
    torch.testing.assert_close(rows[:, 1:], raw @ public.project.T, rtol=1e-5, atol=1e-6)
    assert (rows[:, 0] == 4.0).all()


def test_kernel_weights_are_estimated_without_bias() -> None:
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD)
    public = baseline._forms
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.uniform(0.0, 0.3, len(public.kernels)))
    lags = weights @ public.kernels
    lags[0] += baseline.floor
    step = torch.arange(LENGTH)
    covariance = lags[(step[:, None] - step).abs()]
    count = 20_000
    values = torch.from_numpy(rng.standard_normal((count, LENGTH))) @ torch.linalg.cholesky(covariance).T
    rows = baseline.rows(wrap(values[..., None], torch.zeros(count, LENGTH, 1, dtype=torch.bool)))[:, 1:]
    z = (rows.mean(0) - public.offset - public.root @ weights) / (rows.std(0) / math.sqrt(count))
    assert float(z.square().sum()) < stats.chi2.ppf(1 - 1e-3, len(z))
    total = torch.cat([torch.tensor([2.0 * count]).double(), rows.sum(0)])
    model = baseline.fit(total, stddev=0.0)
    np.testing.assert_allclose(model.covariance.numpy(), covariance.numpy(), atol=0.06 * float(lags[0]))


def test_noise_of_any_size_leaves_a_covariance() -> None:
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD)
    for stddev in (0.01, 10.0, 1e6):
        noise = torch.randn(baseline.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        model = baseline.fit(stddev * noise, stddev=stddev)
        assert model.covariance.isfinite().all()
        assert torch.linalg.eigvalsh(model.covariance).min() > 0
        band = model.forecast(wrap(torch.zeros(1, LENGTH, 1), torch.arange(LENGTH)[None, :, None] < 12))
        assert band.point.isfinite().all()


def test_border() -> None:
    for bad in ({"window": 1}, {"period": 1}, {"floor": 0.0}):
        with pytest.raises(InputError):
            GaussianBaseline(**{"window": LENGTH, "period": PERIOD, **bad})
    baseline = GaussianBaseline(window=LENGTH, period=PERIOD)
    with pytest.raises(InputError):
        baseline.fit(torch.zeros(baseline.size + 1), stddev=1.0)
    with pytest.raises(InputError):
        baseline.fit(torch.zeros(baseline.size), stddev=math.nan)
    with pytest.raises(InputError, match="do not fit"):
        random_model().forecast(wrap(torch.zeros(1, 5, 1), torch.ones(1, 5, 1, dtype=torch.bool)))


def test_a_stacked_design_takes_the_forecast_as_an_input() -> None:
    design = ProfileDesign(context=24, horizon=8, period=8, blocks=2, weekend_shift=None)
    rng = torch.Generator().manual_seed(0)
    lags = 0.8 ** torch.arange(32).double()
    step = torch.arange(32)
    covariance = lags[(step[:, None] - step).abs()]
    model = GaussianModel(torch.zeros(32).double(), covariance)
    values = (torch.randn(800, 2, 32, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T).mT
    given = (torch.arange(32) < 24)[None, :, None].expand(values.shape)
    examples = wrap(values, given)
    examples = replace(examples, baseline=torch.where(given, examples.values, examples.values.roll(8, dims=1)))
    stacked = StackedDesign(design, model)
    blocks, inputs, outputs = stacked.shape
    assert (blocks, inputs, outputs) == (2, design.shape[1] + 1, design.shape[2])
    table = stacked.inputs(examples)
    assert table.shape == (800, 2, 2, 4, inputs)
    torch.testing.assert_close(table[..., 1:], design.inputs(examples))
    # coefficients that take the forecast alone give the model's own forecast
    only = torch.zeros(2, inputs, outputs).double()
    only[:, 0, 0] = design.output_scale / stacked.scale
    ridge = RidgeModel(stacked, only, torch.ones(2, outputs).double(), torch.ones(2).double(), 0.0)
    torch.testing.assert_close(ridge.forecast(examples).point, model.forecast(examples).point, rtol=1e-4, atol=1e-4)
    # and of data that the model is right about, least squares finds just these
    baseline = RidgeBaseline(design=stacked)
    fitted = baseline.fit(baseline.rows(examples).sum(0), stddev=0.0).forecast(examples)
    error = [
        float((b.point - examples.values * 2 - 10)[examples.target].square().mean())
        for b in (fitted, model.forecast(examples))
    ]
    assert error[0] == pytest.approx(error[1], rel=0.05)
    with pytest.raises(InputError, match="does not fit"):
        StackedDesign(design, random_model())
