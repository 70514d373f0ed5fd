"""Runs of one call of `compare`: what is through, what is left, how long it may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simulations.sweep.estimate import Estimate, Estimator, wall
from simulations.sweep.grid import Planned, distinct
from simulations.sweep.pool import Pool, Step
from simulations.sweep.task import Outcome, Task

Stage = Literal["checking", "timing", "estimated", "tuning", "running", "done"]
_SAVE_EVERY = 2.0  # seconds between updates of runs.json
_TRUST = 2.0  # an estimate counts as much as this many runs against what runs have taken since


@dataclass(frozen=True)
class State:
    """What a display of progress needs.

    Attributes:
        stage: checking, timing, estimated, tuning, running or done.
        done, total: combinations checked, or runs through, this and earlier sessions together.
        failed: of the runs.
        share: of the work, by expected time.
        left: seconds left of the whole sweep; None while unknown.
        estimate: at the stage `estimated`, if there is one.
    """

    stage: Stage
    done: int
    total: int
    failed: int = 0
    share: float = 0.0
    left: float | None = None
    estimate: Estimate | None = None


Listener = Callable[[State], None]


class LazyPool:
    """A pool that is made when there is something to run."""

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> LazyPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[Step | Outcome]:
        """As `Pool.run`."""
        if not tasks:
            return iter(())
        if self._pool is None:
            self._pool = self._stack.enter_context(self._make())
        return self._pool.run(tasks)


@dataclass
class Work:
    """Runs of one stage.

    Attributes:
        points: lines of the plan.
        place: folder of a run.
        tell: listener.
        keep: called with what has become of the runs, now and then and at the end.
        cache: directory of finished runs of other sweeps.
        stage: for the listener.
        page: also a page for each run.
        estimator: knows how long runs take, and learns.
        jobs: workers.
        later: runs of the stages that follow.
    """

    points: Sequence[Planned]
    place: Callable[[str], Path]
    tell: Listener
    keep: Callable[[Mapping[str, Outcome]], None] = lambda found: None
    cache: str = ""
    stage: Stage = "running"
    page: bool = False
    estimator: Estimator | None = None
    jobs: int = 1
    later: Sequence[Planned] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])

    def __post_init__(self) -> None:
        self.left: list[Planned] = []
        runs = distinct(self.points)
        self._point = {point.run: point for point in runs}
        for point in runs:
            found = Outcome.read(self.place(point.run))
            if found is not None and found.status != "failed":
                self.outcomes[point.run] = found
            else:
                self.left.append(point)
        self.total = len(runs)
        self._partial: dict[str, float] = {}
        self._saved = -float("inf")
        self._took = self._meant = 0.0  # seconds of the runs of this session, as they were and as expected

    @property
    def done(self) -> int:
        """Runs that are through."""
        return len(self.outcomes)

    @property
    def failed(self) -> int:
        """Of these, failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes.values())

    def run(self, pool: LazyPool) -> None:
        """All that is left; `keep` follows."""
        self._weigh()
        self.save()
        self.tell(self._state())
        tasks = [
            Task(
                run=point.run,
                out=str(self.place(point.run).resolve()),
                scenario=point.scenario.flat(),
                page=self.page,
                cache=self.cache,
            )
            for point in self.left
        ]
        for event in pool.run(tasks):
            if isinstance(event, Step):
                self._partial[event.run] = event.round / max(event.rounds, 1)
            else:
                self._take(event)
                if time.monotonic() - self._saved > _SAVE_EVERY:
                    self.save()
            self.tell(self._state())
        self.save()

    def _weigh(self) -> None:
        """What every run is expected to take; steps and clients where nothing is known."""
        points = [*self._point.values(), *distinct(self.later)]
        expected = self.estimator.expected(points) if self.estimator is not None else None
        self._timed = expected is not None
        weights = expected if expected is not None else {point.run: point.cost for point in points}
        self._weight = {run: weights[run] for run in self._point}
        self._later = [weights[point.run] for point in distinct(self.later)]
        self._all = sum(self._weight.values())

    def _take(self, outcome: Outcome) -> None:
        self.outcomes[outcome.run] = outcome
        self._partial.pop(outcome.run, None)
        if outcome.cached or outcome.status != "done":
            return
        self._took += outcome.seconds
        self._meant += self._weight[outcome.run]
        if self.estimator is not None:
            self.estimator.learn(self._point[outcome.run], outcome)

    def save(self) -> None:
        """What has become of the runs so far."""
        self.keep(self.outcomes)
        self._saved = time.monotonic()

    def _state(self) -> State:
        through = {name: self._weight[name] for name in self.outcomes}
        half = {name: self._weight[name] * share for name, share in self._partial.items()}
        share = (sum(through.values()) + sum(half.values())) / max(self._all, 1e-9)
        return State(self.stage, self.done, self.total, self.failed, share, self._seconds_left(half))

    def _seconds_left(self, half: Mapping[str, float]) -> float | None:
        """Expected seconds times how much longer (or shorter) runs have taken so far than they were expected to."""
        rate = self._took / self._meant if self._meant else None
        if self._timed:
            trust = _TRUST * self._all / max(len(self._weight), 1)
            rate = (self._took + trust) / (self._meant + trust) if trust else 1.0
        if rate is None:
            return None
        mine = [self._weight[name] - half.get(name, 0.0) for name in self._point if name not in self.outcomes]
        return rate * (wall(mine, self.jobs) + wall(self._later, self.jobs))
