"""TensorBoard and MLflow as listeners of a run. The run folder stays the source of truth: a tracker only gets copies.

What is sent: settings and digest, replies of each round, the largest nominal epsilon, and the scores that a page may
show (a fixed list, so nothing else can slip out). A tracker that fails is told once and left out; it never ends a run.

    tensorboard   event files in the run folder, tensorboard/; look with `tensorboard --logdir runs`
    mlflow        the server of MLFLOW_TRACKING_URI, else mlflow.db beside the run folder; experiment `fedpriv`, or
                  that of MLFLOW_EXPERIMENT_NAME
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.tables import SHOWN
from strategies.progress import Listener, Progress

_MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
_BATCH = 100  # parameters that MLflow takes at a time
_LONGEST = 500  # characters of a parameter


class Tracker(Protocol):
    """Where copies of a run's numbers go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Finite numbers by name, such as `test/federated/mse`, of a round."""
        ...

    def close(self, status: str) -> None:
        """The end of the run: done, refused, failed or interrupted."""
        ...


def require(kind: str) -> None:
    """Refuses a tracker that is not installed.

    Raises:
        InputError: it is not.
    """
    if kind != "none" and importlib.util.find_spec(_MODULES[kind]) is None:
        raise InputError(
            f"run.tracking={kind} needs {kind}, which is not installed here (pip install 'fedpriv[tracking]'); leave "
            "it at none, or install it. Nothing was started."
        )


@contextmanager
def tracked(scenario: Scenario, folder: RunFolder, listener: Listener | None) -> Iterator[Listener | None]:
    """The listener, with the tracker of `run.tracking` behind it."""
    if scenario.run.tracking == "none":
        yield listener
        return
    tracker = _Safe(lambda: TRACKERS[scenario.run.tracking](scenario, folder))

    def both(progress: Progress) -> None:
        if listener is not None:
            listener(progress)
        if progress.report is not None:
            tracker.scalars(_of_round(progress), progress.round)
        if progress.rows:
            tracker.scalars(of_rows(progress.rows), progress.round)

    status = "interrupted"
    try:
        yield both
        status = "done"
    finally:
        found = RunFolder.open(folder.path)
        if found.metrics():  # on the engine `flower` scores come by the folder alone
            tracker.scalars(of_rows(found.metrics()), found.last_round)
        tracker.close(str(found.status.get("status", status)))


def _of_round(progress: Progress) -> dict[str, float]:
    report = progress.report
    assert report is not None
    asked = {"asked": len(report.asked), "valid": len(report.valid), "refused": len(report.refused)}
    values = {f"federation/{name}": float(count) for name, count in asked.items()}
    return values if progress.epsilon is None else {**values, "privacy/epsilon": progress.epsilon}


def of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores by name: `SPLIT/MODEL/METRIC` for the mean over clients, `clients/CLIENT/...` for each; finite ones."""
    single: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    for row in rows:
        value = row["value"]
        if row["metric"] not in SHOWN or value is None or not math.isfinite(float(value)):
            continue
        name = f"{row['split']}/{row['model']}/{row['metric']}"
        single[f"clients/{row['client']}/{name}"] = float(value)
        means.setdefault(name, []).append(float(value))
    return {**{name: fmean(values) for name, values in means.items()}, **single}


class _Safe:
    """A tracker that never raises: the first failure is told as a warning, and nothing is sent after it."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", make()))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._tracker and self._tracker.scalars(values, step))

    def close(self, status: str) -> None:
        self._try(lambda: self._tracker and self._tracker.close(status))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._tracker = None
            warnings.warn(f"tracking has stopped ({type(error).__name__}: {error}); the run goes on.", stacklevel=3)


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, scenario: Scenario, folder: RunFolder) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        resumed = folder.last_round
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=resumed + 1 if resumed else None)
        self._writer.add_text("scenario", f"digest {scenario.digest()}\n\n```\n{scenario.to_toml()}\n```", 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One scalar for each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        """Writes what is left."""
        self._writer.add_text("status", status, 0)
        self._writer.close()


class MLflow:
    """A run of an MLflow experiment; a resumed run goes on in the same one."""

    def __init__(self, scenario: Scenario, folder: RunFolder) -> None:
        entities = importlib.import_module("mlflow.entities")
        beside = f"sqlite:///{folder.path.parent / 'mlflow.db'}"
        self._client = importlib.import_module("mlflow.tracking").MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or beside
        )
        known = folder.status.get("mlflow_run")
        if isinstance(known, str):
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedpriv"
        self._run = self._client.create_run(
            self._experiment(experiment, folder.path.parent), run_name=scenario.run.name
        ).info.run_id
        folder.update_status(mlflow_run=self._run)
        tags = {"fedpriv.digest": scenario.digest(), "fedpriv.folder": str(folder.path)}
        params = [entities.Param(key, str(value)[:_LONGEST]) for key, value in scenario.flat().items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._run, params=params[start : start + _BATCH])
        self._client.log_batch(self._run, tags=[entities.RunTag(key, value) for key, value in tags.items()])

    def _experiment(self, name: str, directory: Path) -> str:
        known = importlib.import_module("mlflow.exceptions").MlflowException
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            own = not os.environ.get("MLFLOW_TRACKING_URI")
            place = {"artifact_location": (directory / "mlartifacts").as_uri()} if own else {}
            return self._client.create_experiment(name, **place)
        except known:  # another process was first
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One batch of metrics."""
        metric, now = importlib.import_module("mlflow.entities").Metric, int(time.time() * 1000)
        metrics = [metric(re.sub(r"[^\w\-. /:]", "-", name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])

    def close(self, status: str) -> None:
        """Ends the run."""
        words = {"done": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._run, status=words.get(status, "FAILED"))


TRACKERS: dict[str, Callable[[Scenario, RunFolder], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
