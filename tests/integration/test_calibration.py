"""Bounds from synthetic data: what they measure, and that real readings are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpriv.calibration import BUCKETS, FLOOR, calibrate_bounds
from fedpriv.cli import main
from fedpriv.config import Scenario
from fedpriv.errors import InputError

SMALL = {
    "data.days": 60,
    "partition.clients": 2,
    "task.context": 24,
    "task.horizon": 8,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "diffusion.multiplicity": 2,
    "optimizer.learning_rate": 0.02,
    "optimizer.name": "adam",
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario().override(SMALL)


def test_bounds_are_quantiles_of_what_a_trained_model_reaches(scenario):
    half, most = (calibrate_bounds(scenario, steps=12, quantile=q) for q in (0.5, 1.0))
    assert most.steps == 12 and len(most.projected) == BUCKETS
    for name in ("c_max", "gamma_max", "beta_max", "alpha_max"):
        assert FLOOR <= getattr(half, name) <= getattr(most, name)
    assert most.alpha_max > half.alpha_max > FLOOR and most.c_max > half.c_max  # it has learned something
    assert most.projected == (0.0,) * BUCKETS
    assert np.mean(half.projected) == pytest.approx(0.5, abs=0.02)
    assert calibrate_bounds(scenario, steps=12, quantile=0.5) == half
    assert calibrate_bounds(scenario, steps=60, quantile=1.0).alpha_max > most.alpha_max


def test_the_scenarios_own_bounds_and_budget_do_not_matter(scenario):
    other = scenario.override({"model.modulation": "dp-aware", "model.alpha_max": 0.01, "privacy.epsilon": 0.1})
    assert calibrate_bounds(other, steps=4) == calibrate_bounds(scenario, steps=4)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"data.source": "ett"}, {}, "synthetic series only"),
        ({"data.source": "csv", "data.path": "mine.csv"}, {}, "synthetic series only"),
        ({"model.depth": 0}, {}, "no transformer"),
        ({}, {"quantile": 0.1}, r"quantile=0\.1"),
        ({}, {"steps": 0}, "steps=0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scenario, changes, options, said):
    with pytest.raises(InputError, match=said) as caught:
        calibrate_bounds(scenario.override(changes), **options)
    assert "othing was trained" in str(caught.value)


def test_the_command_prints_keys_that_make_a_scenario(capsys):
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert main(["calibrate-bounds", *sets, "--steps", "4", "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)["keys"]
    made = Scenario().override(keys | {"model.modulation": "dp-aware"})
    assert made.model.c_max == keys["model.c_max"] > 0
    assert main(["calibrate-bounds", "dp-aware-cpu", "--steps", "4"]) == 2
    assert "synthetic" in capsys.readouterr().err
    shown = ["dp-aware-cpu", "--synthetic", "--set", "data.days=60", "--set", "model.width=8", "--steps", "4"]
    assert main(["calibrate-bounds", *shown]) == 0
    text = capsys.readouterr().out
    assert "too-tight" in text and "--set model.modulation=dp-aware --set model.c_max=" in text
