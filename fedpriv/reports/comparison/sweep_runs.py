"""The runs of a sweep: what each line of runs.json was asked to do, and how it ended. (io)"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpriv.data.table import Frame
from fedpriv.errors import InputError

EPSILON = "privacy.epsilon"
COLUMNS = ("run", "digest", "arm", "seed", "client", "model", "split", "metric", "value")
DONE = "done"


@dataclass(frozen=True)
class SweepRun:
    """One line of a sweep's plan. Identical runs (all epsilons of an arm without privacy) share one folder.

    Attributes:
        run: name of its folder under runs/.
        axes: label of every axis. settings: the dotted keys that these and its arm stand for, on top of what all share.
        status: `done`, `failed`, `refused`, ...
        epsilon: the largest committed epsilon of its clients; None where nothing is promised or known.
        client: who trained, where not everybody did: `BPAT`, `without BPAT`, `BPAT + TVA`.
    """

    run: str
    digest: str
    arm: str
    seed: str
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: str
    seconds: float | None
    epsilon: float | None
    error: str
    client: str = ""

    @property
    def private(self) -> bool:
        """Whether it promises anything."""
        return self.settings.get("privacy.enabled", True) is not False

    @property
    def budget(self) -> float | None:
        """The epsilon that it was given; None without privacy."""
        value = self.settings.get(EPSILON)
        return float(value) if self.private and isinstance(value, int | float) else None


def read_runs(path: Path, settings: Mapping[str, Any]) -> tuple[SweepRun, ...]:
    """The lines of runs.json.

    Raises:
        InputError: it cannot be read, or is no list of runs.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); nothing was changed.") from None
    listed = content.get("runs", content) if isinstance(content, dict) else content
    if not isinstance(listed, list) or not all(isinstance(entry, dict) and "run" in entry for entry in listed):
        raise InputError(f"{path} is not a list of runs; nothing was changed.")
    return sweep_runs(listed, settings)


def sweep_runs(listed: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> tuple[SweepRun, ...]:
    """The lines of runs.json with what their arms and labels stand for in sweep.toml."""
    shared = {**dotted(settings.get("base") or {}), **dotted(settings.get("set") or {})}
    arms = {str(arm.get("name", "")): dotted(arm.get("set") or {}) for arm in settings.get("arms") or []}
    grid = dotted(settings.get("grid") or {})
    return tuple(_run(entry, shared, grid, arms) for entry in listed)


def _run(
    entry: Mapping[str, Any], shared: Mapping[str, Any], grid: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]
) -> SweepRun:
    axes = dict(entry.get("axes") or {})
    arm = str(entry.get("arm") or "")
    varied = {k: v for key, label in axes.items() for k, v in _meant(key, label, grid.get(key) or []).items()}
    return SweepRun(
        run=str(entry["run"]),
        digest=str(entry.get("digest") or ""),
        arm=arm,
        seed=str(entry.get("seed", "")),
        axes=axes,
        settings={**shared, **varied, **arms.get(arm, {})},
        status=str(entry.get("status") or "unknown"),
        seconds=_number(entry.get("seconds")),
        epsilon=_number(entry.get("epsilon")),
        error=str(entry.get("error") or ""),
        client=str(entry.get("client") or ""),
    )


def _meant(key: str, label: object, points: object) -> dict[str, Any]:
    """The settings that the label of an axis stands for; an infinite epsilon (a word in JSON) is no privacy at all."""
    for point in points if isinstance(points, list) else []:
        if isinstance(point, Mapping) and point.get("label") == label:
            return dotted(point.get("set") or {})
    if key == EPSILON and (label in (None, "inf") or (isinstance(label, float) and math.isinf(label))):
        return {"privacy.enabled": False}
    return {key: label}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def dotted(table: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or dotted settings as dotted keys of two parts."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and "." not in key:
            out.update({f"{key}.{inner}": leaf for inner, leaf in value.items()})
        else:
            out[key] = value
    return out


def read_results(path: Path, runs: tuple[SweepRun, ...]) -> Frame:
    """results.parquet; an empty table where no run is done.

    Raises:
        InputError: it is missing although runs are done, or damaged.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        if any(run.status == DONE for run in runs):
            raise InputError(f"{path} is missing although runs are done; nothing was changed.")
        return pd.DataFrame({name: pd.Series(dtype="float64" if name == "value" else "str") for name in COLUMNS})
    try:
        frame = pq.read_table(path, columns=list(COLUMNS)).to_pandas()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"{path} cannot be read as a table of results ({error}); nothing was changed.") from None
    for name in COLUMNS[:-1]:
        frame[name] = frame[name].astype(str)
    return frame
