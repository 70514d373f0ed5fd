"""What the runs of a sweep promise: the privacy ladder for each epsilon and unit, the largest over runs and clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpriv.reports.comparison.sweep import Sweep, SweepRun
from fedpriv.reports.tables import UNITS


@dataclass(frozen=True)
class Promise:
    """All private runs with one budget for one unit.

    Attributes:
        committed: the largest epsilon that any client of any of the runs committed; None where nothing says so.
        ladder: unit -> the largest epsilon of these runs for it; infinity where nothing finite can be said.
        runs: how many.
    """

    budget: float
    unit: str
    relation: str
    delta: float | None
    committed: float | None
    ladder: Mapping[str, float]
    seeded: bool
    runs: int


def promises(sweep: Sweep) -> tuple[Promise, ...]:
    """By unit and rising budget."""
    groups: dict[tuple[str, float], dict[str, SweepRun]] = {}
    for run in sweep.done:
        if run.budget is not None:
            label = sweep.labels.get(run.run, {})
            unit = str(label.get("unit") or run.settings.get("privacy.unit") or "reading")
            groups.setdefault((unit, run.budget), {})[run.run] = run
    return tuple(_promise(sweep, unit, budget, list(groups[unit, budget].values())) for unit, budget in sorted(groups))


def _promise(sweep: Sweep, unit: str, budget: float, runs: list[SweepRun]) -> Promise:
    labels = [sweep.labels[run.run] for run in runs if run.run in sweep.labels]
    ladder: dict[str, float] = {}
    for label in labels:
        for name, value in (label.get("ladder") or {}).items():
            ladder[name] = max(ladder.get(name, 0.0), _finite(value))
    committed = [run.epsilon for run in runs if run.epsilon is not None]
    first: Mapping[str, Any] = labels[0] if labels else runs[0].settings
    delta = first.get("delta", first.get("privacy.delta"))
    order = [name for name in UNITS if name in ladder] + [name for name in ladder if name not in UNITS]
    return Promise(
        budget=budget,
        unit=unit,
        relation=str(first.get("relation", first.get("privacy.relation", ""))),
        delta=float(delta) if isinstance(delta, int | float) else None,
        committed=max(committed, default=None),
        ladder={name: ladder[name] for name in order},
        seeded=any(bool(label.get("seeded")) for label in labels),
        runs=len(runs),
    )


def _finite(value: object) -> float:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else math.inf  # type: ignore[arg-type]
