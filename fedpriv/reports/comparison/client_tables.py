"""Tables of clients: who is left behind, and every client by itself."""

from __future__ import annotations

import math

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import Analysis, against_naive, client_changes, place_word
from fedpriv.reports.comparison.cell_trials import baseline_errors
from fedpriv.reports.comparison.cells import Titled, change
from fedpriv.reports.numbers import number
from fedpriv.reports.tables import METRICS


def fair(found: Analysis) -> Titled | None:
    """Worst client and spread for every contender."""
    if not found.fairness:
        return None
    metric = METRICS.get(found.sweep.metric, found.sweep.metric)
    against = {key: against_naive(found, key[1], key[0]) for key in found.fairness}
    heads = [
        Head(found.sweep.thing.capitalize()),
        Head("epsilon"),
        Head("against naive", "error against the seasonal naive forecast, geometric mean over seeds and clients"),
        Head(f"median {metric}"),
        Head("90 % of clients below"),
        Head("largest error"),
        Head("whose"),
        Head("losers", "share of clients with more error than their own seasonal naive forecast"),
        Head("largest loss or least gain", "of a client against its own seasonal naive forecast"),
        Head("whose"),
        Head("Gini", "of the clients' errors"),
    ]
    rows = [
        [
            Cell(rule),
            Cell("none" if epsilon is None else f"{epsilon:g}", epsilon),
            Cell("–")
            if (own := against[rule, epsilon]) is None
            else change(own.change[0], sure=not own.low <= 0 <= own.high),
            *(Cell(number(v), v) for v in (f.median, f.p90, f.worst)),
            Cell(f.worst_client),
            Cell("–")
            if math.isnan(f.losers)
            else Cell(f"{f.losers * 100:.0f} %", f.losers, "bad" if f.losers else "good"),
            change(-f.gain_worst, sure=False),
            Cell(f.gain_worst_client or "–"),
            Cell(number(f.gini), f.gini),
        ]
        for (rule, epsilon), f in found.fairness.items()
    ]
    over = f" of all {place_word(found)}s" if len(found.wheres) > 1 else ""
    text = (
        f"Over all clients{over}, geometric means over seeds. The client with the largest error and the one that loses "
        "most against its own seasonal naive forecast need not be the same. Grey: the interval holds 0."
    )
    return Titled("Not only the mean", Grid(heads, rows), text)


def by_client(found: Analysis) -> Titled | None:
    """Every client of every partition: its error under every contender against its own seasonal naive."""
    rows: list[list[Cell]] = []
    for (where, epsilon), cell in found.cells.items():
        naive = baseline_errors(found.sweep.errors, cell.trials, where)
        changes = {rule: client_changes(found, cell, rule) for rule in cell.trials.rules}
        for k, client in enumerate(cell.trials.clients):
            row = [*([Cell(where)] if len(found.wheres) > 1 else []), Cell(client)]
            row.append(Cell("none" if epsilon is None else f"{epsilon:g}", epsilon))
            for rule in found.contenders:
                if rule not in cell.trials.rules:
                    row.append(Cell("–"))
                    continue
                errors = cell.trials.of_rule(rule)[:, k]
                if naive is None:
                    row.append(Cell(number(float(errors.mean())), float(errors.mean())))
                else:
                    mean, sure = changes[rule][client]
                    row.append(change(mean, sure=sure))
            rows.append(row)
    if not rows:
        return None
    heads = [
        *([Head(place_word(found).capitalize())] if len(found.wheres) > 1 else []),
        Head("Client"),
        Head("epsilon"),
    ]
    heads += [
        Head(rule, "error against the client's seasonal naive forecast, geometric mean over seeds")
        for rule in found.contenders
    ]
    text = (
        "Error against the client's own seasonal naive forecast. Grey: the seeds do not tell it from 0 (95 % t "
        "interval, each client by itself). Click a heading to sort."
    )
    return Titled("Each client", Grid(heads, rows), text)
