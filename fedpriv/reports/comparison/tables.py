"""The tables of a sweep's page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import (
    Analysis,
    against_naive,
    baseline_errors,
    client_changes,
    option,
)
from fedpriv.reports.comparison.analysis import Cell as Place
from fedpriv.reports.comparison.naming import is_reference
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.comparison.sweep import FEDERATED
from fedpriv.reports.statistics import Paired, cliff_word
from fedpriv.reports.tables import METRICS, at_most, number, small

_SORTABLE = "sortable client"
_ROUNDED = 0.0005  # below this a change is shown as 0.0 %
_POSITIVE = frozenset({"mse", "mae", "rmse", "nmae", "crps", "energy-score", "pinball", "wql", "mape"})


@dataclass(frozen=True)
class Titled:
    """A table with its title and a line about it."""

    title: str
    grid: Grid
    text: str = ""
    kind: str = _SORTABLE


def change(value: float | None, *, sure: bool = True) -> Cell:
    """A relative change of an error: less is good; without a colour where it may be chance."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    if abs(value) < _ROUNDED:
        return Cell("0.0 %", value, "unsure")
    tone = "good" if value < 0 else "bad" if value > 0 else ""
    return Cell(f"{sign}{abs(value) * 100:.1f} %", value, tone if sure else "unsure")


def span(low: float, high: float) -> Cell:
    """An interval of shares."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return Cell("–")
    return Cell(f"{low * 100:+.1f} to {high * 100:+.1f} %".replace("-", "\N{MINUS SIGN}"), low)


def p_value(value: float) -> Cell:
    """A p-value for people."""
    if not math.isfinite(value):
        return Cell("–")
    return Cell("< 0.001" if value < 0.001 else f"{value:.2g}", value)


def pairs(found: Analysis) -> Titled | None:
    """All pairs of contenders over everything."""
    overall = found.overall
    if overall is None or not overall.pairs:
        return None
    heads = [
        Head("Less error"),
        Head("Verdict", "whether the difference is more than chance"),
        Head("More error"),
        Head("difference", f"relative difference of error, geometric mean over {everything(found)}"),
        Head("95 % interval", "over seeds and clients"),
        Head("p, adjusted", "t test over seeds and clients, Holm's correction over all pairs"),
        Head("clients", "share of clients for which the first has less error"),
        Head("effect", "Cliff's delta against the spread between clients"),
    ]
    rows = [_pair(pair, q, pair.significant(q)) for pair, q in zip(overall.pairs, overall.adjusted, strict=True)]
    text = (
        f"All {len(rows)} pairs, over all {everything(found)}. The intervals are for one pair by itself; p is adjusted "
        "for all of them (Holm), and decides."
    )
    if len({round(q, 12) for q in overall.adjusted if q < 1}) < sum(q < 1 for q in overall.adjusted):
        text += (
            " Equal p are no mistake: Holm's steps go from the surest pair to the least sure, and no pair may get a "
            "smaller p than the one before it, so neighbours can end at the same value."
        )
    if any(is_reference(pair.a) or is_reference(pair.b) for pair in overall.pairs):
        text += " The trusted curator is a reference, not an option for who does not hand over readings."
    return Titled("Every pair", Grid(heads, rows), text)


def everything(found: Analysis) -> str:
    """What is averaged over: `seeds, clients, partitions and epsilons`, as far as there are several."""
    parts = ["seeds", "clients", *(["partitions"] if len(found.wheres) > 1 else [])]
    parts += ["epsilons"] if len(found.epsilons) > 1 else []
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pair(pair: Paired, adjusted: float, sure: bool) -> list[Cell]:
    mean, low, high = pair.change
    return [
        Cell(pair.a),
        Cell("differs" if sure else "no evidence", None, "good" if sure else ""),
        Cell(pair.b),
        change(mean, sure=False),
        span(low, high),
        p_value(adjusted),
        Cell(f"{pair.better * 100:.0f} %", pair.better),
        Cell(f"{pair.cliff:+.2f} ({cliff_word(pair.cliff)})".replace("-", "\N{MINUS SIGN}"), pair.cliff),
    ]


def places(found: Analysis) -> Titled | None:
    """Every cell: who has the least error there, and whether that is more than chance."""
    cells = [cell for cell in found.cells.values() if cell.verdict is not None]
    if not cells:
        return None
    heads = [
        *([Head("Partition")] if len(found.wheres) > 1 else []),
        Head("epsilon"),
        Head("least error"),
        Head("against naive", "its error against the seasonal naive forecast"),
        Head("95 % interval"),
        Head(
            "not told from it",
            "contenders for which this combination alone shows no difference, adjusted over all of them",
        ),
        Head("seeds"),
        Head("clients"),
    ]
    rows: list[list[Cell]] = []
    for cell in cells:
        best = option(cell)
        own = cell.gains.get(best)
        if best == cell.best:
            as_good = [rule for rule in cell.verdict.not_worse if rule != best] if cell.verdict else []
        else:
            as_good = _not_told(cell, best)
        everyone = len(as_good) == len(cell.trials.rules) - 1
        rows.append(
            [
                *([Cell(cell.where)] if len(found.wheres) > 1 else []),
                Cell("none" if cell.epsilon is None else f"{cell.epsilon:g}", cell.epsilon),
                Cell(best),
                change(own.change[0], sure=not own.low <= 0 <= own.high) if own else Cell("–"),
                span(*own.change[1:]) if own else Cell("–"),
                Cell("all others" if everyone and as_good else ", ".join(as_good) or "none: it wins"),
                Cell(str(len(cell.trials.seeds)), len(cell.trials.seeds)),
                Cell(str(len(cell.trials.clients)), len(cell.trials.clients)),
            ]
        )
    text = (
        "One combination has few seeds, and all of them are adjusted for together: by itself it shows only large and "
        "steady differences. Grey: the interval holds 0."
    )
    return Titled("Each combination", Grid(heads, rows), text)


def _not_told(cell: Place, best: str) -> list[str]:
    """Contenders that a combination does not tell from one that is not its best."""
    assert cell.verdict is not None
    return [
        pair.b if pair.a == best else pair.a
        for pair, q in zip(cell.verdict.pairs, cell.verdict.adjusted, strict=True)
        if best in (pair.a, pair.b) and not pair.significant(q)
    ]


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
        Head("largest loss against naive", "or the least gain, where nobody loses"),
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
    text = (
        f"Over all clients{' of all partitions' if len(found.wheres) > 1 else ''}, geometric means over seeds. The "
        "client with the largest error and the one that loses most against its own seasonal naive forecast need not "
        "be the same. Grey: the interval holds 0, or there is none."
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
    heads = [*([Head("Partition")] if len(found.wheres) > 1 else []), Head("Client"), Head("epsilon")]
    heads += [
        Head(rule, "error against the client's seasonal naive forecast, geometric mean over seeds")
        for rule in found.contenders
    ]
    text = (
        "Error against the client's own seasonal naive forecast. Grey: the seeds do not tell it from 0 (95 % t "
        "interval, each client by itself). Click a heading to sort."
    )
    return Titled("Each client", Grid(heads, rows), text)


def metrics(found: Analysis) -> Titled | None:
    """Mean of every metric for every contender, as it was scored; less is better except for coverage."""
    sweep = found.sweep
    known = [m for m in METRICS if (sweep.frame["metric"] == m).any()]
    if not known:
        return None
    rows: list[list[Cell]] = []
    tables = {m: sweep.scores(m) for m in known}
    for epsilon in [*found.epsilons, None]:
        for rule in found.contenders:
            row: list[Cell] = []
            for metric, frame in tables.items():
                at = frame["epsilon"].isna() if epsilon is None else frame["epsilon"] == epsilon
                values = frame.loc[(frame["contender"] == rule) & (frame["model"] == FEDERATED) & at, "value"]
                positive = bool(len(values)) and metric in _POSITIVE and bool((values > 0).all())
                mean = float(np.exp(np.log(values).mean()) if positive else values.mean()) if len(values) else math.nan
                share = metric in ("nmae", "wql", "coverage50", "coverage90")
                row.append(
                    Cell("–") if math.isnan(mean) else Cell(f"{mean * 100:.1f} %" if share else number(mean), mean)
                )
            if any(cell.value is not None for cell in row):
                rows.append([Cell(rule), Cell("none" if epsilon is None else f"{epsilon:g}", epsilon), *row])
    text = (
        f"Over all {everything(found).replace(' and epsilons', '').replace(', clients', ' and clients', 1)}: geometric "
        "means of errors, plain means of coverage. Less is better, except for coverage, which should be as named."
    )
    return Titled(
        "",
        Grid([Head(found.sweep.thing.capitalize()), Head("epsilon"), *(Head(METRICS[m]) for m in known)], rows),
        text,
    )


def ladder(found: tuple[Promise, ...]) -> Titled | None:
    """What one run promises about larger units."""
    if not found:
        return None
    units = list(dict.fromkeys(unit for promise in found for unit in promise.ladder))
    heads = [
        Head("Budget", "the epsilon that the run was given for its unit"),
        Head("for one"),
        Head("delta"),
        Head("committed", "largest over all runs and clients; never above the budget"),
        *(Head(f"one {unit}", f"epsilon for one {unit}") for unit in units),
        Head("runs"),
    ]
    rows = [
        [
            Cell(f"{p.budget:g}", p.budget),
            Cell(p.unit),
            Cell(small(p.delta) if p.delta is not None else "–"),
            Cell(at_most(p.committed) if p.committed is not None else "–", p.committed),
            *(_rung(p.ladder.get(unit)) for unit in units),
            Cell(str(p.runs), p.runs),
        ]
        for p in found
    ]
    text = (
        "The same runs protect larger units less. Largest epsilon over runs and clients. Budget: the epsilon that was "
        "asked for. Committed: what is claimed, booked before the first reading was used. “No finite one”: nothing "
        "can be promised for so large a unit."
    )
    return Titled("Epsilon for larger units", Grid(heads, rows), text)


def _rung(value: float | None) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(at_most(value), value) if math.isfinite(value) else Cell("no finite one")
