from __future__ import annotations

import math

import pytest

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import epsilon_of
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import decode_event
from fedpriv.training import LocalWorker
from simulations.sweep.grid import combinations
from simulations.sweep.resolver import FACTOR
from simulations.sweep.spec import Spec
from simulations.sweep.tuning import Rule, candidates, private_cost, trials

BASE = {
    "data": {"days": 120},
    "partition": {"clients": 2},
    "federation": {"rounds": 4},
    "model": {"depth": 0},
    "evaluation": {"windows": 4},
}
GRID = {"privacy.clipper": ["flat", "psac"], "privacy.epsilon": [1, 4, 8, math.inf]}
TUNING = {"set": {"data.seed": 99, "data.days": 90}, "factors": [0.5, 1, 2]}


def make(**parts):
    return Spec.make({"sweep": {"name": "x"}, "base": BASE, "grid": GRID, "tuning": TUNING, **parts})


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 9, 20])
@pytest.mark.parametrize("factors", [[1.0], [0.5, 2.0], [0.25, 1.0, 4.0]])
@pytest.mark.parametrize("options", [[{}], [{"r": 1}, {"r": 2}]])
def test_every_rule_gets_exactly_the_budget(factors, options, budget):
    found = candidates(factors, options, budget)
    assert len(found) == budget
    assert len({tuple(sorted(one.items())) for one in found}) == budget
    assert all(one[FACTOR] > 0 for one in found)


def test_rules_with_options_get_no_more_trials_than_those_without():
    options = {"psac": [{"privacy.clipper_options.r": r} for r in (0.05, 0.1, 0.3)]}
    found = trials(make(tuning={**TUNING, "options": options}))
    counts = {}
    for trial in found:
        counts[trial.rule] = counts.get(trial.rule, 0) + 1
    assert set(counts.values()) == {9}
    assert len(counts) == 4  # two rules, with privacy and without


def test_trials_are_the_sweeps_job_on_other_data():
    spec = make()
    own = spec.scenario()
    for trial in trials(spec):
        for run in trial.runs:
            assert run.scenario.data.seed == 99 != own.data.seed
            assert run.scenario.federation == own.federation and run.scenario.task == own.task
            assert run.scenario.privacy.enabled == trial.rule.private
            if trial.rule.private:
                assert run.scenario.privacy.epsilon == 4  # the middle one
                assert run.scenario.privacy.clipper == dict(trial.rule.labels)["privacy.clipper"]


@pytest.mark.parametrize(
    "tuning",
    [
        {"factors": [1, 2]},  # the same generated utilities
        {"set": {"data.source": "ett", "data.clients": ["ETTh1"], "partition.clients": 1}, "scenario": "ett-2"},
    ],
)
def test_the_data_of_the_sweep_are_refused(tuning, data_root, monkeypatch):
    monkeypatch.setenv("FEDPRIV_DATA_DIR", str(data_root))
    base = {**BASE, "data": {"source": "ett", "clients": ["ETTh1", "ETTh2"]}} if "scenario" in tuning else BASE
    with pytest.raises(InputError, match="the data of the sweep itself"):
        trials(make(base=base, tuning=tuning))


def test_a_stated_learning_rate_and_tuning_exclude_each_other():
    with pytest.raises(InputError, match="leave one of them out"):
        trials(make(set={"optimizer.learning_rate": 0.1}))


def test_the_private_cost_composes_all_trials():
    spec = make()
    every = trials(spec)
    cost = private_cost(spec, every)
    scenario = next(t.runs[0].scenario for t in every if t.rule.private)
    worker, privacy = LocalWorker(scenario), scenario.privacy
    contract = worker.commitments.contract("run")
    assert isinstance(contract, Contract)
    parts = [(decode_event(c.event), c.steps_total) for c in (contract, *worker.commitments.side_contracts("run"))]
    assert len(parts) == 2, "the steps, and the statistics of the warm start"
    one = epsilon_of([(event, 3 * count) for event, count in parts], privacy.delta, privacy.relation)
    both = epsilon_of([(event, 6 * count) for event, count in parts], privacy.delta, privacy.relation)
    assert cost["epsilon_of_a_run"] == 4
    assert cost["epsilon_one_rule"] == pytest.approx(one, rel=1e-3)
    assert cost["epsilon_all_rules"] == pytest.approx(both, rel=1e-3)
    assert 4 < one < both


def test_a_combination_finds_its_rule():
    spec = make()
    assert spec.tuning is not None
    known = {trial.rule for trial in trials(spec)}
    assert all(Rule.of(point, spec.tuning) in known for point in combinations(spec))
