"""Closed-form CRPS of a Student t against scoringrules."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
import torch

from fedpriv.models.gaussian import crps_student


@pytest.mark.parametrize("dof", [1.5, 3.0, 8.0])
def test_closed_form_is_that_of_scoringrules(dof: float) -> None:
    rng = np.random.default_rng(0)
    location, scale, truth = rng.normal(size=500) * 5, rng.uniform(0.01, 4, size=500), rng.normal(size=500) * 5
    ours = crps_student(*(torch.from_numpy(a) for a in (location, scale, truth)), dof)
    theirs = scoringrules.crps_t(truth, dof, location, scale)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)
