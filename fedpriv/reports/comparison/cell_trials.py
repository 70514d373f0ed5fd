"""From rows of results to tables of errors [contenders, seeds, clients]: of one cell, and over all cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedpriv.data.table import Frame
from fedpriv.reports.comparison.sweep import NAIVE
from fedpriv.reports.statistics import Paired, Trials, paired

Where = tuple[str, float | None]  # partition (and the like) in words, epsilon; None without privacy


def trials_of(frame: Frame, rule: str, metric: str, notes: list[str], name: str) -> Trials | None:
    """The table of one cell: rules with at least one finite seed, and the seeds that they have in common.

    A seed is a run: it counts for a rule only if every client has a finite error. What is left out goes into `notes`.
    """
    if not len(frame):
        return None
    finite = frame[np.isfinite(frame["value"].astype(float))]
    clients = set(finite["client"])
    # the same run may stand under several epsilons of the grid (no privacy): identical rows, one is enough
    seeds = {
        str(key): {str(seed) for seed, part in rows.groupby("seed", sort=False) if set(part["client"]) == clients}
        for key, rows in finite.groupby(rule, sort=False)
    }
    every = sorted({str(s) for s in frame["seed"]})
    for key in dict.fromkeys(frame[rule].astype(str)):
        lost = [s for s in every if s not in seeds.get(key, set())]
        if lost:
            what = "no finite result at all" if len(lost) == len(every) else f"none at seed {', '.join(lost)}"
            notes.append(f"{key} has {what} ({name}).")
    usable = {key: found for key, found in seeds.items() if found}
    while usable and not set.intersection(*usable.values()):
        least = min(usable, key=lambda key: len(usable[key]))
        notes.append(f"{least} shares no seed with the others and is left out ({name}).")
        del usable[least]
    if not usable:
        return None
    kept = set.intersection(*usable.values())
    chosen = finite[finite[rule].isin(list(usable)) & finite["seed"].isin(list(kept))]
    chosen = chosen.drop_duplicates([rule, "seed", "client"]).rename(columns={rule: "rule"})
    return Trials.of(chosen[["rule", "seed", "client", "value"]].to_dict("records"), metric=metric.upper())


def against_baseline(frame: Frame, table: Trials, where: str, epsilon: float | None) -> dict[str, Paired]:
    """Every contender of a cell against the seasonal baseline on the same held-out windows."""
    naive = baseline_errors(frame, table, where)
    if naive is None:
        return {}
    both = Trials(
        (*table.rules, NAIVE), table.seeds, table.clients, np.concatenate([table.errors, naive[None]]), table.metric
    )
    return {rule: paired(both, rule, NAIVE) for rule in table.rules}


def baseline_errors(frame: Frame, table: Trials, where: str, model: str = NAIVE) -> NDArray[np.float64] | None:
    """[S, K] errors of a baseline on the clients of `table`; None where any is missing. It has no seed of its own."""
    rows = frame[(frame["model"] == model) & (frame["where"] == where) & frame["client"].isin(list(table.clients))]
    values = rows.groupby("client", sort=False)["value"].first()
    if any(client not in values.index for client in table.clients):
        return None
    errors = np.array([float(values[client]) for client in table.clients])
    if not (np.isfinite(errors) & (errors > 0)).all():
        return None
    return np.repeat(errors[None], len(table.seeds), axis=0)


def over_all(tables: dict[Where, Trials], notes: list[str], dealing: Callable[[str], str]) -> Trials | None:
    """Geometric means over the cells: contenders that are in all of them, seeds that all have.

    Clients of several partitions are averaged one by one where they are the same clients, else they stand side by side
    as parts. None if there are no common contenders or seeds, or without an error above 0.

    Args:
        tables: of the cells.
        notes: takes what is left out.
        dealing: where -> how the data were dealt out to clients.
    """
    all_rules = list(dict.fromkeys(rule for table in tables.values() for rule in table.rules))
    rules = [rule for rule in all_rules if all(rule in table.rules for table in tables.values())]
    seeds = [s for s in next(iter(tables.values())).seeds if all(s in table.seeds for table in tables.values())]
    left = [rule for rule in all_rules if rule not in rules]
    if left and rules:
        notes.append(f"Not in every cell, so not in the overall comparison: {', '.join(left)}.")
    if not rules or not seeds or min(table.errors.min() for table in tables.values()) <= 0:
        return None
    by_where: dict[str, list[NDArray[np.float64]]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for (where, _), table in tables.items():
        if names.setdefault(where, table.clients) != table.clients:
            return None
        pick = np.ix_([table.rules.index(r) for r in rules], [table.seeds.index(s) for s in seeds])
        by_where.setdefault(where, []).append(np.log(table.errors[pick]))
    means = {where: np.mean(logs, axis=0) for where, logs in by_where.items()}  # [A, S, K]
    dealings: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for where, clients in names.items():
        dealings.setdefault((dealing(where), clients), []).append(where)
    metric = next(iter(tables.values())).metric
    if len({len(wheres) for wheres in dealings.values()}) > 1:  # each place counts the same
        dealings = {(where, names[where]): [where] for where in names}
    parts = [np.mean([means[where] for where in wheres], axis=0) for wheres in dealings.values()]
    if len(parts) == 1:
        return Trials(tuple(rules), tuple(seeds), next(iter(names.values())), np.exp(parts[0]), metric)
    clients = tuple(f"{' + '.join(wheres)} / {c}" for (_, found), wheres in dealings.items() for c in found)
    counts = tuple(part.shape[2] for part in parts)
    return Trials(tuple(rules), tuple(seeds), clients, np.exp(np.concatenate(parts, axis=2)), metric, counts)


def clients_words(trials: Trials) -> str:
    """`8 clients`; of partitions with other numbers of clients `6 or 8 clients`: none of them adds to another's."""
    counts = sorted(set(trials.parts)) or [len(trials.clients)]
    return f"{' or '.join(map(str, counts))} client{'' if counts == [1] else 's'}"
