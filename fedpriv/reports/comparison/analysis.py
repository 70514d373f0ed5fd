"""What the results of a sweep say: contenders compared in every cell and over all, gains over the seasonal baseline.

A *cell* is one partition (or unit, task ...) at one epsilon: there all contenders were run with the same seeds on the
same clients, so differences are paired. The overall answer averages log errors over cells first and then compares
(partitions and epsilons were chosen, not drawn, so they are no source of chance), with seeds and clients as the sources
of chance. Where partitions deal the same data out to clients anew, no partition adds clients to another
(`fedpriv.reports.chance`). What cells tell about the spread between seeds they tell together
(`fedpriv.reports.pooling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpriv.data.table import Frame
from fedpriv.errors import InputError
from fedpriv.reports.comparison.cell_trials import (
    Where,
    against_baseline,
    baseline_errors,
    clients_words,
    over_all,
    trials_of,
)
from fedpriv.reports.comparison.naming import is_reference
from fedpriv.reports.comparison.sweep import FEDERATED, NAIVE, Sweep
from fedpriv.reports.pooling import pool
from fedpriv.reports.statistics import Fairness, Paired, Trials, fairness, paired
from fedpriv.reports.verdicts import Verdict, verdict, verdicts


@dataclass(frozen=True)
class Cell:
    """One partition at one epsilon.

    Attributes:
        trials: errors of the contenders that have at least one seed in common.
        verdict: adjusted over the pairs of all cells; None with a single contender.
        gains: contender -> its error against the seasonal baseline's; empty where that was not scored.
    """

    where: str
    epsilon: float | None
    trials: Trials
    verdict: Verdict | None
    gains: dict[str, Paired]

    @property
    def best(self) -> str:
        """The contender with the least mean error."""
        order = np.log(np.maximum(self.trials.errors, 1e-300)).mean(axis=(1, 2))
        return self.trials.rules[int(np.argmin(order))]


@dataclass(frozen=True)
class Analysis:
    """Everything that the page and comparison.json say about who is better.

    Attributes:
        contenders: in order of the overall result, best first.
        overall_trials, overall: over all cells; None with one contender or no common cells.
        fairness: (contender, epsilon) -> measures over all clients of all partitions, gains against the baseline.
        notes: what is missing from the comparison, and why.
    """

    sweep: Sweep
    contenders: tuple[str, ...]
    wheres: tuple[str, ...]
    epsilons: tuple[float, ...]
    cells: dict[Where, Cell]
    overall_trials: Trials | None
    overall: Verdict | None
    fairness: dict[tuple[str, float | None], Fairness]
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> str:
        """The contender with the least error over all, or the only one."""
        return self.contenders[0]

    @property
    def baseline(self) -> bool:
        """Whether the seasonal baseline was scored."""
        return any(cell.gains for cell in self.cells.values())


def analyse(sweep: Sweep) -> Analysis:
    """Compares the contenders of a sweep.

    Raises:
        InputError: no finished run has a finite score.
    """
    frame = sweep.errors
    whole = ~frame["run"].isin(list(sweep.coalitions)) & ~frame["arm"].isin(list(sweep.partial_arms))
    model = frame[(frame["model"] == FEDERATED) & whole]
    if not len(model):
        raise InputError(
            f"{sweep.path} has no finished run with a {sweep.metric} of the model, so there is nothing to compare yet. "
            "Nothing was written."
        )
    notes: list[str] = []
    tables: dict[Where, Trials] = {}
    for where, epsilon in _cells(sweep):
        chosen = model[(model["where"] == where) & _at(model, epsilon)]
        name = cell_name(where, epsilon)
        table = trials_of(chosen, "contender", sweep.metric, notes, name)
        if table is not None:
            tables[where, epsilon] = table
    if not tables:
        raise InputError(f"{sweep.path} has no finite {sweep.metric} of the model to compare. Nothing was written.")
    several = {cell_name(*key): t for key, t in tables.items() if len(t.rules) > 1}
    pooled = pool(several)
    found = verdicts(several, thing=sweep.thing, pooled=pooled.of)
    cells = {
        key: Cell(*key, table, found.get(cell_name(*key)), against_baseline(frame, table, *key))
        for key, table in tables.items()
    }
    private = {key: table for key, table in tables.items() if key[1] is not None} or tables
    overall_trials = over_all(private, notes, sweep.dealing)
    overall = None
    if overall_trials is not None and len(overall_trials.rules) > 1:
        weights = _weights(private)
        overall = verdict(
            overall_trials,
            thing=sweep.thing,
            clients=clients_words(overall_trials),
            spreads=lambda a, b: pooled.mean(weights, a, b),
        )
    order = _order(overall_trials, tables)
    notes = [*_twins(tables, sweep.thing), *notes]
    return Analysis(
        sweep=sweep,
        contenders=order,
        wheres=tuple(dict.fromkeys(where for where, _ in cells)),
        epsilons=tuple(sorted({e for _, e in cells if e is not None})),
        cells=cells,
        overall_trials=overall_trials,
        overall=overall,
        fairness=_fairness(frame, tables, order),
        notes=tuple(dict.fromkeys(notes)),
    )


def _twins(tables: Mapping[Where, Trials], thing: str) -> list[str]:
    """Contenders that gave the same numbers in every run are one under two names."""
    by_numbers: dict[bytes, list[str]] = {}
    first = next(iter(tables.values()))
    for rule in first.rules:
        if all(rule in table.rules for table in tables.values()):
            numbers = b"".join(table.of_rule(rule).tobytes() for table in tables.values())
            by_numbers.setdefault(numbers, []).append(rule)
    return [
        f"{' and '.join(names)} gave the very same numbers in every run: with these settings they are one {thing}, and "
        "are counted as one."
        for names in by_numbers.values()
        if len(names) > 1
    ]


def _weights(tables: Mapping[Where, Trials]) -> dict[str, float]:
    """How much each cell counts in the mean over all: every partition the same, and in it every epsilon."""
    wheres = [where for where, _ in tables]
    return {cell_name(*key): 1 / len(set(wheres)) / wheres.count(key[0]) for key in tables}


def option(cell: Cell) -> str:
    """The contender with the least mean error that is something to choose: a trusted curator is a reference."""
    means = np.log(np.maximum(cell.trials.errors, 1e-300)).mean(axis=(1, 2))
    order = [cell.trials.rules[i] for i in np.argsort(means, kind="stable")]
    return next((rule for rule in order if not is_reference(rule)), order[0])


def against_naive(found: Analysis, epsilon: float | None, rule: str) -> Paired | None:
    """One contender against the seasonal baseline over all partitions at one epsilon, with its interval."""
    tables: dict[Where, Trials] = {}
    for key, cell in found.cells.items():
        naive = baseline_errors(found.sweep.errors, cell.trials, cell.where)
        if key[1] == epsilon and rule in cell.trials.rules and naive is not None:
            both = np.stack([cell.trials.of_rule(rule), naive])
            tables[key] = Trials((rule, NAIVE), cell.trials.seeds, cell.trials.clients, both, cell.trials.metric)
    overall = over_all(tables, [], found.sweep.dealing) if tables else None
    return None if overall is None else paired(overall, rule, NAIVE)


def client_changes(found: Analysis, cell: Cell, rule: str) -> dict[str, tuple[float, bool]]:
    """Client -> (its error against its own seasonal baseline as a relative change, geometric mean over seeds, and
    whether its 95 % t interval over seeds leaves out 0)."""
    naive = baseline_errors(found.sweep.errors, cell.trials, cell.where)
    if naive is None or rule not in cell.trials.rules:
        return {}
    d = np.log(cell.trials.of_rule(rule) / naive)  # [S, K]
    count, mean = len(d), d.mean(axis=0)
    half = np.full(len(mean), np.inf)
    if count > 1:
        half = stats.t.isf(0.025, count - 1) * d.std(axis=0, ddof=1) / np.sqrt(count)
    return {
        client: (float(np.expm1(m)), bool(abs(m) > h))
        for client, m, h in zip(cell.trials.clients, mean, half, strict=True)
    }


def place_word(found: Analysis) -> str:
    """What a place of the comparison is called: `partition` where data are divided in several ways, `unit` where only
    the unit of privacy differs, else `setting`."""
    if len({run.settings.get("partition.kind") for run in found.sweep.done}) > 1:
        return "partition"
    return "unit" if found.sweep.where_axes == ("privacy.unit",) else "setting"


def cell_name(where: str, epsilon: float | None) -> str:
    """`iid at epsilon 4`, `without privacy`."""
    at = "without privacy" if epsilon is None else f"epsilon {epsilon:g}"
    return f"{where} at {at}" if where and epsilon is not None else f"{where} {at}".strip()


def _cells(sweep: Sweep) -> list[Where]:
    frame = sweep.errors
    wheres = list(dict.fromkeys(frame["where"]))
    epsilons = sorted({float(e) for e in frame["epsilon"].dropna()})
    return [(where, epsilon) for where in wheres for epsilon in [*epsilons, None]]


def _at(frame: Frame, epsilon: float | None) -> Any:
    return frame["epsilon"].isna() if epsilon is None else frame["epsilon"] == epsilon


def _order(overall: Trials | None, tables: dict[Where, Trials]) -> tuple[str, ...]:
    """Contenders by overall error; those that are not in the overall comparison follow."""
    every = list(dict.fromkeys(rule for table in tables.values() for rule in table.rules))
    if overall is None:
        return tuple(every)
    ranked = [overall.rules[i] for i in np.argsort(overall.means(), kind="stable")]
    return (*ranked, *(rule for rule in every if rule not in ranked))


def _fairness(
    frame: Frame, tables: dict[Where, Trials], order: Sequence[str]
) -> dict[tuple[str, float | None], Fairness]:
    """Over all clients of all partitions as they are, geometric means over seeds."""
    found: dict[tuple[str, float | None], Fairness] = {}
    for epsilon in dict.fromkeys(epsilon for _, epsilon in tables):
        for rule in order:
            clients: list[str] = []
            errors: list[NDArray[np.float64]] = []
            naive: list[NDArray[np.float64] | None] = []
            for (where, at), table in tables.items():
                if at == epsilon and rule in table.rules:
                    clients += [f"{where} / {client}" if where else client for client in table.clients]
                    errors.append(np.exp(np.log(np.maximum(table.of_rule(rule), 1e-300)).mean(axis=0)))
                    naive.append(baseline_errors(frame, table, where))
            if not clients:
                continue
            known = [base[0] for base in naive if base is not None]
            rows = [np.concatenate(errors), *([np.concatenate(known)] if len(known) == len(errors) else [])]
            rules = (rule, NAIVE)[: len(rows)]
            trials = Trials(rules, ("mean",), tuple(clients), np.array(rows)[:, None])
            found[rule, epsilon] = fairness(trials, rule, baseline=NAIVE if len(rows) == 2 else "")
    return found
