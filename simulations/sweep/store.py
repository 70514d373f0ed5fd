"""The sweep folder.

```
sweep.toml       the sweep, complete: nothing outside is needed to run it again
runs/ID/         a run folder each, with result.json as the mark that it is through; ID is the head of its digest
runs.json        every line of the plan: run, digest, arm, seed, client, axes, tuned, status, seconds, epsilon, error
results.parquet  long: run, digest, arm, seed, client, model, split, metric, value and a column for each axis
tuning.json      what tuning tried and chose; tuning/runs/ its runs
plan.json        noise and learning rates as they were worked out, so that --resume need not do it again
comparison.json, report.html, figures/   what follows from them
```

Identical lines of a plan share a run: `results.parquet` has its rows once for each of them. An axis is a column of
floats if all its labels are numbers (epsilon `inf`: without privacy; the word "inf" in JSON), else of strings. Rows
stand in the order of the plan, so a sweep that was killed and resumed gives the same bytes. Besides the scores of every
client there are its committed epsilons: model `ledger`, split `privacy`, metric `epsilon`. A client of which nothing
was held out has one row: model `federated`, split `test`, metric `scored`, value 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedpriv.errors import InputError
from fedpriv.reports.atomic import read_json, replace_file, write_json, write_text
from fedpriv.reports.locking import FolderLock
from simulations.sweep.grid import Label, Planned, by_axis
from simulations.sweep.spec import Spec
from simulations.sweep.task import Outcome

COLUMNS = ("run", "digest", "arm", "seed", "client", "model", "split", "metric", "value")
SWEEP, RUNS, RESULTS, TUNING = "sweep.toml", "runs.json", "results.parquet", "tuning.json"


class SweepFolder:
    """One sweep on disk. Make it with `create` or `open`."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path = path
        self.spec = spec

    @classmethod
    def create(cls, path: Path, spec: Spec, *, resume: bool) -> SweepFolder:
        """Starts a folder, or (with `resume`) goes on with one of the same sweep.

        Raises:
            InputError: the path holds something else, another sweep, or this one and `resume` is off.
        """
        complete = spec.complete()
        if (path / SWEEP).is_file():
            if Spec.from_toml(path / SWEEP).to_toml() != complete.to_toml():
                raise InputError(
                    f"{path} holds another sweep (its sweep.toml differs); choose another folder with --out. Nothing "
                    "was started or changed."
                )
            if not resume:
                raise InputError(
                    f"{path} holds this sweep; add --resume to go on with it, or choose another folder with --out. "
                    "Nothing was started."
                )
            return cls(path, complete)
        if path.exists() and (not path.is_dir() or any(p.name != ".lock" for p in path.iterdir())):
            raise InputError(
                f"{path} is there and is not a sweep of fedpriv; choose an empty or new folder with --out. Nothing was "
                "started or changed."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / SWEEP, complete.to_toml())
            (path / "runs").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"the sweep folder {path} cannot be made ({error}); nothing was started.") from None
        return cls(path, complete)

    @classmethod
    def open(cls, path: Path | str) -> SweepFolder:
        """Opens an existing sweep folder.

        Raises:
            InputError: no such folder, or not a sweep.
        """
        path = Path(path)
        if not (path / SWEEP).is_file():
            raise InputError(f"{path} is not a sweep folder (no {SWEEP} in it); nothing was changed.")
        return cls(path, Spec.from_toml(path / SWEEP))

    def lock(self) -> FolderLock:
        """A context manager that only one process can hold."""
        return FolderLock(self.path / ".lock")

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.path / "runs" / name

    @property
    def trials(self) -> Path:
        """Where tuning runs are."""
        return self.path / "tuning" / "runs"

    def trial(self, name: str) -> Path:
        """The folder of a tuning run."""
        return self.trials / name

    def outcome(self, name: str) -> Outcome | None:
        """What became of a run; None when it is not through."""
        return Outcome.read(self.run(name))

    # ---- tables -------------------------------------------------------------------------------

    def write_runs(self, points: Sequence[Planned], outcomes: Mapping[str, Outcome]) -> None:
        """runs.json: one entry for every line of the plan."""
        write_json(self.path / RUNS, {"format": 1, "runs": [_entry(p, outcomes.get(p.run)) for p in points]})

    def runs(self) -> list[dict[str, Any]]:
        """The entries of runs.json."""
        found = read_json(self.path / RUNS).get("runs", [])
        assert isinstance(found, list)
        return found

    def write_results(self, points: Sequence[Planned], outcomes: Mapping[str, Outcome]) -> None:
        """results.parquet, of all runs that left scores."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        numeric = {key: all(isinstance(label, int | float) for label in labels) for key, labels in by_axis(points)}
        rows = [row for point in points if point.run in outcomes for row in self._rows(point, numeric)]
        fields = [(name, _TYPES.get(name, pa.string())) for name in COLUMNS]
        fields += [(key, pa.float64() if floats else pa.string()) for key, floats in numeric.items()]
        table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        replace_file(self.path / RESULTS, lambda temporary: pq.write_table(table, temporary, compression="zstd"))

    def results(self) -> pd.DataFrame:
        """The table of `write_results`.

        Raises:
            InputError: there is none, or it is damaged.
        """
        try:
            return pd.read_parquet(self.path / RESULTS)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / RESULTS} cannot be read ({error}).") from None

    def _rows(self, point: Planned, numeric: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
        axes = {key: _cell(point.axes.get(key), floats) for key, floats in numeric.items()}
        fixed = {"run": point.run, "digest": point.digest, "arm": point.arm, "seed": point.seed, **axes}
        folder = self.run(point.run)
        final = read_json(folder / "metrics.json").get("final", [])
        assert isinstance(final, list)
        for row in final:
            value = row["value"]
            yield {**fixed, **{k: str(row[k]) for k in COLUMNS[4:8]}, "value": math.nan if value is None else value}
        scored, members = {row["client"] for row in final}, read_json(folder / "run.json").get("clients")
        for client in members if isinstance(members, list) and final else ():
            if client not in scored:  # it took part; without a row of its own nobody would know
                named = {"client": str(client), "model": "federated", "split": "test", "metric": "scored"}
                yield {**fixed, **named, "value": 0.0}
        committed = read_json(folder / "label.json").get("committed", {})
        if isinstance(committed, dict):
            for client, epsilon in committed.items():
                if isinstance(epsilon, int | float):
                    named = {"client": client, "model": "ledger", "split": "privacy", "metric": "epsilon"}
                    yield {**fixed, **named, "value": float(epsilon)}


def _types() -> dict[str, Any]:
    import pyarrow as pa

    return {"seed": pa.int64(), "value": pa.float64()}


_TYPES = _types()


def _cell(label: Label | None, floats: bool) -> Label | None:
    if label is None:
        return None
    return float(label) if floats else word(label)


def word(label: Label) -> str:
    """A label of an axis as text: 8.0 is `8`."""
    return f"{label:g}" if isinstance(label, float) else str(label)


def _entry(point: Planned, outcome: Outcome | None) -> dict[str, Any]:
    infinite = {k: word(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in point.axes.items()}
    return {
        "number": point.number,
        "run": point.run,
        "digest": point.digest,
        "arm": point.arm,
        "seed": point.seed,
        "client": point.client,
        "axes": infinite,
        "tuned": dict(point.tuned),
        "status": outcome.status if outcome else "waiting",
        "seconds": round(outcome.seconds, 3) if outcome else None,
        "startup": round(outcome.startup, 3) if outcome else None,
        "epsilon": outcome.epsilon if outcome else None,
        "error": outcome.error if outcome else "",
        "cached": bool(outcome and outcome.cached),
    }


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (path / SWEEP).is_file()


def failures(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of runs.json that failed, each run once."""
    return list({entry["run"]: entry for entry in entries if entry["status"] == "failed"}.values())
