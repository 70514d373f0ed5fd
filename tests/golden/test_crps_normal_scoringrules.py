"""Closed-form CRPS of a normal against scoringrules."""

from __future__ import annotations

import numpy as np
import torch

from fedpriv.models.gaussian import crps_normal


def test_closed_form_is_that_of_scoringrules() -> None:
    scoringrules = __import__("scoringrules")
    rng = np.random.default_rng(0)
    mean, stddev, truth = rng.normal(size=500) * 5, rng.uniform(0.01, 4, size=500), rng.normal(size=500) * 5
    ours = crps_normal(*(torch.from_numpy(a) for a in (mean, stddev, truth)))
    np.testing.assert_allclose(ours.numpy(), scoringrules.crps_normal(truth, mean, stddev), rtol=1e-9, atol=1e-12)
