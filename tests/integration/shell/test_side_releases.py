"""Simulated runs with side releases, a filter, and hardened noise: within the budget, the same twice, on the label."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpriv.errors import InputError
from fedpriv.privacy.ledger import Ledger
from fedpriv.releases import evaluated_rounds, planned
from simulations.launch import simulate


def final(run):
    found = run.folder.load_checkpoint()
    assert found is not None
    return found[1]["model"]


def test_training_gets_what_side_releases_leave(tiny):
    plain = tiny("plain")
    asked = tiny("side", privacy__release_count=20.0, privacy__release_metrics=20.0)
    assert asked.privacy.noise_multiplier > plain.privacy.noise_multiplier
    assert [(p.kind, p.times) for p in planned(asked)] == [("count", 1), ("metrics", 4)]
    assert evaluated_rounds(asked) == [0, 3, 6]
    assert planned(plain) == []
    assert planned(tiny("none", privacy__enabled=False, privacy__release_count=20.0)) == []


def test_a_run_with_side_releases(tiny):
    run = simulate(tiny("run", privacy__release_count=20.0, privacy__release_metrics=20.0), engine="inline")
    label = run.label
    assert [r["release"] for r in label["side_releases"]] == ["count", "metrics"]
    assert 7.99 < label["max_epsilon"] <= 8.0
    assert label["ladder"]["reading"] == pytest.approx(label["max_epsilon"], rel=1e-4)
    assert label["nominal"] == pytest.approx(label["committed"])  # all of it was used
    assert (run.path / "label.html").read_text().startswith("<!doctype html>")
    counts = run.status["counts"]
    assert set(counts) == {"utility-000", "utility-001", "utility-002"}
    noisy = run.metrics[run.metrics["metric"].str.startswith("noisy-")]
    assert set(noisy["metric"]) == {"noisy-window-mse", "noisy-window-mae"}
    assert noisy["value"].between(0, 4).all()
    name = "utility-000"
    with Ledger.open(run.folder.ledger_path(name), readonly=True) as ledger:
        run_id = run.status["run_id"]
        assert [c.run_id for c in ledger.contracts()] == [run_id, f"{run_id}#count", f"{run_id}#metrics"]
        kinds = [(r["kind"], r["run_id"]) for r in ledger.rows()]
        assert kinds.index(("contract", run_id)) < kinds.index(("reserve", f"{run_id}#count"))
        assert ledger.verify() == []
    again = simulate(tiny("again", privacy__release_count=20.0, privacy__release_metrics=20.0), engine="inline")
    assert np.array_equal(final(run), final(again))
    assert again.status["counts"] == counts


def test_counts_are_the_weights(tiny):
    equal = simulate(tiny("equal", run__seed=2, privacy__noise_multiplier=2.0), engine="inline")
    weighted = simulate(
        tiny("weighted", run__seed=2, privacy__noise_multiplier=2.0, privacy__release_count=200.0), engine="inline"
    )
    assert len(set(weighted.status["counts"].values())) > 1
    assert not np.array_equal(final(equal), final(weighted))
    with pytest.raises(InputError, match="both set weights"):
        simulate(
            tiny("both", privacy__release_count=50.0, strategy__options=json.dumps({"weights": "utility-000:1"})),
            engine="inline",
        )


def test_a_run_under_a_filter(tiny):
    scenario = tiny("filter", privacy__accountant="rdp")
    assert scenario.privacy.noise_multiplier > tiny("exact").privacy.noise_multiplier
    run = simulate(scenario, engine="inline")
    assert run.status["status"] == "done"
    assert run.label["max_epsilon"] <= 8.0
    assert "Renyi filter" in run.label["accountant"]["name"]


def test_a_run_under_a_filter_with_a_schedule_and_side_releases(tiny):
    run = simulate(
        tiny(
            "schedule", privacy__accountant="rdp", privacy__controller="dynamic", privacy__clipper="flat",
            privacy__release_count=50.0,
        ),
        engine="inline",
    )  # fmt: skip
    assert run.status["status"] == "done"
    assert run.label["max_epsilon"] <= 8.0


def test_a_hardened_run(tiny):
    scenario = tiny("hard", privacy__noise="discrete-gaussian", privacy__sampling_prob=1.0)
    run = simulate(scenario, engine="inline")
    assert np.array_equal(final(run), final(simulate(tiny("hard2", privacy__noise="discrete-gaussian",
                                                          privacy__sampling_prob=1.0), engine="inline")))  # fmt: skip
    assert 7.99 < run.label["max_epsilon"] <= 8.0
    assert run.label["mechanism"]["utility-000"]["noise"] == "discrete-gaussian"
    assert not any("floating point" in text for text in run.label["assumptions"])
    with pytest.raises(InputError, match="controller"):
        tiny("bad", privacy__noise="discrete-gaussian", privacy__controller="quantile", privacy__clipper="flat")
    with pytest.raises(InputError, match="engine"):
        tiny("bad2", privacy__noise="discrete-gaussian", privacy__engine="ghost")
