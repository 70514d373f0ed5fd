"""The heterogeneity card on clients whose differences are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.clients import describe, load_client
from fedpriv.data.heterogeneity import heterogeneity
from fedpriv.data.roster import roster
from fedpriv.errors import InputError
from fedpriv.reports.drawing import STAND_IN
from fedpriv.reports.heterogeneity import MEANINGS, rows, write_card


def client(name: str, values: np.ndarray, start="2024-01-01") -> ClientData:
    """[M, T] hourly readings."""
    steps = values.shape[1]
    return ClientData(
        name, values[:, :, None].astype(np.float32), pd.Timestamp(start), pd.Timedelta(hours=1),
        tuple(f"m{i}" for i in range(len(values))), ("load",), "MW",
        slice(0, steps // 2), slice(steps // 2, 3 * steps // 4), slice(3 * steps // 4, steps),
    )  # fmt: skip


HOUR = np.arange(24 * 40) % 24
WAVE = 10 + 4 * np.sin(2 * np.pi * HOUR / 24)


def test_size_alone_shows_in_raw_numbers_only():
    card = heterogeneity([client("a", WAVE[None]), client("b", 3 * WAVE[None])])
    assert card.summary["scale_ratio_max_min"] == pytest.approx(3, rel=1e-5)
    assert card.summary["profile_l1_max"] == pytest.approx(0, abs=1e-6)
    assert card.summary["w1_scaled_max"] == pytest.approx(0, abs=1e-5)
    assert card.summary["w1_raw_max"] == pytest.approx(20, rel=1e-3)
    assert card.summary["correlation_mean"] == pytest.approx(1, abs=1e-6)
    assert card.summary["quantity_gini"] == 0 and card.summary["missing_max"] == 0


def test_shape_shows_in_profiles_and_correlation():
    card = heterogeneity([client("a", WAVE[None]), client("b", np.roll(WAVE, 12)[None])])
    assert card.summary["correlation_mean"] == pytest.approx(-1, abs=1e-6)
    want = np.abs(0.8 * np.sin(2 * np.pi * np.arange(24) / 24)).mean()
    assert card.summary["profile_l1_max"] == pytest.approx(want, rel=1e-5)
    assert card.summary["w1_scaled_max"] == pytest.approx(0, abs=1e-6)


def test_gaps_and_quantity():
    gappy = WAVE.copy()
    gappy[: len(WAVE) // 8] = np.nan  # a quarter of the training half
    card = heterogeneity([client("a", np.stack([WAVE, WAVE])), client("b", gappy[None])])
    assert [f.missing for f in card.clients] == pytest.approx([0, 0.25])
    assert [f.readings for f in card.clients] == [960, 360]
    assert card.summary["quantity_gini"] == pytest.approx((960 - 360) / (2 * 1320))


def test_other_periods_have_no_correlation():
    card = heterogeneity([client("a", WAVE[None]), client("b", WAVE[None], start="2025-06-01")])
    assert np.isnan(card.summary["correlation_mean"])
    apart = replace(client("b", WAVE[None]), step=pd.Timedelta(hours=2))
    assert np.isnan(heterogeneity([client("a", WAVE[None]), apart]).summary["correlation_mean"])


def test_a_client_without_readings_does_not_break_the_card(tmp_path):
    silent = client("silent", np.full((1, 960), np.nan))
    card, _ = write_card(tmp_path, [client("a", WAVE[None]), silent, client("b", 2 * WAVE[None])])
    assert np.isfinite(card.summary["w1_scaled_max"]) and card.clients[1].missing == 1
    assert json.loads((tmp_path / "heterogeneity.json").read_text())["clients"][1]["level"] is None


def test_bad_requests():
    with pytest.raises(InputError, match="at least one client"):
        heterogeneity([])
    with pytest.raises(InputError, match="channel 'x'"):
        heterogeneity([client("a", WAVE[None])], channel="x")


@pytest.mark.parametrize("kind", ["natural", "clusters", "temporal"])
def test_card_of_a_partition_is_written(tmp_path, kind):
    scenario = Scenario().override({"partition.kind": kind, "partition.clients": 3, "data.days": 400})
    clients = [load_client(scenario, name) for name in roster(scenario).names]
    card, picture = write_card(tmp_path / "run", clients, description=describe(scenario))
    stored = json.loads((tmp_path / "run" / "heterogeneity.json").read_text())
    assert stored["simulation_only"] and "only a simulation" in stored["note"]
    assert stored["partition"]["kind"] == kind and len(stored["clients"]) == 3
    assert (tmp_path / "run" / "figures" / "heterogeneity.png").stat().st_size > 10_000
    assert picture.svg.startswith("<svg") and STAND_IN.ours not in picture.svg
    assert [name for name, _, _ in rows(card)] == list(MEANINGS)
