"""What a page says about how learning rates were chosen."""

from __future__ import annotations

import json

import pytest

from fedpriv.reports.comparison.analysis import analyse
from fedpriv.reports.comparison.sweep import Sweep
from fedpriv.reports.comparison.tuning_words import tuning_words
from tests.unit.comparison.simulated import clippers


@pytest.fixture
def words(tmp_path):
    def make(tuning: dict | None) -> str:
        made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",), epsilons=(8.0,), seeds=2)
        folder = made.write(tmp_path / f"s{len(list(tmp_path.iterdir()))}")
        if tuning is not None:
            (folder / "tuning.json").write_text(json.dumps(tuning))
        return tuning_words(analyse(Sweep.open(folder)))

    return make


def test_what_the_trials_would_have_cost_is_said_as_it_was_composed(words):
    tuning = {"source": "synthetic", "scenario": "synthetic-4", "trials_per_rule": 4, "rules": []}
    cost = {
        "unit": "reading", "epsilon_of_a_run": 8.0, "epsilon_one_rule": 18.206889, "epsilon_all_rules": 76.024749,
    }  # fmt: skip
    text = words({**tuning, "private_cost": cost})
    # rounded up, as every epsilon
    assert (
        "epsilon 18.3 for the trials of one rule and 76.1 for all of them, for one reading, where a run costs 8" in text
    )
    assert "4 trials each" in text and "generated utilities" in text
    for none in ({}, None, {**cost, "epsilon_of_a_run": None}):
        assert "k times e by plain composition" in words({**tuning, "private_cost": none})


def test_a_sweep_without_tuning_says_so(words):
    assert "Nothing was tuned" in words(None)
