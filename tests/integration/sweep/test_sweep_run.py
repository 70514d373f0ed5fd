"""Failures are isolated, refusals are results, identical runs are found again; the command says all of it."""

from __future__ import annotations

import json

import pytest

from fedpriv.cli import main
from fedpriv.errors import InputError
from simulations.sweep import run as launch
from simulations.sweep import task
from simulations.sweep.pool import Step
from simulations.sweep.spec import Spec
from simulations.sweep.task import Outcome, Task, execute

BASE = {
    "data": {"days": 90},
    "partition": {"clients": 2},
    "federation": {"rounds": 3},
    "model": {"depth": 0},
    "evaluation": {"windows": 4, "samples": 4},
}


class HerePool:
    """The pool of the tests: runs the very `execute` of the workers in this process."""

    def __init__(self, *_):
        self.ran = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run(self, tasks):
        for one in tasks:
            self.ran.append(one.run)
            yield Step(one.run, 1, 3)
            yield execute(one, lambda done, rounds: None)


@pytest.fixture
def pool(tmp_path, monkeypatch):
    made = HerePool()
    monkeypatch.setattr(launch, "make_pool", lambda *_: made)
    monkeypatch.setattr("simulations.sweep.estimate.default_path", lambda: tmp_path / "paces.json")
    return made


def spec(**parts):
    return Spec.make({"sweep": {"name": "x"}, "base": BASE, **parts})


def test_a_failure_stops_nobody_else_and_is_tried_again(tmp_path, pool, monkeypatch):
    real = task.launch.simulate

    def sometimes(scenario, **options):
        if scenario.privacy.clipper == "psac":
            raise RuntimeError("planted")
        return real(scenario, **options)

    monkeypatch.setattr(task.launch, "simulate", sometimes)
    grid = {"privacy.clipper": ["flat", "psac", "auto-s"]}
    sweep = launch.compare(spec(grid=grid), out=tmp_path / "s", page=False)
    assert [entry["status"] for entry in sweep.runs] == ["done", "failed", "done"]
    assert "planted" in sweep.failures[0]["error"]
    assert set(sweep.results["privacy.clipper"]) == {"flat", "auto-s"}
    failed = sweep.failures[0]["run"]
    assert "planted" in (sweep.path / "runs" / failed / "error.log").read_text()

    monkeypatch.setattr(task.launch, "simulate", real)
    pool.ran.clear()
    sweep = launch.compare(sweep.path, out=sweep.path, resume=True, page=False)
    assert pool.ran == [failed] and not sweep.failures
    assert set(sweep.results["privacy.clipper"]) == {"flat", "psac", "auto-s"}


def test_a_refused_budget_is_a_result(tmp_path, pool):
    # this noise costs more than the budget: the ledgers refuse the first round
    settings = {"privacy.noise_multiplier": 0.5}
    sweep = launch.compare(spec(set=settings, grid={"privacy.epsilon": [0.5, 1e5]}), out=tmp_path / "s", page=False)
    assert [entry["status"] for entry in sweep.runs] == ["refused", "done"]
    assert not sweep.failures and "budget" in sweep.runs[0]["error"]


def test_a_cached_run_is_the_same_and_is_not_run(tmp_path, pool, monkeypatch):
    first = launch.compare(spec(), out=tmp_path / "a", cache=tmp_path / "cache", page=False)
    monkeypatch.setattr(task.launch, "simulate", lambda *_, **__: pytest.fail("it was run again"))
    second = launch.compare(spec(), out=tmp_path / "b", cache=tmp_path / "cache", page=False)
    assert [entry["cached"] for entry in first.runs + second.runs] == [False, True]
    assert (first.path / "results.parquet").read_bytes() == (second.path / "results.parquet").read_bytes()


def test_a_run_killed_before_its_first_file_starts_anew(tmp_path):
    folder = tmp_path / "run"
    (folder / "ledgers").mkdir(parents=True)
    scenario = spec().scenario()
    outcome = execute(Task("run", str(folder), scenario.flat()), lambda done, rounds: None)
    assert outcome.status == "done" and Outcome.read(folder) == outcome


def test_another_sweep_in_the_folder_is_refused(tmp_path, pool):
    launch.compare(spec(), out=tmp_path / "s", page=False)
    with pytest.raises(InputError, match="add --resume"):
        launch.compare(spec(), out=tmp_path / "s", page=False)
    with pytest.raises(InputError, match="another sweep"):
        launch.compare(spec(set={"privacy.bound": 2.0}), out=tmp_path / "s", resume=True, page=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a sweep"):
        launch.compare(spec(), out=tmp_path / "other", page=False)


def test_seeds_are_paired_across_rules(tmp_path, monkeypatch):
    from fedpriv.training import LocalWorker
    from simulations.sweep.grid import plan

    drawn = {}
    from_scratch = {"model.warm_start": ""}  # so that steps can be taken without a round of statistics before them
    for point in plan(spec(grid={"privacy.clipper": ["flat", "psac", "quantile"]}, set=from_scratch)):
        worker = LocalWorker(point.scenario)
        seen = []
        cut = worker._examples
        monkeypatch.setattr(
            worker, "_examples", lambda data, m, s, rng, c=cut, k=seen: k.append(s.tolist()) or c(data, m, s, rng)
        )
        for number in (1, 2):
            worker.train(
                "utility-000",
                worker.initial_parameters(),
                round=number,
                steps=1,
                mode="simulation",
                rule_state=worker.initial_rule_state(),
            )
        drawn[point.axes["privacy.clipper"]] = (seen, worker.initial_parameters().tolist())
    assert drawn["flat"] == drawn["psac"] == drawn["quantile"]
    assert drawn["flat"][0][0] != drawn["flat"][0][1]


def test_the_command_speaks_json_and_says_what_failed(tmp_path, pool, monkeypatch, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(spec(grid={"privacy.clipper": ["flat", "psac"]}).to_toml())
    monkeypatch.setattr(launch, "write_page", lambda path: None)
    assert main(["compare", str(file), "--out", str(tmp_path / "s"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["done"] == 2 and said["failures"] == []
    (entry, _) = json.loads((tmp_path / "s" / "runs.json").read_text())["runs"]
    (tmp_path / "s" / "runs" / entry["run"] / "result.json").unlink()
    monkeypatch.setattr(task.launch, "simulate", lambda *_, **__: 1 / 0)
    assert main(["compare", str(file), "--out", str(tmp_path / "s"), "--resume"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert main(["compare", str(file), "--set", "sweep.sede=3"]) == 2
    assert "nearest known one is 'seeds'" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert main(["compare", "--list", "--json"]) == 0
