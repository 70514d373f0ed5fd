"""`compare`: from a sweep to its finished folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fedpriv.errors import InputError
from fedpriv.reports.atomic import write_json
from simulations.resources import cores
from simulations.sweep.grid import Planned, distinct, plan
from simulations.sweep.pool import Pool, ProcessPool, Step
from simulations.sweep.spec import Spec
from simulations.sweep.store import SweepFolder, failures
from simulations.sweep.studies import load
from simulations.sweep.task import Outcome, Task
from simulations.sweep.tuning import Trial, Tuned, choose, trials

Engine = Literal["processes", "ray"]
Stage = Literal["checking", "tuning", "running", "done"]
_SAVE_EVERY = 2.0  # seconds between updates of runs.json


@dataclass(frozen=True)
class State:
    """What a display of progress needs.

    Attributes:
        stage: checking, tuning, running or done.
        done, total: combinations checked, or runs through, this and earlier sessions together.
        failed: of the runs.
        share: of the work, by cost.
        left: seconds left; None while unknown.
    """

    stage: Stage
    done: int
    total: int
    failed: int = 0
    share: float = 0.0
    left: float | None = None


Listener = Callable[[State], None]


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk."""

    folder: SweepFolder

    @property
    def path(self) -> Path:
        """The sweep folder."""
        return self.folder.path

    @property
    def spec(self) -> Spec:
        """What was asked for, complete."""
        return self.folder.spec

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Every line of the plan with what became of it (runs.json)."""
        return self.folder.runs()

    @property
    def results(self) -> pd.DataFrame:
        """The long table (results.parquet)."""
        return self.folder.results()

    @property
    def failures(self) -> list[Mapping[str, Any]]:
        """The lines that failed, one for each run."""
        return failures(self.runs)

    @classmethod
    def open(cls, path: Path | str) -> Sweep:
        """A sweep that is on disk.

        Raises:
            InputError: not a sweep folder.
        """
        return cls(SweepFolder.open(path))


def prepare(sweep: str | Path | Spec, overrides: Mapping[str, Any] | None = None, *, quick: bool = False) -> Spec:
    """The sweep by name, file, folder or as it is, with changes (`sweep.`, `grid.`, `tuning.` keys are the sweep's).

    Raises:
        InputError: no such sweep, or something in it is not valid.
    """
    spec = load(sweep)
    if quick:
        spec = spec.quicker()
    return spec.override(overrides) if overrides else spec


def compare(
    sweep: str | Path | Spec,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: Path | str | None = None,
    jobs: int = 0,
    resume: bool = False,
    quick: bool = False,
    engine: Engine = "processes",
    address: str = "",
    cache: Path | str | None = None,
    progress: Listener | None = None,
    page: bool = True,
) -> Sweep:
    """Runs what is left of a sweep, in parallel, and writes its tables (and page).

    Failures are isolated: they stand in `Sweep.failures`, and the rest is run. Killed at any moment, the same call with
    `resume` goes on without losing or repeating a finished run.

    Args:
        sweep: a named study, a TOML file, a sweep folder, or a `Spec`.
        overrides: dotted keys of the scenario for all runs, or `sweep.`, `grid.` and `tuning.` keys of the sweep.
        out: the sweep folder; None: runs/NAME-DIGEST.
        jobs: runs at a time; 0: one per core.
        resume: go on with an interrupted sweep in the folder; failed runs are tried again.
        quick: the version of the section [quick].
        engine: processes of this machine, or Ray.
        address: of a Ray cluster; empty: a local one.
        cache: directory in which finished runs are found again by other sweeps.
        progress: called as the sweep goes on.
        page: also comparison.json, report.html and figures/.

    Raises:
        InputError: bad input or configuration; nothing was started.
        CheckFailed: worker processes cannot be started.
    """
    if jobs < 0:
        raise InputError(f"jobs={jobs} is below 0; nothing was started.")
    spec = prepare(sweep, overrides, quick=quick)
    tell = progress or (lambda state: None)
    points = plan(spec, told=lambda done, total: tell(State("checking", done, total)))
    every = trials(spec)
    folder = SweepFolder.create(Path(out) if out else default_folder(spec), spec, resume=resume)
    with folder.lock(), _Lazy(lambda: make_pool(engine, jobs or cores(), folder.path, points, address)) as pool:
        store = str(Path(cache).resolve()) if cache else ""
        if every:
            tuned = tune(folder, every, pool, tell, store)
            points = plan(spec, tuned=tuned)
        work = _Work(points, folder.run, tell, lambda found: folder.write_runs(points, found), store)
        work.page = spec.sweep.page
        work.run(pool)
        folder.write_results(points, work.outcomes)
        if page and any(outcome.status == "done" for outcome in work.outcomes.values()):
            write_page(folder.path)
        tell(State("done", work.done, work.total, work.failed, 1.0, 0.0))
    return Sweep(folder)


def default_folder(spec: Spec) -> Path:
    """runs/NAME-DIGEST."""
    import hashlib

    digest = hashlib.sha256(spec.complete().to_toml().encode()).hexdigest()
    return Path("runs") / f"{spec.sweep.name}-{digest[:8]}"


def make_pool(engine: Engine, jobs: int, path: Path, points: Sequence[Planned], address: str) -> Pool:
    """The pool that runs the tasks."""
    if engine == "ray":
        from simulations.sweep.ray_pool import RayPool

        share = max(point.scenario.run.num_gpus for point in points)
        return RayPool(jobs, num_gpus=share, address=address)
    return ProcessPool(jobs, path / "workers.log")


def write_page(path: Path) -> Path:
    """comparison.json, report.html and figures/ of a sweep folder.

    Raises:
        InputError: no run of it is done.
    """
    from fedpriv.reports.comparison import write_comparison

    write_comparison(path)
    return path / "report.html"


def tune(folder: SweepFolder, every: Sequence[Trial], pool: _Lazy, tell: Listener, cache: str) -> Tuned:
    """Runs the trials, writes tuning.json, and says what to take.

    Raises:
        InputError: no trial of a rule came to an end.
    """
    place = folder.path / "tuning" / "runs"
    work = _Work([run for trial in every for run in trial.runs], lambda name: place / name, tell, cache=cache)
    work.stage = "tuning"
    work.run(pool)
    tuned = choose(folder.spec, every, place)
    write_json(folder.path / "tuning.json", tuned.record)
    return tuned


class _Lazy:
    """A pool that is made when there is something to run."""

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> _Lazy:
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
class _Work:
    """Runs of one call: what is through, what is left, how long it may take."""

    points: Sequence[Planned]
    place: Callable[[str], Path]
    tell: Listener
    keep: Callable[[Mapping[str, Outcome]], None] = lambda found: None
    cache: str = ""
    stage: Stage = "running"
    page: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])

    def __post_init__(self) -> None:
        runs = distinct(self.points)
        self._left: list[Planned] = []
        self._cost = {point.run: point.cost for point in runs}
        self._all = sum(self._cost.values())
        for point in runs:
            found = Outcome.read(self.place(point.run))
            if found is not None and found.status != "failed":
                self.outcomes[point.run] = found
            else:
                self._left.append(point)
        self.total = len(runs)
        self._before = sum(self._cost[name] for name in self.outcomes)
        self._partial: dict[str, float] = {}
        self._began = time.monotonic()
        self._saved = -float("inf")

    @property
    def done(self) -> int:
        """Runs that are through."""
        return len(self.outcomes)

    @property
    def failed(self) -> int:
        """Of these, failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes.values())

    def run(self, pool: _Lazy) -> None:
        """All that is left; `keep` follows."""
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
            for point in self._left
        ]
        for event in pool.run(tasks):
            if isinstance(event, Step):
                self._partial[event.run] = self._cost[event.run] * event.round / max(event.rounds, 1)
            else:
                self.outcomes[event.run] = event
                self._partial.pop(event.run, None)
                if time.monotonic() - self._saved > _SAVE_EVERY:
                    self.save()
            self.tell(self._state())
        self.save()

    def save(self) -> None:
        """What has become of the runs so far."""
        self.keep(self.outcomes)
        self._saved = time.monotonic()

    def _state(self) -> State:
        through = sum(self._cost[name] for name in self.outcomes) + sum(self._partial.values())
        mine, elapsed = through - self._before, time.monotonic() - self._began
        left = elapsed * (self._all - through) / mine if mine > 0 else None
        return State(self.stage, self.done, self.total, self.failed, through / max(self._all, 1e-9), left)
