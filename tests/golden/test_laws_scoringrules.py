"""Closed forms of the normal law and of Student's t against scoringrules and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats

from fedpriv.laws import Law, crps_normal, crps_student


def _case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=500) * 5, rng.uniform(0.01, 4, size=500), rng.normal(size=500) * 5


@pytest.mark.parametrize("dof", [1.5, 3.0, 8.0])
def test_student(dof: float) -> None:
    location, scale, truth = _case()
    ours = crps_student(*(torch.from_numpy(a) for a in (location, scale, truth)), dof)
    np.testing.assert_allclose(ours.numpy(), scoringrules.crps_t(truth, dof, location, scale), rtol=1e-9, atol=1e-12)


def test_normal() -> None:
    location, scale, truth = _case()
    ours = crps_normal(*(torch.from_numpy(a) for a in (location, scale, truth)))
    np.testing.assert_allclose(ours.numpy(), scoringrules.crps_normal(truth, location, scale), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dof", "theirs"), [(math.inf, stats.norm), (3.0, stats.t(3.0))])
def test_a_law_knows_its_quantiles_and_scores_chosen_entries(dof, theirs) -> None:
    location, scale, truth = (torch.from_numpy(a[:24]).reshape(2, 6, 2) for a in _case())
    law = Law(location, scale, dof)
    for level in (0.05, 0.5, 0.95):
        assert law.standard_quantile(level) == pytest.approx(theirs.ppf(level), abs=1e-12)
    where = torch.arange(24).reshape(2, 6, 2) % 3 == 0
    whole = law.crps(truth, torch.ones_like(where))
    assert torch.equal(law.crps(truth, where), whole.reshape(2, 6, 2)[where])
    second = law.rows(torch.tensor([1]))
    assert torch.equal(second.crps(truth[1:], torch.ones_like(where[1:])), whole[12:]) and second.dof == dof


@pytest.mark.parametrize("dof", [math.inf, 3.0])
def test_without_a_spread_the_crps_is_the_absolute_error(dof: float) -> None:
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    truth, every = torch.tensor([2.0, 5.0, -1.0]).double().reshape(1, 3, 1), torch.ones(1, 3, 1, dtype=torch.bool)
    exact = Law(2 * one, 0 * one, dof).crps(truth, every)
    torch.testing.assert_close(exact, torch.tensor([0.0, 3.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(Law(0 * one, 1e-9 * one, dof).crps(one, every), one.flatten(), rtol=1e-6, atol=1e-6)
