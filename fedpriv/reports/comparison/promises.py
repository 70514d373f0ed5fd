"""What the runs of a sweep promise: the privacy ladder for each epsilon and unit, the largest over runs and clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.naming import TRUST, WORDS
from fedpriv.reports.comparison.sweep import Sweep
from fedpriv.reports.comparison.sweep_runs import SweepRun
from fedpriv.reports.numbers import at_most, small
from fedpriv.reports.tables import UNITS

_MEANINGFUL = 30.0  # an epsilon above this says nothing that a person could rely on


@dataclass(frozen=True)
class Promise:
    """All private runs with one budget for one unit.

    Attributes:
        committed: the largest epsilon that any client of any of the runs committed; None where nothing says so.
        ladder: unit -> the largest epsilon of these runs for it; infinity where nothing finite can be said.
        runs: how many.
        adversary: against whom, as the label of the runs says.
    """

    budget: float
    unit: str
    relation: str
    delta: float | None
    committed: float | None
    ladder: Mapping[str, float]
    seeded: bool
    runs: int
    adversary: str = ""


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
        adversary=str(first.get("adversary") or ""),
    )


def _finite(value: object) -> float:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else math.inf  # type: ignore[arg-type]


RELATIONS = {
    "zero-out": "what everybody sees could nearly as well have come about if no window that touches one {unit} had "
    "contributed. That it exists, and when, is public",
    "replace-one": "what everybody sees could nearly as well have come from data in which one {unit} had any other "
    "value",
    "add-remove": "what everybody sees could nearly as well have come from data in which one {unit} is not there",
}
SEEDED = (
    "Simulation with seeded noise, not a guarantee: whoever knows the seed can subtract the noise. The epsilons below "
    "are what the same settings promise when the noise comes from the operating system, as in a deployment."
)


def promise_points(found: tuple[Promise, ...], value: Collaboration | None) -> list[tuple[str, str]]:
    """(term, text): what a promise says, against whom, and one line for each setting of a collaboration."""
    if not found:
        return []
    units = list(dict.fromkeys(promise.unit for promise in found))
    points = [
        (f"Compared with ({relation})", RELATIONS[relation].format(unit=" or one ".join(units)) + ".")
        for relation in dict.fromkeys(promise.relation for promise in found)
        if relation in RELATIONS
    ]
    deltas = sorted({promise.delta for promise in found if promise.delta is not None})
    if deltas:
        words = " or ".join(small(delta) for delta in deltas)
        points.append((f"Delta {words}", "what the promise may miss: with at most about this chance it does not hold."))
    for text in dict.fromkeys(promise.adversary for promise in found if promise.adversary):
        points.append(("Against whom", text))
    if value is not None:
        there = dict.fromkeys(setting for setting, _ in value.errors if not isinstance(setting, str))
        points += [(WORDS[setting].capitalize(), TRUST[setting]) for setting in WORDS if setting in there]
    return points


def not_promised(found: tuple[Promise, ...]) -> list[str]:
    """What a reader might take for promised and is not."""
    if not found:
        return []
    units = " or ".join(dict.fromkeys(promise.unit for promise in found))
    runs = sum(promise.runs for promise in found)
    out = [
        f"All runs of this sweep together. Each epsilon is about one run; all {runs} private runs used the same "
        "readings, so against somebody who saw all of them only the sum of their epsilons holds. A deployment "
        "publishes one.",
        "Readings that several clients hold: where the same readings are in two clients' data, their epsilons add up, "
        "also when these clients work together.",
        "Whoever controls a client's own machine, and whoever is given the raw readings (a curator).",
        "Held-out scores, such as all errors on this page: they are computed inside the simulation and protected by "
        "nothing.",
    ]
    meters = [promise.ladder.get("meter") for promise in found if "meter" not in promise.unit]
    known = [value for value in meters if value is not None]
    if known and max(known) > _MEANINGFUL:
        said = f"epsilon is up to {at_most(max(known))}" if math.isfinite(max(known)) else "no epsilon is known"
        out.append(
            f"A whole meter. The promise is about one {units}; for all readings of one meter together {said}, which "
            "protects nothing."
        )
    return out
