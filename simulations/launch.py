"""`simulate`: from a scenario to a finished run folder, on any of the three engines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from numpy.typing import NDArray

from clients.node import SIMULATION_VARIABLE, forget
from clients.personal_file import find_personal, personal_remark
from fedpriv import forecasting, imputation
from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.table import Table
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.reports.folder import RunFolder
from fedpriv.resolving import resolve
from fedpriv.trained import Trained
from simulations.scenarios import load
from simulations.tracking import require, tracked
from simulations.write_up import write_up
from strategies.federation import federation
from strategies.progress import Listener

Engine = Literal["inline", "ray", "flower"]


@dataclass(frozen=True)
class Run:
    """A run on disk: its folder, and what is in it."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def scenario(self) -> Scenario:
        """What was run, complete."""
        return self.folder.scenario

    @property
    def status(self) -> dict[str, object]:
        """run.json."""
        return self.folder.status

    @property
    def metrics(self) -> pd.DataFrame:
        """Scores over rounds and at the end: round, client, split, model, metric, value."""
        return self.folder.rounds()

    @property
    def label(self) -> dict[str, Any]:
        """The privacy label: what is claimed and for whom; empty when nothing is claimed."""
        return self.folder.label()

    @property
    def model(self) -> dict[str, NDArray[Any]]:
        """The final model's parameters by name."""
        return self.folder.model()

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """A run that is on disk.

        Raises:
            InputError: not a run folder, or a damaged file in it.
        """
        return cls(RunFolder.open(path))

    @cached_property
    def trained(self) -> Trained:
        """The final model, ready for `fedpriv.forecasting` and `fedpriv.imputation`.

        Raises:
            InputError: the run has no model yet.
        """
        return Trained.load(self.path)

    def personal(self, which: str | Path) -> Trained:
        """A client's own model (`personal.kind`), by the client's name or its file; as `trained`.

        Raises:
            InputError: no such model, or one of another run.
        """
        return Trained.load(self.path, weights=find_personal(self.folder, which))

    def forecast(
        self, table: Any, *, keep_samples: bool = False, personal: str | Path = "", **options: Any
    ) -> pd.DataFrame:
        """Forecasts of your own series: a row per series and step with mean and quantiles.

        Remarks, and series that could not be forecast, are given as warnings.

        Args:
            table: a DataFrame with a DatetimeIndex and a column for each series, or a fedpriv `Table`.
            keep_samples: also the samples, a column each.
            personal: use this client's own model: see `personal`.
            **options: horizon, samples, seed, at, channels, resample, timezone, unit, sampling: see
                `fedpriv.forecasting.forecast`.

        Raises:
            InputError: the model cannot forecast, or the table does not fit it.
        """
        trained, remarks = self._used(personal)
        found = forecasting.forecast(trained, table, **options)
        _warn([*remarks, *found.notes, *(f"{name} was left out: {reason}" for name, reason in found.skipped.items())])
        frame = found.frame(samples=keep_samples)
        return frame.assign(time=_like(pd.DatetimeIndex(frame["time"]), table))

    def impute(self, table: Any, *, personal: str | Path = "", **options: Any) -> pd.DataFrame:
        """Your own table with its gaps filled; what was read is unchanged. With `samples`, NAME.q05 ... NAME.q95 too.

        Remarks, and gaps that were left open, are given as warnings.

        Args:
            table: a DataFrame with a DatetimeIndex and a column for each series, or a fedpriv `Table`.
            personal: use this client's own model: see `personal`.
            **options: samples, seed, longest_gap, channels, resample, timezone, unit, sampling: see
                `fedpriv.imputation.impute`.

        Raises:
            InputError: the model cannot fill gaps, or the table does not fit it.
        """
        trained, remarks = self._used(personal)
        found = imputation.impute(trained, table, **options)
        left = [f"left open: {g.series}, {g.start}, {g.steps} steps: {g.reason}" for g in found.left]
        _warn([*remarks, *found.notes, *left])
        frame = found.frame(uncertainty=bool(options.get("samples")))
        return frame.set_axis(_like(frame.index, table), axis=0)

    def _used(self, personal: str | Path) -> tuple[Trained, list[str]]:
        """The global model or a client's own one, and what to remark about it."""
        if not personal:
            return self.trained, []
        return self.personal(personal), [remark] if (remark := personal_remark(self.scenario)) else []


def _like(stamps: pd.DatetimeIndex, table: Any) -> pd.DatetimeIndex:
    """Stamps with the zone, resolution and name of a DataFrame's index; of a `Table`, as they are."""
    own = getattr(table, "index", None)
    if isinstance(table, Table) or not isinstance(own, pd.DatetimeIndex):
        return stamps
    return (stamps if own.tz is None else stamps.tz_convert(own.tz)).as_unit(own.unit).rename(own.name)


def _warn(lines: list[str]) -> None:
    for line in lines:
        warnings.warn(line, UserWarning, stacklevel=3)


def simulate(
    scenario: Scenario | str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    engine: Engine | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Listener | None = None,
    page: bool = True,
) -> Run:
    """Runs one federation and writes its folder.

    Args:
        scenario: a name, a TOML file, a `Scenario`; None: the embedded default.
        overrides: dotted keys, such as `{"privacy.epsilon": 4.0}`.
        engine: inline, ray or flower; None: `run.engine`. The same seed gives the same model on all three.
        out: the run folder; None: `run.out`, or runs/NAME-DIGEST.
        resume: go on with an interrupted run in the folder.
        progress: called after every round and evaluation.
        page: also report.html and its pictures, which take seconds; `fedpriv report` makes them later.

    Raises:
        InputError: bad input or configuration; nothing was started.
        BudgetExceeded, LedgerError: every client refuses; what was trained before is in the folder.
        CheckFailed: the run could not be completed; see the message.
    """
    prepared = prepare(load(scenario), overrides, engine=engine, out=out)
    if prepared.data.source == "nodes":
        raise InputError(
            "data.source=nodes is the server's view of a real federation (`fedpriv federation run`); a simulation "
            "needs data of its own. Nothing was started."
        )
    folder = RunFolder.create(Path(prepared.run.out), prepared, resume=resume)
    if folder.finished and folder.status.get("written_up", True):
        return Run(folder)
    with folder.lock(), as_simulation():
        try:
            if not folder.finished:
                folder.update_status(written_up=False)  # a kill between the last round and the label is noticed
                with tracked(prepared, folder, progress) as listener:
                    _run(prepared, folder, listener)
        except (BudgetExceeded, LedgerError):
            if (folder.path / "model.safetensors").exists():  # some rounds went well: they are a result
                write_up(prepared, RunFolder.open(folder.path), page=page)
            raise
        finished = RunFolder.open(folder.path)
        write_up(prepared, finished, page=page)
        finished.update_status(written_up=True)
    return Run(finished)


def prepare(
    scenario: Scenario,
    overrides: Mapping[str, object] | None = None,
    *,
    engine: Engine | None = None,
    out: Path | str | None = None,
) -> Scenario:
    """The scenario as it will be run: absolute paths, noise multiplier filled in, run folder named.

    Raises:
        InputError: a value is out of range, the data cannot be found, or no noise keeps the budget.
    """
    changes: dict[str, object] = dict(overrides or {})
    if engine is not None:
        changes["run.engine"] = engine
    if out is not None:
        changes["run.out"] = str(out)
    scenario = scenario.override(changes)
    require(scenario.run.tracking)
    # Flower and Ray start their processes elsewhere: no path may depend on this directory.
    start = scenario.model.warm_start
    if file := scenario.model.warm_start_file:
        start = start.removesuffix(file) + _absolute(file)
    scenario = scenario.override(
        {
            "data.dir": _absolute(scenario.data.dir),
            "data.path": _absolute(scenario.data.path),
            "model.warm_start": start,
        }
    )
    scenario = resolve(scenario)
    folder = scenario.run.out or f"runs/{scenario.run.name}-{scenario.digest()[:8]}"
    return scenario.override({"run.out": _absolute(folder)})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else path


def _run(scenario: Scenario, folder: RunFolder, progress: Listener | None) -> None:
    clients = len(roster(scenario).names)
    match scenario.run.engine:
        case "inline":
            _inline(scenario, folder, clients, progress)
        case "ray":
            from simulations.ray_grid import RayGrid

            run = scenario.run
            with RayGrid(
                clients, scenario.flat(), workers=run.workers, num_gpus=run.num_gpus, address=run.ray_address
            ) as grid:
                federation(grid, scenario, folder, listener=progress)
        case "flower":
            from simulations.flower_launch import run_flower

            run_flower(scenario, folder, clients=clients, listener=progress)


def _inline(scenario: Scenario, folder: RunFolder, clients: int, progress: Listener | None) -> None:
    from clients.client_app import app, release
    from simulations.inline_grid import InlineGrid

    try:
        federation(InlineGrid(app, clients, scenario.flat()), scenario, folder, listener=progress)
    finally:
        release()


@contextmanager
def as_simulation() -> Iterator[None]:
    """Marks this process and its children as simulated, on one thread, as long as the run takes."""
    import torch

    before, threads = os.environ.get(SIMULATION_VARIABLE), torch.get_num_threads()
    os.environ[SIMULATION_VARIABLE] = "1"
    torch.set_num_threads(1)  # sums are then added in the same order on every engine
    forget()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is None:
            del os.environ[SIMULATION_VARIABLE]
        else:
            os.environ[SIMULATION_VARIABLE] = before
