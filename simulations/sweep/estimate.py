"""How long a sweep will take, before its first run: from runs of the same kind on this machine, else from a trial.

What was timed is remembered in the user's cache directory (`XDG_CACHE_HOME` or `~/.cache`, `fedpriv/paces.json`) by
kind, which holds the code and the machine. Of a kind that is not there a few rounds are timed, twice, by the workers
that will run the sweep. Kinds beyond the largest few are scaled by steps and clients.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.reports.atomic import read_json, write_json
from simulations.sweep.grid import Planned
from simulations.sweep.pace import Pace, kind, read_pace, steps
from simulations.sweep.task import Outcome, Task

MAX_TRIALS = 6
TRIAL_ROUNDS = 4  # of a trial, scored before the first and after the last
TRIAL_STEPS = 8  # at most, in each of its rounds
_TWICE = 2  # trials of a kind: the first one loads libraries and data
_WORTH = 20  # a trial is made where at least this many times its steps are to come
_REMEMBERED = 500  # kinds


@dataclass(frozen=True)
class Estimate:
    """Of what is left of a sweep.

    Attributes:
        seconds: wall time with `jobs` workers, on a machine as busy as it was when this was timed.
        idle: the same on a machine that does nothing else.
        work: seconds of one worker, on an idle machine.
        jobs: workers.
        runs: that are left, tuning included.
        kinds: of runs among them. timed, remembered: kinds that were timed just now, or known from earlier runs.
    """

    seconds: float
    idle: float
    work: float
    jobs: int
    runs: int
    kinds: int
    timed: int
    remembered: int


class Estimator:
    """Knows the pace of kinds of runs.

    Args:
        path: where paces are remembered; None: the user's cache directory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()
        self._known: dict[str, Pace] = {}
        self._timed: set[str] = set()
        self._learnt: dict[str, list[Pace]] = {}
        self._kinds: dict[str, str] = {}
        try:
            found = read_json(self._path)
        except InputError:
            found = {}
        for name, values in found.items():
            pace = read_pace(values) if isinstance(values, Mapping) else None
            if pace is not None:
                self._known[name] = pace

    def kind(self, point: Planned) -> str:
        """Of a run."""
        return self._kinds.setdefault(point.run, kind(point.scenario))

    def learn(self, point: Planned, outcome: Outcome) -> None:
        """Takes the pace of a run that is through; those of its kind are averaged."""
        pace = read_pace(outcome.pace)
        if pace is not None and outcome.status == "done":
            mine = self._learnt.setdefault(self.kind(point), [])
            mine.append(pace)
            self._known[self.kind(point)] = Pace.mean(mine)
            self._timed.discard(self.kind(point))

    def save(self) -> None:
        """Remembers what runs took. That it cannot be written is no reason to fail."""
        mine = {k: asdict(self._known[k]) for k in (*self._timed, *self._learnt)}
        if not mine:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = {k: v for k, v in read_json(self._path).items() if k not in mine}
            write_json(self._path, dict([*before.items(), *mine.items()][-_REMEMBERED:]))
        except (OSError, InputError):
            return

    # ---- trials -------------------------------------------------------------------------------

    def trials(self, left: Sequence[Planned], *, always: bool = False) -> list[Planned]:
        """One run of each kind that should be timed: not known, and worth it; the largest kinds first.

        Args:
            left: what is to be run.
            always: the largest kind even if it is small.
        """
        total: dict[str, float] = {}
        first: dict[str, Planned] = {}
        for point in left:
            name = self.kind(point)
            first.setdefault(name, point)
            total[name] = total.get(name, 0.0) + steps(point.scenario)
        order = sorted((name for name in total if name not in self._known), key=lambda name: -total[name])
        worth = [name for name in order if total[name] >= _WORTH * max(steps(short(first[name])), 1)]
        if always and not worth and not any(name in self._known for name in total):
            worth = order[:1]
        return [first[name] for name in worth[:MAX_TRIALS]]

    def time(self, trials: Sequence[Planned], folder: Path, run: Callable[[Sequence[Task]], Iterable[object]]) -> None:
        """Runs the trials, each for a few rounds, and learns from those that work; what they leave is removed."""
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier sweep that was killed
        kinds: dict[str, str] = {}
        tasks: list[Task] = []
        for again in range(_TWICE):
            for point in trials:
                name = f"{point.run}-{again}"
                tasks.append(Task(name, str(folder / name), short(point).flat()))
                kinds[name] = self.kind(point)
        found: dict[str, list[Pace]] = {}
        try:
            for event in run(tasks):
                if isinstance(event, Outcome) and (pace := read_pace(event.pace)) is not None:
                    found.setdefault(kinds[event.run], []).append(pace)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._known |= {name: Pace.least(paces) for name, paces in found.items()}
        self._timed |= set(found)

    # ---- answers ------------------------------------------------------------------------------

    def seconds(self, point: Planned) -> float | None:
        """Of a run on one worker; None where nothing like it is known."""
        pace = self._known.get(self.kind(point))
        if pace is None:
            return None
        # how busy the machine was long ago says nothing about now
        return pace.seconds(point.scenario) * (1.0 if self.kind(point) in self._timed else pace.busy)

    def expected(self, points: Sequence[Planned]) -> dict[str, float] | None:
        """Run -> seconds; kinds that are not known by their cost beside the known ones. None if none is known."""
        known = {point.run: seconds for point in points if (seconds := self.seconds(point)) is not None}
        if not known:
            return None
        cost = {point.run: point.cost for point in points}
        each = sum(known.values()) / max(sum(cost[run] for run in known), 1e-9)
        return {run: known.get(run, each * cost[run]) for run in cost}

    def estimate(self, left: Sequence[Planned], jobs: int) -> Estimate | None:
        """Of runs that are left; None where nothing is, or nothing like them is known."""
        expected = self.expected(left)
        if not expected:
            return None
        kinds = {self.kind(point) for point in left}
        busy = [self._known[kind].busy for kind in kinds & self._timed]
        share = sum(busy) / len(busy) if busy else 1.0
        seconds = wall(expected.values(), jobs)
        return Estimate(
            seconds=seconds,
            idle=share * seconds,
            work=share * sum(expected.values()),
            jobs=min(jobs, len(expected)),
            runs=len(expected),
            kinds=len(kinds),
            timed=len(kinds & self._timed),
            remembered=len(kinds & (set(self._known) - self._timed)),
        )


def wall(seconds: Iterable[float], jobs: int) -> float:
    """Wall time of runs on `jobs` workers: evenly shared, but never less than the longest."""
    every = list(seconds)
    return max(sum(every) / jobs, max(every, default=0.0))


def short(point: Planned) -> Scenario:
    """A run with few rounds and steps, else the same."""
    federation = point.scenario.federation
    return point.scenario.override(
        {
            "federation.rounds": min(federation.rounds, TRIAL_ROUNDS),
            "federation.local_steps": min(federation.local_steps, TRIAL_STEPS),
            "evaluation.every": TRIAL_ROUNDS,
        }
    )


def default_path() -> Path:
    """Where paces are remembered."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedpriv" / "paces.json"
