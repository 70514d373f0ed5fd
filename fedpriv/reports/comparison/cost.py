"""What privacy costs: the private model against the same one without noise, paired by seeds and clients.

The twin of a private contender is the contender of the same name in the runs without privacy of the same place; where
only clipping rules differ, which mean nothing without privacy, it is the one contender there is. Differences are in log
errors, as everywhere on the page, with seeds and clients as the sources of chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedpriv.reports.comparison.analysis import Analysis, Cell
from fedpriv.reports.comparison.curves import BreakEven, break_even
from fedpriv.reports.statistics import Paired, Trials, paired

NEAR = 0.10  # error within this share of the twin's is called near it


@dataclass(frozen=True)
class Cost:
    """One contender at one place.

    Attributes:
        points: epsilon -> the private model against its twin (`change` > 0: more error).
        near: from which epsilon on it has at most `NEAR` more error than its twin.
        beats: from which epsilon on it has less error than the seasonal baseline; None where that was not scored.
        other: settings besides the privacy that differ at the twin, as `federation.rounds 40`.
    """

    where: str
    contender: str
    twin: str
    points: Mapping[float, Paired]
    near: BreakEven
    beats: BreakEven | None
    other: tuple[str, ...] = field(default=())


def costs(found: Analysis) -> list[Cost]:
    """Of every contender at every place, where a run without privacy shares seeds and clients with it."""
    out: list[Cost] = []
    if found.sweep.question == "collaboration":  # there every setting has its own name, and a price of its own
        return out
    private = {rule for cell in found.cells.values() if cell.epsilon is not None for rule in cell.trials.rules}
    for where in found.wheres:
        plain = found.cells.get((where, None))
        if plain is None:
            continue
        for contender in (rule for rule in found.contenders if rule in private):
            twin = contender if contender in plain.trials.rules else ""
            if not twin and len(plain.trials.rules) == 1 and plain.trials.rules[0] not in private:
                twin = plain.trials.rules[0]
            points = {
                epsilon: pair
                for epsilon in found.epsilons
                if twin and (pair := _pair(found.cells.get((where, epsilon)), plain, contender, twin)) is not None
            }
            if points:
                out.append(_cost(found, where, contender, twin, points))
    return out


def _pair(cell: Cell | None, plain: Cell, contender: str, twin: str) -> Paired | None:
    if cell is None or contender not in cell.trials.rules or cell.trials.clients != plain.trials.clients:
        return None
    seeds = [seed for seed in cell.trials.seeds if seed in plain.trials.seeds]
    if not seeds:
        return None
    errors = np.stack(
        [
            table.trials.of_rule(name)[[table.trials.seeds.index(seed) for seed in seeds]]
            for table, name in ((cell, contender), (plain, twin))
        ]
    )
    if errors.min() <= 0:
        return None
    trials = Trials(("private", "without"), tuple(seeds), cell.trials.clients, errors, cell.trials.metric)
    return paired(trials, "private", "without")


def _cost(found: Analysis, where: str, contender: str, twin: str, points: dict[float, Paired]) -> Cost:
    limit = math.log1p(NEAR)
    rows = sorted(points.items())
    near = break_even(
        [epsilon for epsilon, _ in rows],
        [limit - pair.mean for _, pair in rows],
        [limit - pair.high for _, pair in rows],
        [limit - pair.low for _, pair in rows],
    )
    return Cost(
        where, contender, twin, dict(rows), near, beats_naive_from(found, where, contender), _other(found, where)
    )


def _other(found: Analysis, where: str) -> tuple[str, ...]:
    """What else the runs without privacy do differently there: settings that all of them share and no private has."""
    plain = [run.settings for run in found.sweep.done if not run.private and found.sweep.where(run) == where]
    private = [run.settings for run in found.sweep.done if run.private and found.sweep.where(run) == where]
    keys = dict.fromkeys(key for settings in plain for key in settings if not key.startswith("privacy."))
    out: list[str] = []
    for key in keys:
        here, there = {str(s.get(key)) for s in plain}, {str(s.get(key)) for s in private}
        if len(here) == 1 and not here & there:
            out.append(f"{key} {here.pop()}")
    return tuple(out)


def beats_naive_from(found: Analysis, where: str, rule: str) -> BreakEven | None:
    """From which epsilon on a contender beats the seasonal baseline at one place."""
    cells = sorted(
        (c for c in found.cells.values() if c.where == where and c.epsilon is not None and rule in c.gains),
        key=lambda c: c.epsilon or 0.0,
    )
    if not cells:
        return None
    shares = [c.gains[rule].change for c in cells]
    return break_even([c.epsilon or 0.0 for c in cells], *([-s[i] for s in shares] for i in (0, 2, 1)))
