"""CRPS, energy score and pinball against scoringrules (Zanetta & Allen)."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
import torch

from fedpriv.metrics import LEVELS, crps, pinball, quantile, score


@pytest.mark.parametrize("count", [2, 5, 20])
def test_crps_is_the_fair_estimator(count):
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=50), rng.normal(size=(count, 50)) * 2
    ours = crps(torch.from_numpy(np.sort(x, axis=0)), torch.from_numpy(y)).numpy()
    theirs = scoringrules.crps_ensemble(y, x.T, estimator="fair")
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_many_samples_approach_the_closed_form():
    rng = np.random.default_rng(1)
    y, x = rng.normal(size=20), rng.normal(1.0, 2.0, size=(200_000, 20))
    ours = crps(torch.from_numpy(np.sort(x, axis=0)), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(ours, scoringrules.crps_normal(y, 1.0, 2.0), atol=0.02)


def test_energy_score():
    rng = np.random.default_rng(2)
    y, x = rng.normal(size=(4, 3, 2)), rng.normal(size=(8, 4, 3, 2))
    mask = torch.ones(4, 3, 2, dtype=torch.bool)
    ours = score(torch.from_numpy(y), torch.from_numpy(x[0]), torch.from_numpy(x), mask, 1.0).finalize(["energy-score"])
    plain = scoringrules.es_ensemble(y.reshape(4, 6), x.reshape(8, 4, 6).transpose(1, 0, 2))
    near = np.linalg.norm(x.reshape(8, 4, 6) - y.reshape(4, 6), axis=-1).mean(axis=0)
    fair = near - (near - plain) * 8 / 7  # theirs averages over all pairs, a sample with itself included
    assert ours["energy-score"] == pytest.approx(fair.mean(), rel=1e-10)


def test_pinball_and_quantiles():
    rng = np.random.default_rng(3)
    y, x = rng.normal(size=30), np.sort(rng.normal(size=(25, 30)), axis=0)
    levels = np.array(LEVELS)
    ours = torch.stack([quantile(torch.from_numpy(x), level) for level in LEVELS]).numpy()
    np.testing.assert_allclose(ours, np.quantile(x, levels, axis=0, method="weibull"), rtol=1e-10, atol=1e-12)
    theirs = scoringrules.quantile_score(y[None], ours, levels[:, None]).mean(axis=0)
    np.testing.assert_allclose(pinball(torch.from_numpy(x), torch.from_numpy(y)).numpy(), theirs, rtol=1e-10)
