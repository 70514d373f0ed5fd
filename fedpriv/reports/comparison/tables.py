"""Tables of a sweep's page: every pair, every combination, every metric, and what is promised."""

from __future__ import annotations

import math

import numpy as np

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import (
    Analysis,
    option,
    place_word,
)
from fedpriv.reports.comparison.analysis import Cell as Place
from fedpriv.reports.comparison.cells import Titled, change, p_value, span
from fedpriv.reports.comparison.naming import is_reference
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.comparison.sweep import FEDERATED
from fedpriv.reports.numbers import at_most, number, small
from fedpriv.reports.statistics import Paired, cliff_word
from fedpriv.reports.tables import METRICS

_POSITIVE = frozenset({"mse", "mae", "rmse", "nmae", "crps", "energy-score", "pinball", "wql", "mape"})


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
        Head("clients better", "share of clients for which the first has less error"),
        Head("effect", "Cliff's delta against the spread between clients"),
    ]
    rows = [_pair(pair, q, pair.significant(q)) for pair, q in zip(overall.pairs, overall.adjusted, strict=True)]
    all_pairs = "The one pair" if len(rows) == 1 else f"All {len(rows)} pairs"
    text = (
        f"{all_pairs}, over all {everything(found)}. The intervals are for one pair by itself; p is adjusted "
        "for all of them (Holm), and decides."
    )
    if any(pair.mean == pair.standard_error == 0 for pair in overall.pairs):
        text += f" Two {found.sweep.thing}s that gave the same numbers are one, so fewer comparisons are adjusted for."
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
    parts = ["seeds", "clients", *([f"{place_word(found)}s"] if len(found.wheres) > 1 else [])]
    parts += ["epsilons"] if len(found.epsilons) > 1 else []
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pair(pair: Paired, adjusted: float, sure: bool) -> list[Cell]:
    mean, low, high = pair.change
    tone = "good" if sure else ""
    return [
        Cell(pair.a),
        Cell("the same" if pair.mean == pair.standard_error == 0 else "differs" if sure else "no evidence", None, tone),
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
        *([Head(place_word(found).capitalize())] if len(found.wheres) > 1 else []),
        Head("epsilon"),
        Head("least error"),
        Head("verdict", "whether this combination by itself shows it, adjusted over all combinations"),
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
        options = [rule for rule in cell.trials.rules if rule == best or not is_reference(rule)]
        not_told = cell.verdict.not_worse if cell.verdict and best == cell.best else _not_told(cell, best)
        as_good = [rule for rule in not_told if rule in options and rule != best]
        others = len(options) - 1
        rows.append(
            [
                *([Cell(cell.where)] if len(found.wheres) > 1 else []),
                Cell("none" if cell.epsilon is None else f"{cell.epsilon:g}", cell.epsilon),
                Cell(best),
                _verdict(cell, as_good, others),
                change(own.change[0], sure=not own.low <= 0 <= own.high) if own else Cell("–"),
                span(*own.change[1:]) if own else Cell("–"),
                Cell(_as_good_words(as_good, others)),
                Cell(str(len(cell.trials.seeds)), len(cell.trials.seeds)),
                Cell(str(len(cell.trials.clients)), len(cell.trials.clients)),
            ]
        )
    text = (
        "One combination has few seeds, so how much seeds and clients matter is learnt from all of them together, and "
        "all of them are adjusted for together: by itself one shows only large and steady differences. Grey: the "
        "interval holds 0."
    )
    if any(is_reference(rule) for cell in cells for rule in cell.trials.rules):
        text += " The trusted curator is a reference and is left out."
    return Titled("Each combination", Grid(heads, rows), text)


def _verdict(cell: Place, as_good: list[str], others: int) -> Cell:
    beaten = others - len(as_good)
    if not others:
        return Cell("\N{EN DASH}")
    if cell.verdict is None or cell.verdict.outcome == "cannot-tell":
        return Cell("cannot tell", 0.0)
    if not beaten:
        return Cell("no evidence", 0.0)
    if beaten == others:
        return Cell("wins", float(beaten), "good")
    return Cell(f"better than {beaten} of {others}", float(beaten), "good")


def _as_good_words(as_good: list[str], others: int) -> str:
    if not others:
        return "\N{EN DASH}"
    return "all others" if len(as_good) == others else ", ".join(as_good) or "none: it wins"


def _not_told(cell: Place, best: str) -> list[str]:
    """Contenders that a combination does not tell from one that is not its best."""
    assert cell.verdict is not None
    return [
        pair.b if pair.a == best else pair.a
        for pair, q in zip(cell.verdict.pairs, cell.verdict.adjusted, strict=True)
        if best in (pair.a, pair.b) and not pair.significant(q)
    ]


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
