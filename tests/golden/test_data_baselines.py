"""Readers against numbers that other code computed from the same published files.

Reference: `reference/baselines_forecast_multi.csv` and `baselines_forecast_ett.csv` of the published data
directory (MSE on data scaled by the training part's mean and population deviation, all windows of the test part,
24 steps ahead for the first and 96 for ETT; gaps interpolated).
"""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest

from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.registry import datasets, find_file

# (source, client): seasonal naive with a day, with a week
FORECAST = {
    ("eia930", "BANC"): (0.13034, 0.42500),
    ("eia930", "PJM-AE"): (0.13934, 0.38735),
    ("eia930", "SOCO"): (0.18575, 0.54298),
    ("eia930", "ERCO-COAS"): (0.18628, 0.57548),
    ("pjm", "AEP"): (0.22224, 0.59706),
    ("pjm", "DOM"): (0.25088, 0.76316),
    ("pjm", "EKPC"): (0.29442, 0.93890),
}
ETTH1_96 = (0.51223, 0.65699)


def seasonal_mse(values, train_stop, test_start, test_stop, season, horizon):
    """Seasonal naive over all windows whose targets lie in the test part."""
    z = (values - values[:train_stop].mean(axis=0)) / values[:train_stop].std(axis=0)
    origin = np.arange(test_start, test_stop - horizon + 1)[:, None]
    ahead = np.arange(horizon)
    return ((z[origin + ahead] - z[origin - season + ahead % season]) ** 2).mean(), len(origin)


@pytest.mark.parametrize(("source", "name"), FORECAST)
def test_seasonal_naive_of_demand(data_root, source, name):
    # the reference scores the publisher's imputed hours too
    changes = {"data": {"source": source, "clients": [name], "dir": str(data_root), "drop_flagged": False}}
    client = load_client(Scenario().override(changes), name)
    values = pd.Series(client.values[0, :, 0].astype(float)).interpolate(limit=2).to_numpy()
    arguments = (values, client.train.stop, client.validation.stop, len(values))
    for season, expected in zip((24, 168), FORECAST[source, name], strict=True):
        mse, windows = seasonal_mse(*arguments, season, 24)
        assert windows == (8761 if source == "eia930" else 8785)
        assert mse == pytest.approx(expected, rel=2e-4)


def test_seasonal_naive_of_ett(data_root):
    changes = {"data": {"source": "ett", "clients": ["ETTh1"], "dir": str(data_root)}}
    client = load_client(Scenario().override(changes), "ETTh1")
    assert (client.train.stop, client.validation.stop, client.test.stop) == (8640, 11520, 14400)
    values = client.values[0].astype(float)
    for season, expected in zip((24, 168), ETTH1_96, strict=True):
        mse, windows = seasonal_mse(values, 8640, 11520, 14400, season, 96)
        assert windows == 2785
        assert mse == pytest.approx(expected, rel=2e-4)


def test_flagged_hours_are_missing(data_root):
    """Counts of the published entity list (column flagged_hours) are the gaps of our series."""
    with find_file("eia930", "eia930_entities.csv", data_root).open() as stream:
        rows = {row["entity"]: row for row in csv.DictReader(stream)}
    assert {code: row["region"] for code, row in rows.items()} == dict(datasets()["eia930"].regions)
    for name in ("SOCO", "CHPD", "PJM-AE"):
        changes = {"data": {"source": "eia930", "clients": [name], "dir": str(data_root)}}
        client = load_client(Scenario().override(changes), name)
        assert np.isnan(client.values).sum() == int(rows[name]["flagged_hours"])


def test_registry_knows_every_published_file(data_root):
    """SHA256SUMS of the data directory lists the gzip files that the registry describes."""
    sums = dict(reversed(line.split()) for line in (data_root / "SHA256SUMS").read_text().splitlines())
    for key, data in datasets().items():
        for file in next(iter(data.forms.values())):
            gz, plain = sums.get(f"{key}/{file.name}.gz"), sums.get(f"{key}/{file.name}")
            assert (gz is not None and gz == file.gz_sha256) or plain == file.sha256, file.name


def test_households_by_the_hour(data_root):
    half = Scenario().override({"data": {"source": "sgsc", "clients": ["10006414"], "dir": str(data_root)}})
    client = load_client(half, "10006414")
    assert np.isfinite(client.values).sum() == 36_061  # rows of this customer in the published file
    hourly = load_client(half.override({"data.frequency": "1h"}), "10006414")
    pairs = client.values[0, : 2 * hourly.values.shape[1], 0]
    lead = int((client.start - hourly.start) / client.step)
    pairs = np.concatenate([np.full(lead, np.nan), client.values[0, :, 0]])
    pairs = np.pad(pairs, (0, len(pairs) % 2), constant_values=np.nan).reshape(-1, 2)
    np.testing.assert_allclose(hourly.values[0, :, 0], pairs.mean(axis=1), rtol=1e-6)
