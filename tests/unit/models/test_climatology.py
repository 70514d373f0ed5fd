"""Climatology: the usual value of the time of day and day type, with its spread."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.evaluation import CLIMATOLOGY, evaluate
from fedpriv.models.climatology import fit_climatology
from fedpriv.tallies import metrics_of
from fedpriv.training import LocalWorker

SLOTS = 4


def _calendar(days: int):
    steps = np.arange(days * SLOTS)
    return (steps // SLOTS % 7 >= 5), steps % SLOTS


def _cells(meter: int, weekend: int, slot: int):
    return torch.tensor([meter]), torch.tensor([[weekend]]), torch.tensor([[slot]])


def test_means_and_quantiles_are_those_of_pandas():
    rng = np.random.default_rng(3)
    weekend, slot = _calendar(140)
    values = rng.gamma(2.0, size=(2, len(slot), 3))
    values[rng.random(values.shape) < 0.2] = np.nan
    table = fit_climatology(values, weekend=weekend, slot=slot, slots=SLOTS)
    levels = (np.arange(41) + 0.5) / 41
    for meter in range(2):
        groups = pd.DataFrame(values[meter]).groupby([weekend, slot])
        for (kind, at), mean in groups.mean().iterrows():
            cell = groups.get_group((kind, at))
            np.testing.assert_allclose(table.point(*_cells(meter, int(kind), at)).flatten(), mean, rtol=1e-5)
            np.testing.assert_allclose(table.quantiles[:, meter, int(kind), at], cell.quantile(levels), rtol=1e-5)


def test_samples_have_the_distribution_of_the_cell():
    rng = np.random.default_rng(4)
    weekend, slot = _calendar(7 * 300)
    values = rng.normal(5.0, 2.0, size=(1, len(slot), 1))
    table = fit_climatology(values, weekend=weekend, slot=slot, slots=SLOTS)
    generator = torch.Generator().manual_seed(1)
    drawn = table.sample(*_cells(0, 1, 2), count=20_000, generator=generator).flatten()
    cell = values[0, weekend & (slot == 2), 0]
    inside = (drawn > np.quantile(cell, 0.05)) & (drawn < np.quantile(cell, 0.95))
    assert float(inside.float().mean()) == pytest.approx(0.9, abs=0.01)
    assert float(drawn.mean()) == pytest.approx(cell.mean(), abs=0.05)


def test_an_empty_cell_borrows_from_the_other_day_type_then_from_the_meter():
    weekend, slot = _calendar(14)
    values = np.where(slot == 0, 1.0, 3.0)[None, :, None].astype(float)
    values[0, weekend & (slot == 0)] = np.nan  # no weekend nights
    values[0, slot == 2] = np.nan  # never in the afternoon
    table = fit_climatology(values, weekend=weekend, slot=slot, slots=SLOTS)
    assert table.point(*_cells(0, 1, 0)).item() == 1.0
    assert table.point(*_cells(0, 0, 2)).item() == pytest.approx(np.nanmean(values))
    silent = fit_climatology(np.full_like(values, np.nan), weekend=weekend, slot=slot, slots=SLOTS)
    assert silent.point(*_cells(0, 0, 1)).item() == 0.0 and bool(torch.isfinite(silent.quantiles).all())


def test_it_is_scored_beside_the_other_baselines_and_reads_the_training_part_alone():
    scenario = Scenario().override(
        {"data.days": 150, "partition.clients": 1, "task.context": 48, "evaluation.windows": 20, "model.depth": 0}
    )
    worker = LocalWorker(scenario.override({"privacy.enabled": False}))
    data = load_client(scenario, roster(scenario).names[0])
    device, options = torch.device("cpu"), {"part": "test", "samples": 20}
    sums = evaluate(worker.model, data, scenario, device=device, **options)
    found = metrics_of(sums, scenario.evaluation.metrics)
    assert set(found) == {"federated", "seasonal-naive", "last-value", CLIMATOLOGY}
    assert set(found[CLIMATOLOGY]) == set(found["seasonal-naive"]) >= {"mse", "crps", "coverage90"}
    # by hand, from the calendar of the client
    train = pd.Series(data.values[0, data.train, 0], index=data.index[data.train])
    table = train.groupby([train.index.day_of_week >= 5, train.index.hour]).mean()
    test = pd.Series(data.values[0, data.test, 0], index=data.index[data.test])
    usual = table.reindex(list(zip(test.index.day_of_week >= 5, test.index.hour, strict=True))).to_numpy()
    whole = float(np.nanmean(np.square(test.to_numpy() - usual))) / float(np.nanvar(train))
    assert found[CLIMATOLOGY]["mse"] == pytest.approx(whole, rel=0.35)  # 20 windows instead of every hour
