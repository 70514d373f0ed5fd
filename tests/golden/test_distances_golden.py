"""Distances of distributions against scipy, and the kernel distance against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal, stats
from scipy.spatial.distance import cdist, jensenshannon

from fedpriv.distances import BINS_COARSE, LIMIT, WIDTH, measure

B, H, C, S = 60, 12, 2, 5
LOC, SCALE = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])


def _measured(truth, samples, target=None, **options):
    """Standardised truth [B, H, C] and samples [S, B, H, C], as they arrive: in physical units."""
    mask = torch.ones(truth.shape, dtype=torch.bool) if target is None else torch.from_numpy(target)
    y, x = torch.from_numpy(truth) * SCALE + LOC, torch.from_numpy(samples) * SCALE + LOC
    return measure(y, x, mask, ~mask, loc=LOC.double(), scale=SCALE.double(), span=slice(0, H), **options)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    return rng.normal(size=(B, H, C)), 0.3 + 1.2 * rng.normal(size=(S, B, H, C))


def test_marginal_distances_are_scipys_on_values_at_bin_centres(data):
    truth, samples = (np.floor(x / WIDTH) * WIDTH + WIDTH / 2 for x in data)  # exact under binning
    found = _measured(truth, samples).finalize()
    assert found["dist-ws"] == pytest.approx(stats.wasserstein_distance(truth.ravel(), samples.ravel()), rel=1e-9)
    assert found["dist-ks"] == pytest.approx(stats.ks_2samp(truth.ravel(), samples.ravel()).statistic, rel=1e-9)


def test_binning_moves_the_wasserstein_distance_by_less_than_a_bin(data):
    truth, samples = data
    assert np.abs(truth).max() < LIMIT and np.abs(samples).max() < LIMIT
    exact = stats.wasserstein_distance(truth.ravel(), samples.ravel())
    assert abs(_measured(truth, samples).finalize()["dist-ws"] - exact) < WIDTH


def test_divergences_are_scipys_of_the_fifty_bins(data):
    truth, samples = data
    edges = np.linspace(-LIMIT, LIMIT, BINS_COARSE + 1)
    p, q = np.histogram(truth, edges)[0], np.histogram(samples, edges)[0] / S
    found = _measured(truth, samples).finalize()
    assert found["dist-js"] == pytest.approx(jensenshannon(p, q, base=2) ** 2, rel=1e-9)
    assert found["dist-kl"] == pytest.approx(stats.entropy(p + 0.5, q + 0.5), rel=1e-9)


def test_disjoint_distributions_have_the_largest_distances():
    found = _measured(np.full((B, H, C), -2.0), np.full((S, B, H, C), 2.0)).finalize()
    assert found["dist-js"] == pytest.approx(1.0) and found["dist-ks"] == pytest.approx(1.0)
    assert found["dist-ws"] == pytest.approx(4.0)


def _exact_mmd(truth: np.ndarray, samples: np.ndarray, target: np.ndarray) -> float:
    """The definition with the exact kernel, over pairs of different windows."""

    def kernel(a, b):
        return np.exp(-cdist(a, b, "sqeuclidean") / 2)

    root = np.sqrt(target.reshape(B, -1).sum(axis=1))[:, None]
    y = (truth * target).reshape(B, -1) / root
    x = [(one * target).reshape(B, -1) / root for one in samples]
    apart = kernel(y, y) + np.mean([kernel(a, b) for a in x for b in x], axis=0)
    apart = apart - np.mean([kernel(y, a) + kernel(a, y) for a in x], axis=0)
    return float((apart.sum() - np.trace(apart)) / (B * (B - 1)))


@pytest.mark.parametrize("hidden", [0.0, 0.4])
def test_the_kernel_distance_is_the_definition_up_to_the_random_features(hidden):
    rng = np.random.default_rng(7)
    level = rng.normal(size=(B, 1, C))
    truth = level + 0.4 * rng.normal(size=(B, H, C))
    samples = 0.7 + rng.normal(size=(S, B, 1, C)) * 0.6 + 0.4 * rng.normal(size=(S, B, H, C))
    target = rng.random((B, H, C)) >= hidden
    exact = _exact_mmd(truth, samples, target)
    assert exact > 0.02
    # 128 frequencies: the estimate of a kernel value has a standard deviation of at most 1 / 16
    assert _measured(truth, samples, target, names=["mmd"]).finalize()["mmd"] == pytest.approx(exact, rel=0.2)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(8)
    found = [
        _measured(rng.normal(size=(B, H, C)), rng.normal(size=(S, B, H, C)), names=["mmd"]).finalize()["mmd"]
        for _ in range(40)
    ]
    assert stats.ttest_1samp(found, 0.0).pvalue > 1e-3 and min(found) < 0  # unbiased, so not always above


def test_the_spectrum_is_the_periodogram(data):
    truth, samples = data
    p = signal.periodogram(truth, axis=1, detrend="constant", scaling="spectrum")[1][:, 1:].mean(axis=(0, 2))
    q = signal.periodogram(samples, axis=2, detrend="constant", scaling="spectrum")[1][:, :, 1:].mean(axis=(0, 1, 3))
    for each in (p, q):
        each[-1] *= 2.0  # a one-sided spectrum counts every frequency twice except the last of an even length
    expected = np.square(p / p.sum() - q / q.sum()).mean()
    found = _measured(truth, samples, names=["spectrum-distance"]).finalize()
    assert found["spectrum-distance"] == pytest.approx(expected, rel=1e-9)
