"""Gradient diagnostics: every number by its definition, the same with every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.diffusion.loss import make_loss
from fedpriv.models.parameters import is_conditioning
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.diagnostics import GradientProbe, Snapshot, distribution, severity, summary
from fedpriv.training import LocalWorker

SMALL = {
    "data.days": 90,
    "partition.clients": 1,
    "task.context": 24,
    "task.horizon": 24,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 1,
    "model.trainable": "all",
    "diffusion.multiplicity": 2,
    "privacy.noise_multiplier": 1.0,
    "privacy.clipper": "auto-s",
    "optimizer.learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def worker() -> LocalWorker:
    made = LocalWorker(Scenario().override(SMALL))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # away from the zero start, where the conditioning has hardly a gradient
        for parameter in made.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def batch(worker):
    return worker.diagnostic_batch(roster(worker.scenario).names[0], round=3)


def _rows(worker, examples, draws):
    """[B, P] float64 gradients, one row at a time by plain autograd."""
    names, found = [n for n, p in worker.model.named_parameters() if p.requires_grad], []
    loss = make_loss(worker.scenario.diffusion)
    for i in range(len(examples)):
        worker.model.zero_grad()
        row = torch.tensor([i])
        loss(worker.model, examples.rows(row), draws.rows(row)).sum().backward()
        parts = [dict(worker.model.named_parameters())[n].grad for n in names]
        found.append([p.double().flatten().numpy() if p is not None else np.zeros(1) for p in parts])
    worker.model.zero_grad(set_to_none=True)
    inside = np.concatenate([np.full(len(g), is_conditioning(n)) for n, g in zip(names, found[0], strict=True)])
    return np.array([np.concatenate(parts) for parts in found]), inside


@pytest.mark.parametrize("engine", ["ghost", "functional", "opacus", "single"])
def test_every_number_is_its_definition_with_every_engine(worker, batch, engine):
    examples, draws = batch
    rows, inside = _rows(worker, examples, draws)
    norms, bound = np.linalg.norm(rows, axis=1), float(np.median(np.linalg.norm(rows, axis=1)))
    probe = GradientProbe(
        worker.model, make_loss(worker.scenario.diffusion), conditioning=is_conditioning, engine=engine
    )
    found = probe.snapshot(examples, draws, make_clipper("auto-s", bound=bound), bound=bound)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4)
    np.testing.assert_allclose(found.conditioning, np.linalg.norm(rows[:, inside], axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.other, np.linalg.norm(rows[:, ~inside], axis=1), rtol=1e-4)
    eta = np.minimum(1, bound / norms)
    np.testing.assert_allclose(found.severity, eta, rtol=1e-4)
    mean, flat, own = rows.mean(0), (eta[:, None] * rows).mean(0), (rows / (norms + 0.01)[:, None]).mean(0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert found.mean_norm == pytest.approx(np.linalg.norm(mean), rel=1e-3)
    assert found.bias_norm == pytest.approx(np.linalg.norm(((1 - eta)[:, None] * rows).mean(0)), rel=1e-3)
    assert found.distortion == pytest.approx(np.linalg.norm(mean - flat) / np.linalg.norm(mean), rel=1e-3)
    assert found.cosine == pytest.approx(cosine(mean, flat), abs=1e-4)
    assert found.cosine_rule == pytest.approx(cosine(mean, own), abs=1e-4)
    assert all(p.requires_grad for p in worker.model.parameters())  # left as it was


def test_a_model_without_conditioning_has_none():
    worker = LocalWorker(Scenario().override({**SMALL, "model.trainable": "skip"}))
    name = roster(worker.scenario).names[0]
    found = worker.diagnose(name, worker.initial_parameters(), round=1)
    assert len(found.norms) > 3 and not found.conditioning.any()
    np.testing.assert_array_equal(found.other, found.norms)
    again = worker.diagnose(name, worker.initial_parameters(), round=1)
    np.testing.assert_array_equal(found.norms, again.norms)
    other = worker.diagnose(name, worker.initial_parameters(), round=2)
    assert not np.array_equal(found.norms[:3], other.norms[:3])  # other windows


def test_statistics_over_all_samples():
    rng = np.random.default_rng(1)
    many = [
        Snapshot(x, 0.6 * x, bound=1.0, mean_norm=2.0, bias_norm=0.5, cosine=c, cosine_rule=c / 2)
        for x, c in ((rng.lognormal(size=50), 0.9), (rng.lognormal(size=30), 0.7))
    ]
    pooled = np.concatenate([s.norms for s in many])
    found = summary([*many, Snapshot(np.zeros(0), np.zeros(0), 1.0, *[np.nan] * 4)])
    assert found["total-p99"] == pytest.approx(np.quantile(pooled, 0.99))
    assert found["cond-p95"] == pytest.approx(0.6 * np.quantile(pooled, 0.95))
    assert found["other-p95"] == pytest.approx(0.8 * np.quantile(pooled, 0.95))
    assert found["p-clip"] == np.mean(pooled > 1) == np.mean(severity(pooled, 1.0) < 1)
    assert found["eta-p10"] == pytest.approx(np.quantile(np.minimum(1, 1 / pooled), 0.1))
    assert (found["samples"], found["distortion"]) == (80, 0.25)
    assert found["cosine"] == pytest.approx(0.8) and found["cosine-rule"] == pytest.approx(0.4)
    assert summary([]) == {}


def test_the_distribution_is_scipys_ecdf():
    values = np.random.default_rng(2).normal(size=40)
    x, share = distribution(values)
    theirs = stats.ecdf(values).cdf
    np.testing.assert_allclose(x, theirs.quantiles)
    np.testing.assert_allclose(share, theirs.probabilities)


def test_a_zero_gradient_is_not_clipped():
    assert severity(np.array([0.0, 0.5, 1.0, 4.0]), 1.0).tolist() == [1.0, 1.0, 1.0, 0.25]


def test_a_snapshot_hides_its_norms():
    text = repr(Snapshot(np.array([1.2345]), np.array([0.0]), 1.0, 2.0, 0.5, 0.9, 0.9))
    assert "1.2345" not in text
