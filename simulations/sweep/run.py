"""`compare`: from a sweep to its finished folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd

from fedpriv.errors import InputError
from fedpriv.reports.atomic import write_json
from simulations.resources import cores
from simulations.sweep.estimate import Estimate, Estimator
from simulations.sweep.grid import Planned, distinct, plan
from simulations.sweep.pool import Pool, ProcessPool
from simulations.sweep.resolver import Resolver
from simulations.sweep.spec import Spec
from simulations.sweep.store import TUNING, SweepFolder, failures
from simulations.sweep.studies import load
from simulations.sweep.task import Outcome
from simulations.sweep.tuning import choose, stored, trials
from simulations.sweep.work import LazyPool, Listener, State, Work

Engine = Literal["processes", "ray"]
_PLAN = "plan.json"  # what resolving gave, for --resume
_TRIALS = ".timing"  # folder of runs that are only timed


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
    jobs = jobs or cores()
    path = Path(out) if out else default_folder(spec)
    resolver = Resolver(path / _PLAN)
    points = plan(spec, told=lambda done, total: tell(State("checking", done, total)), resolver=resolver)
    every = trials(spec, resolver)
    folder = SweepFolder.create(path, spec, resume=resume)
    with folder.lock(), LazyPool(lambda: make_pool(engine, jobs, folder.path, points, address)) as pool:
        store = str(Path(cache).resolve()) if cache else ""
        tuned = stored(spec, every, folder.path / TUNING) if every else None
        if tuned is not None:
            points = plan(spec, tuned=tuned, resolver=resolver)
        resolver.save(folder.path / _PLAN)
        tries = [run for trial in every for run in trial.runs] if tuned is None else []
        estimator = Estimator()
        left = [*_left(estimator, tries, folder.trial), *_left(estimator, points, folder.run)]
        time_left(estimator, left, jobs, folder.path / _TRIALS, pool, tell)
        if every and tuned is None:
            work = Work(tries, folder.trial, tell, cache=store, estimator=estimator, jobs=jobs, later=points)
            work.stage = "tuning"
            work.run(pool)
            tuned = choose(folder.spec, every, folder.trials)
            write_json(folder.path / TUNING, tuned.record)
            points = plan(spec, tuned=tuned, resolver=resolver)
            resolver.save(folder.path / _PLAN)
        work = Work(points, folder.run, tell, lambda found: folder.write_runs(points, found), store)
        work.page, work.estimator, work.jobs = spec.sweep.page, estimator, jobs
        work.run(pool)
        estimator.save()
        folder.write_results(points, work.outcomes)
        if page and any(outcome.status == "done" for outcome in work.outcomes.values()):
            write_page(folder.path)
        tell(State("done", work.done, work.total, work.failed, 1.0, 0.0))
    return Sweep(folder)


def foresee(
    spec: Spec, *, jobs: int = 0, engine: Engine = "processes", address: str = "", progress: Listener | None = None
) -> tuple[list[Planned], Estimate | None]:
    """The plan of a sweep and how long it would take here; times a few rounds of kinds of runs that are not known yet.

    Raises:
        InputError: some combinations are not valid.
        CheckFailed: worker processes cannot be started.
    """
    tell = progress or (lambda state: None)
    jobs, resolver, estimator = jobs or cores(), Resolver(), Estimator()
    points = plan(spec, told=lambda done, total: tell(State("checking", done, total)), resolver=resolver)
    left = distinct([*(run for trial in trials(spec, resolver) for run in trial.runs), *points])
    with TemporaryDirectory(prefix="fedpriv-timing-") as directory:
        place = Path(directory)
        with LazyPool(lambda: make_pool(engine, jobs, place, points, address)) as pool:
            return points, time_left(estimator, left, jobs, place / _TRIALS, pool, tell, always=True)


def time_left(
    estimator: Estimator,
    left: Sequence[Planned],
    jobs: int,
    place: Path,
    pool: LazyPool,
    tell: Listener,
    *,
    always: bool = False,
) -> Estimate | None:
    """How long the runs that are left will take; times those of which nothing is known."""
    trials = estimator.trials(left, always=always)
    if trials:
        tell(State("timing", 0, len(trials)))
        estimator.time(trials, place, pool.run)
        estimator.save()
    estimate = estimator.estimate(left, jobs)
    if estimate is not None:
        tell(State("estimated", 0, estimate.runs, left=estimate.seconds, estimate=estimate))
    return estimate


def _left(estimator: Estimator, points: Sequence[Planned], place: Callable[[str], Path]) -> list[Planned]:
    """Runs that are not through; of those that are, the pace is learnt."""
    left: list[Planned] = []
    for point in distinct(points):
        found = Outcome.read(place(point.run))
        if found is None or found.status == "failed":
            left.append(point)
        elif not found.cached:
            estimator.learn(point, found)
    return left


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
