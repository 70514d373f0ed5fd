"""How long a sweep takes is known before its first run; what was resolved once is not resolved again."""

from __future__ import annotations

import json

import pytest

from fedpriv.cli.sweep_progress import estimate_words
from simulations.sweep import work
from simulations.sweep.estimate import Estimator, short, wall
from simulations.sweep.grid import distinct, plan
from simulations.sweep.pace import Pace, Stopwatch, kind, read_pace
from simulations.sweep.resolver import Resolver
from simulations.sweep.spec import Spec
from simulations.sweep.task import Outcome, Task, execute
from simulations.sweep.work import Work
from strategies.progress import Progress

BASE = {
    "data": {"days": 120},
    "partition": {"clients": 2},
    "federation": {"rounds": 40},
    "model": {"depth": 0},
    "evaluation": {"windows": 4},
}


def points(**parts):
    return plan(Spec.make({"sweep": {"name": "x", "seeds": 2}, "base": BASE, **parts}))


def outcome(point, pace: Pace, seconds: float) -> Outcome:
    return Outcome(point.run, "done", seconds, pace=pace.__dict__)


def test_a_run_is_its_parts_times_rounds(monkeypatch):
    """By hand: start 2, scores 1, rounds of 9 (warming up), 3 and 5, one of 4 with its scores 2, end 4 + 1."""
    now = iter([0.0, 2.0, 3.0, 12.0, 15.0, 20.0, 26.0, 26.0, 30.0, 31.0])
    monkeypatch.setattr("simulations.sweep.pace.time.monotonic", lambda: next(now))
    monkeypatch.setattr("simulations.sweep.pace.time.process_time", iter([0.0, 15.5]).__next__)
    watch = Stopwatch()
    told = [
        ("waiting", 0), ("evaluation", 0), ("round", 1), ("round", 2), ("round", 3), ("evaluation", 4), ("round", 4),
    ]  # fmt: skip
    for stage, number in told:
        watch(Progress(stage, number, 4, 2))  # pyright: ignore[reportArgumentType]
    watch(Progress("evaluation", 4, 4, 2, rows=[{"split": "test"}]))
    scenario = points()[0].scenario.override({"federation.local_steps": 2, "federation.rounds": 100})
    pace = watch.pace(scenario)
    assert pace == Pace(start=2.0, step=2.0, evaluation=2.0, end=5.0, busy=0.5)
    # 100 rounds of 2 steps; scores after rounds 0, 10, ... 100
    assert pace.seconds(scenario) == 2 + 200 * 2 + 11 * 2 + 5


def test_a_trial_is_told_as_it_really_runs(tmp_path):
    """A real run: its parts add up to what it took, and rounds are not mistaken for scores."""
    point = points(set={"federation.rounds": 12, "evaluation.every": 4})[0]
    done = execute(Task("one", str(tmp_path / "one"), point.scenario.flat()), lambda *_: None)
    pace = read_pace(done.pace)
    assert pace is not None and pace.seconds(point.scenario) == pytest.approx(done.seconds, rel=0.5)
    assert pace.step > 1e-4


def test_kinds_are_told_by_what_costs_time():
    grid = {"privacy.clipper": ["flat", "psac"], "privacy.epsilon": [1, 8], "evaluation.windows": [4, 8]}
    every = points(grid=grid)
    assert len({kind(point.scenario) for point in every}) == 2


def test_an_estimate_needs_one_trial_of_each_large_kind(tmp_path):
    every = points(grid={"privacy.clipper": ["flat", "psac"], "evaluation.windows": [4, 8]})
    estimator = Estimator(tmp_path / "paces.json")
    assert estimator.estimate(every, 2) is None
    trials = estimator.trials(every)
    assert [t.scenario.evaluation.windows for t in trials] == [4, 8]
    assert short(trials[0]).rounds == 4
    paces = {4: Pace(1.0, 0.1, 0.0, 1.0, busy=0.5), 8: Pace(1.0, 0.2, 0.0, 1.0, busy=0.5)}
    asked = []

    def run(tasks):
        asked.extend(tasks)
        for again, cold in ((0, 5.0), (1, 0.0)):
            for task, point in zip(tasks[again * 2 : again * 2 + 2], trials, strict=True):
                assert task.scenario["federation.rounds"] == 4
                pace = paces[point.scenario.evaluation.windows]
                yield Outcome(task.run, "done", 9.0, pace={**pace.__dict__, "start": pace.start + cold})

    estimator.time(trials, tmp_path / "trials", run)
    found = estimator.estimate(every, 2)
    # 4 runs of 1 + 40 x 0.1 + 1, 4 of 1 + 40 x 0.2 + 1, on two workers
    assert found is not None and found.seconds == pytest.approx((4 * 6 + 4 * 10) / 2)
    assert found.idle == pytest.approx(found.seconds / 2) and found.timed == found.kinds == 2
    assert estimate_words(found) == (
        "about 16 s with 2 workers on a quiet machine, 32 s with what else it does now: 8 runs of 4.0 s each on "
        "average (2 kinds of runs, 2 timed just now)"
    )
    estimator.save()
    again = Estimator(tmp_path / "paces.json")
    assert not again.trials(every)
    known = again.estimate(every, 2)
    assert known is not None and known.seconds == known.idle == pytest.approx(16.0) and known.remembered == 2
    (tmp_path / "paces.json").write_text("{")
    assert Estimator(tmp_path / "paces.json").estimate(every, 2) is None


def test_small_sweeps_are_not_timed_first(tmp_path):
    few = points(set={"federation.rounds": 3})
    assert Estimator(tmp_path / "x").trials(few) == []
    assert len(Estimator(tmp_path / "x").trials(few, always=True)) == 1


def test_the_longest_run_bounds_the_wall_time():
    assert wall([1, 1, 10], 2) == 10 and wall([4, 4, 4], 2) == 6 and wall([], 2) == 0


def test_time_left_learns_from_runs_that_take_longer_than_expected(tmp_path, monkeypatch):
    every = points(grid={"privacy.clipper": ["flat", "psac", "auto-s"]})
    estimator = Estimator(tmp_path / "paces.json")
    estimator.learn(every[0], outcome(every[0], Pace(0.0, 0.25, 0.0, 0.0), 10.0))  # 40 steps: 10 s
    told = []
    runs = distinct(every)

    class Pool:
        def run(self, tasks):
            for point in runs[:3]:
                yield outcome(point, Pace(0.0, 0.5, 0.0, 0.0), 20.0)

    monkeypatch.setattr(work.time, "monotonic", lambda: 0.0)
    work_ = Work(every, lambda name: tmp_path / name, told.append, estimator=estimator, jobs=1)
    work_.run(Pool())  # pyright: ignore[reportArgumentType]
    left = [state.left for state in told]
    assert left[0] == pytest.approx(60.0)  # six runs of ten seconds
    # three took twice as long; the estimate still counts as two runs: (60 + 20) / (30 + 20) x 30
    assert left[3] == pytest.approx(48.0)


def test_a_plan_is_worked_out_once(tmp_path, monkeypatch):
    spec = Spec.make({"sweep": {"name": "x"}, "base": BASE, "grid": {"privacy.clipper": ["flat", "psac"]}})
    first = Resolver()
    points = plan(spec, resolver=first)
    first.save(tmp_path / "plan.json")
    monkeypatch.setattr("simulations.sweep.resolver.resolved", lambda *_: pytest.fail("it was worked out again"))
    second = Resolver(tmp_path / "plan.json")
    again = plan(spec, resolver=second)
    assert [p.digest for p in again] == [p.digest for p in points]
    assert [p.scenario.privacy for p in again] == [p.scenario.privacy for p in points]
    assert (second.answered, second.worked_out) == (2, 0)
    monkeypatch.undo()
    content = json.loads((tmp_path / "plan.json").read_text())
    for damage in ({**content, "context": {**content["context"], "source": "other"}}, [], {**content, "resolved": 3}):
        (tmp_path / "plan.json").write_text(json.dumps(damage))
        other = Resolver(tmp_path / "plan.json")
        assert [p.digest for p in plan(spec, resolver=other)] == [p.digest for p in points]
        assert other.worked_out == 2
