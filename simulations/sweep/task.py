"""One run of a sweep, as a worker process does it: resumable at any moment, with a mark when it is through.

The mark is `result.json` in the run's folder, written whole or not at all after everything else: a run that has one is
never run again, a run that has none goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedpriv.config import Scenario
from fedpriv.errors import BudgetExceeded, FedprivError, InputError
from fedpriv.provenance import source_digest
from fedpriv.reports.atomic import read_json, write_json
from fedpriv.reports.locking import FolderLock
from simulations import launch
from simulations.sweep.pace import Stopwatch
from strategies.progress import Progress

Status = Literal["done", "refused", "failed"]
RESULT = "result.json"
_LOCK_WAIT = 20.0  # seconds for a worker of a killed sweep to notice and end


@dataclass(frozen=True)
class Task:
    """What a worker is told.

    Attributes:
        run: name of the folder in runs/.
        out: the run folder.
        scenario: flat.
        page: also report.html and pictures.
        cache: directory of finished runs of other sweeps; empty: none.
    """

    run: str
    out: str
    scenario: Mapping[str, Any]
    page: bool = False
    cache: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the pipe."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: as in the task.
        status: done; refused (the budget did not allow it: a result, not a failure); or failed.
        seconds: wall time in this process, start-up included.
        startup: of these, until the first round began.
        epsilon: largest committed epsilon of a client; None without privacy.
        error: why it was refused or failed.
        cached: taken from the cache.
        source: digest of the code that ran it.
        pace: seconds of its parts (`simulations.sweep.pace`); empty if it was not trained here from its start.
    """

    run: str
    status: Status
    seconds: float
    startup: float = 0.0
    epsilon: float | None = None
    error: str = ""
    cached: bool = False
    source: str = ""
    pace: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """What the mark in a run folder says; None when there is none."""
        found = read_json(folder / RESULT)
        return cls(**found) if found else None  # type: ignore[arg-type]  # written by `execute`


def execute(task: Task, told: Callable[[int, int], None]) -> Outcome:
    """Runs a task to its mark; never raises for what goes wrong inside the run.

    Args:
        task: what to run.
        told: called with (rounds done, of how many).
    """
    began = time.monotonic()
    first: list[float] = []
    watch = Stopwatch()

    def listener(progress: Progress) -> None:
        watch(progress)
        if not first:
            first.append(time.monotonic() - began)
        told(progress.round, progress.rounds)

    folder = Path(task.out)
    found = Outcome.read(folder)
    if found is not None and found.status != "failed":
        return found
    status, error, scenario = "done", "", Scenario.from_flat(task.scenario)
    try:
        cached = _from_cache(task, scenario, folder)
        if cached is not None:
            return cached
        _clear(folder)
        launch.simulate(scenario, out=folder, resume=True, progress=listener, page=task.page)
    except BudgetExceeded as refusal:
        status, error = "refused", str(refusal)
    except FedprivError as failure:
        status, error = "failed", str(failure)
    except Exception as failure:
        status, error = "failed", f"{type(failure).__name__}: {failure}"
        _log(folder, failure)
    pace = watch.pace(scenario) if status == "done" else None
    outcome = Outcome(
        run=task.run,
        status=status,  # type: ignore[arg-type]
        seconds=time.monotonic() - began,
        startup=first[0] if first else time.monotonic() - began,
        epsilon=_epsilon(folder),
        error=error,
        source=source_digest(),
        pace=asdict(pace) if pace else {},
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, asdict(outcome))
    if task.cache and status != "failed":
        from simulations.sweep.cache import store

        store(Path(task.cache), scenario, folder)
    return outcome


def _from_cache(task: Task, scenario: Scenario, folder: Path) -> Outcome | None:
    if not task.cache or folder.exists():
        return None
    from simulations.sweep.cache import fetch

    return Outcome.read(folder) if fetch(Path(task.cache), scenario, folder) else None


def _clear(folder: Path) -> None:
    """Waits for a dying worker to leave the folder, and removes one that was killed before its first file."""
    if not folder.exists():
        return
    end = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            with FolderLock(folder / ".lock"):
                break
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    if not (folder / "scenario.toml").exists():
        shutil.rmtree(folder)  # nothing was trained without one
    else:
        (folder / RESULT).unlink(missing_ok=True)  # of a failure that is tried again


def _epsilon(folder: Path) -> float | None:
    value = read_json(folder / "label.json").get("max_epsilon")
    return float(value) if isinstance(value, int | float) else None


def _log(folder: Path, failure: Exception) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Owner-only: a traceback may quote values of the data.
    with os.fdopen(os.open(folder / "error.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
        file.write("".join(traceback.format_exception(failure)) + "\n")
