"""Trackers get copies of what the folder says, and of nothing else; a missing or failing one does no harm."""

from __future__ import annotations

import importlib.util

import pytest

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from simulations import tracking
from simulations.launch import simulate
from simulations.tracking import of_rows

TINY = {
    "data.days": 90,
    "partition.clients": 2,
    "federation.rounds": 4,
    "model.depth": 0,
    "evaluation.windows": 4,
    "evaluation.samples": 4,
    "evaluation.every": 2,
}


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def final(run):
    rows = [r for r in run.folder.metrics() if r["model"] == "federated" and r["metric"] == "mse"]
    return sum(r["value"] for r in rows) / len(rows)


def test_the_tracker_changes_neither_digest_nor_result(tmp_path):
    assert Scenario().override({"run.tracking": "mlflow"}).digest() == Scenario().digest()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"fedpriv\[tracking\]"):
        simulate(None, {**TINY, "run.tracking": "mlflow"}, out=tmp_path / "run", page=False)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    def broken(scenario, folder):
        raise OSError("no way there")

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", broken)
    monkeypatch.setattr(tracking, "require", lambda kind: None)
    monkeypatch.setattr("simulations.launch.require", lambda kind: None)
    with pytest.warns(UserWarning, match="no way there") as told:
        run = simulate(None, {**TINY, "run.tracking": "tensorboard"}, out=tmp_path / "run", page=False)
    assert run.status["status"] == "done"
    assert sum("tracking" in str(w.message) for w in told) == 1


def test_only_what_a_page_may_show_is_sent():
    row = {"round": 1, "client": "a", "split": "test", "model": "federated", "value": 2.0}
    sent = of_rows(
        [
            {**row, "metric": "mse"},
            {**row, "metric": "mse", "client": "b", "value": 4.0},
            {**row, "metric": "clip_fraction"},
            {**row, "metric": "mae", "value": float("nan")},
        ]
    )
    assert sent == {
        "test/federated/mse": 3.0,
        "clients/a/test/federated/mse": 2.0,
        "clients/b/test/federated/mse": 4.0,
    }


@installed("tensorboard")
def test_tensorboard_has_the_numbers_of_the_folder(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = simulate(None, {**TINY, "run.tracking": "tensorboard"}, out=tmp_path / "run", page=False)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("federation/valid")] == [1, 2, 3, 4]
    assert {e.step for e in events.Scalars("validation/federated/mse")} == {0, 2, 4}
    assert events.Scalars("test/federated/mse")[-1].value == pytest.approx(final(run), rel=1e-6)
    assert events.Scalars("privacy/epsilon")[-1].value <= 8


@installed("mlflow")
def test_mlflow_has_the_numbers_and_the_settings_of_the_folder(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = simulate(None, {**TINY, "run.tracking": "mlflow"}, out=tmp_path / "run", page=False)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_run(run.status["mlflow_run"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/federated/mse"] == pytest.approx(final(run))
    assert found.data.params["federation.rounds"] == "4"
    assert found.data.tags["fedpriv.digest"] == run.scenario.digest()
    history = client.get_metric_history(found.info.run_id, "federation/valid")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
