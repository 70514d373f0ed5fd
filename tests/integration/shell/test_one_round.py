"""One-round models end to end: released once, fitted, the start of the diffusion model or all of the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from clients import client_app, releases
from clients.client_app import app
from fedpriv import forecasting
from fedpriv.errors import BudgetExceeded, InputError
from fedpriv.privacy.ledger import Ledger
from fedpriv.releases import planned
from fedpriv.trained import Trained
from simulations.launch import simulate
from strategies.state import ServerState

WEEK = {"task__context": 72, "data__days": 90}


def scores(run, model, metric="mse"):
    rows = run.metrics
    return rows[(rows["split"] == "test") & (rows["model"] == model) & (rows["metric"] == metric)]["value"]


def test_what_a_scenario_plans(tiny):
    warm = tiny("warm", **WEEK)
    assert warm.model.warm_start == "ridge"
    assert [(p.kind, p.times) for p in planned(warm)] == [("statistics", 1)]
    assert warm.privacy.noise_multiplier > tiny("cold", model__warm_start="", **WEEK).privacy.noise_multiplier
    alone = tiny("alone", model__kind="ridge", **WEEK)
    assert alone.steps_total == alone.rounds == 0
    assert alone.privacy.warm_start_noise < warm.privacy.warm_start_noise
    assert alone.privacy.noise_multiplier is None
    for changes in (
        {"task__context": 48},
        {"privacy__noise_multiplier": 3.0},
        {"task__kind": "imputation", "task__context": 1001, "data__days": 500},  # a covariance that is too large
        {"privacy__noise": "discrete-gaussian", "privacy__sampling_prob": 1.0},
    ):
        assert tiny("plain", **(WEEK | changes)).model.warm_start == ""
    for kind in ("imputation", "mixed"):
        assert tiny(f"fills-{kind}", task__kind=kind).model.warm_start == "gaussian"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__kind": "ridge", "task__kind": "imputation"}, "cannot answer task.kind=imputation"),
        ({"model__kind": "ridge", "model__warm_start": "gaussian"}, "starts nothing"),
        ({"model__warm_start": "ridge", "privacy__noise": "discrete-gaussian"}, "floating-point noise"),
        ({"model__warm_start": "ridge", "model__warm_start_options": "lags=3"}, "has an option 'lags'"),
        ({"model__warm_start": "ridge", "task__context": 48}, "at least three periods"),
        ({"model__kind": "ridge", "privacy__release_count": 10.0}, "has none"),
        ({"privacy__warm_start_noise": -1.0}, "not a positive"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, changes, words):
    with pytest.raises(InputError, match=words):
        tiny("bad", **(WEEK | changes))


@pytest.mark.parametrize("kind", ["ridge", "gaussian"])
def test_a_run_that_is_one_round(tiny, kind):
    run = simulate(tiny(kind, model__kind=kind, **WEEK), engine="inline")
    assert run.status["status"] == "done"
    assert len(scores(run, kind)) == 3
    for metric in ("mse", "crps", "coverage90"):  # it is the model, and both are scored by its law, not by samples
        np.testing.assert_allclose(scores(run, kind, metric), scores(run, "federated", metric), rtol=1e-4)
    assert 7.9 < run.label["max_epsilon"] <= 8.0
    assert [(r["release"], r["model"]) for r in run.label["side_releases"]] == [("statistics", kind)]
    assert run.label["ladder"]["day"] > run.label["ladder"]["reading"]
    with Ledger.open(run.folder.ledger_path("utility-000"), readonly=True) as ledger:
        assert [c.run_id for c in ledger.contracts()] == [f"{run.status['run_id']}#statistics"]
        assert ledger.verify() == []
    assert f"reference.{kind}" in run.model
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert kind in json.dumps(metrics)
    trained = Trained.load(run.path)
    assert trained.model.reference is not None
    assert trained.model.reference.kind == kind


def test_a_model_of_many_tasks_is_scored_task_by_task(tiny):
    scenario = tiny("mixed", task__kind="mixed", evaluation__windows=24, personal__kind="local", personal__steps=1)
    run = simulate(scenario, engine="inline")
    rows = run.metrics
    final = rows[(rows["metric"] == "mse") & (rows["round"] == 6)]
    kinds = ("forecast", "random", "block", "stride")
    assert set(final["split"]) == {"validation", "test", *(f"test-{kind}" for kind in kinds)}
    for model in ("federated", "personal", "gaussian", "seasonal-naive", "linear-interpolation", "climatology"):
        found = final[final["model"] == model]
        parts = [found[found["split"] == f"test-{kind}"]["value"].mean() for kind in kinds]
        whole = found[found["split"] == "test"]["value"].mean()
        assert len(parts) == 4 and min(parts) < whole < max(parts), model
    page = (run.path / "report.html").read_text()
    assert "By what was hidden" in page and "MSE, blocks at a stride" in page and "CRPS, the horizon" in page
    card = json.loads((run.path / "model.json").read_text())
    assert list(card["metrics_by_hidden"]) == list(kinds)
    assert card["metrics_by_hidden"]["random"]["federated"]["mse"] > 0
    assert "MSE by what was hidden" in (run.path / "model_card.md").read_text()
    # what a run says first is about all windows together
    assert run.metrics[run.metrics["split"] == "test"]["value"].notna().all()
    assert "on the test part" in (run.path / "model_card.md").read_text()


def test_a_warm_start_survives_a_resume_and_asks_once(tiny, run_inline, kept, monkeypatch):
    whole = tiny("whole", **WEEK)
    model, folder = run_inline(whole)
    assert folder.load_checkpoint()[1]["reference"].size == 4 * (13 + 2 + 1) + 1
    asked = []
    original = releases.statistics
    monkeypatch.setattr(releases, "statistics", lambda m, n: asked.append(n.client) or original(m, n))

    cut = tiny("cut", **WEEK)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.stage == "round" and progress.round == 2:
            raise Stop

    with pytest.raises(Stop):
        run_inline(cut, listener=stop)
    again, _ = run_inline(cut, folder=None, resume=True)
    assert sorted(asked) == ["utility-000", "utility-001", "utility-002"]
    np.testing.assert_array_equal(again, model)


def test_the_start_is_the_ridge(tiny):
    scenario = tiny("start", federation__rounds=1, optimizer__learning_rate=1e-9, **WEEK)
    run = simulate(scenario, engine="inline")
    np.testing.assert_allclose(scores(run, "federated"), scores(run, "ridge"), rtol=1e-4)
    label = run.label
    assert [r["release"] for r in label["side_releases"]] == ["statistics"]
    assert 7.9 < label["max_epsilon"] <= 8.0


def test_without_privacy_the_same_path_without_noise(tiny):
    run = simulate(tiny("free", privacy__enabled=False, **WEEK), engine="inline")
    assert run.scenario.model.warm_start == "ridge"
    assert len(scores(run, "ridge")) == 3
    assert run.scenario.privacy.warm_start_noise is None


def test_the_model_forecasts_from_the_folder_alone(tiny):
    import pandas as pd

    run = simulate(tiny("use", model__kind="ridge", **WEEK), engine="inline")
    index = pd.date_range("2024-01-01", periods=96, freq="h")
    table = pd.DataFrame({"a": 100 + 10 * np.sin(np.arange(96) * 2 * np.pi / 24)}, index=index)
    frame = run.forecast(table, samples=20)
    assert len(frame) == 24
    assert frame["mean"].between(80, 120).all()
    assert (frame["q95"] > frame["q05"]).all()


@pytest.mark.parametrize("kind", ["forecast", "mixed"])
def test_sampled_trajectories_go_together(tiny, kind):
    """Errors of real trajectories last: what a warm start knows of it is in the samples."""
    import pandas as pd

    run = simulate(tiny("joint", task__kind=kind, **WEEK), engine="inline")
    assert run.trained.model.reference.kind == ("ridge" if kind == "forecast" else "gaussian")
    index = pd.date_range("2024-01-01", periods=96, freq="h")
    table = pd.DataFrame({"a": 100 + 10 * np.sin(np.arange(96) * 2 * np.pi / 24)}, index=index)
    drawn = forecasting.forecast(run.trained, table, samples=4000).samples[:, 0]
    error = drawn - np.median(drawn, axis=0)
    near = [stats.kendalltau(error[:, i], error[:, i + 1]).statistic for i in range(23)]
    reference = run.trained.model.reference
    if kind == "forecast":
        assert reference.model.correlation > 0.1
        correlation = np.full(23, reference.model.correlation)
    else:
        given = torch.arange(96) < 72
        _, exact = reference.model.conditional(torch.zeros(1, 96).double(), given)
        size = exact.diagonal().sqrt()
        correlation = (exact.diagonal(1) / (size[1:] * size[:-1])).numpy()
    np.testing.assert_allclose(near, 2 / np.pi * np.arcsin(correlation), atol=0.055)  # whatever the tails


def test_nobody_can_pay(tiny, run_inline):
    with pytest.raises(BudgetExceeded, match="costs epsilon"):
        run_inline(tiny("dear", privacy__epsilon=1.0, privacy__warm_start_noise=0.2, model__kind="ridge", **WEEK))


def test_state_with_a_reference_comes_back(tiny):
    reference = np.arange(3, dtype=np.float32)
    state = ServerState(round=2, model=np.zeros(4, np.float32), optimizer={}, reference=reference)
    back = ServerState.restore(2, state.arrays(), state.meta())
    assert back.reference is not None
    np.testing.assert_array_equal(back.reference, reference)
    assert app is client_app.app
