"""Diagnostics of a simulated run: in its folder and on its page with their mark, and never on the wire."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from fedpriv.reports.diagnostics import read_diagnostics
from simulations.launch import simulate


def test_a_run_with_diagnostics(tiny):
    plain = simulate(tiny("plain"))
    run = simulate(tiny("run", evaluation__diagnostics=2))
    assert all(np.array_equal(plain.model[name], run.model[name]) for name in plain.model)  # nothing else changes
    found = read_diagnostics(run.path)
    assert [one.round for one in found] == [0, 2, 4, 6]
    assert all(set(one.clients) == {"utility-000", "utility-001", "utility-002"} for one in found)
    written = json.loads((run.path / "diagnostics.json").read_text())
    assert written["mark"].startswith("simulation only: raw gradient norms of published data")
    assert 0 <= written["all"]["p-clip"] <= 1 and [r["round"] for r in written["rounds"]] == [0, 2, 4, 6]
    assert run.label["diagnostics"] == written["mark"] and "diagnostics" not in plain.label
    page = (run.path / "report.html").read_text()
    assert 'id="diagnostics"' in page and written["mark"] in page
    assert 'id="diagnostics"' not in (plain.path / "report.html").read_text()
    assert not (plain.path / "diagnostics").exists()
    for name in ("tails", "steps"):
        assert (run.path / "figures" / f"diagnostics-{name}.png").exists()
    with np.load(run.path / "diagnostics" / "round-0000002.npz") as arrays:
        assert str(arrays["mark"]) == written["mark"]


def test_private_readings_are_marked_not_releasable(tiny, tmp_path):
    stamps = pd.date_range("2024-01-01", periods=60 * 24, freq="h")
    rng = np.random.default_rng(1)
    level = 50 + 20 * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24)
    columns = {name: level + rng.normal(0, 3, len(stamps)) for name in ("a", "b", "c")}
    pd.DataFrame({"time": stamps, **columns}).to_csv(tmp_path / "own.csv", index=False)
    run = simulate(
        tiny("run", data__source="csv", data__path=str(tmp_path / "own.csv"), evaluation__diagnostics=3,
             federation__rounds=3)
    )  # fmt: skip
    mark = json.loads((run.path / "diagnostics.json").read_text())["mark"]
    assert mark.startswith("NOT RELEASABLE (simulation only)")
    assert run.label["diagnostics"] == mark and mark in (run.path / "report.html").read_text()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_resumed_run_has_the_same_diagnostics(tiny, run_inline, enabled):
    options = {"evaluation__diagnostics": 2, "privacy__enabled": enabled}
    _, whole = run_inline(tiny("whole", **options))
    scenario = tiny("cut", **options)

    def dies(progress):
        if progress.stage == "round" and progress.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(scenario, listener=dies)
    _, folder = run_inline(scenario, resume=True)
    for one, other in zip(read_diagnostics(whole.path), read_diagnostics(folder.path), strict=True):
        assert one.round == other.round
        for client in one.clients:
            np.testing.assert_array_equal(one.clients[client].norms, other.clients[client].norms)
