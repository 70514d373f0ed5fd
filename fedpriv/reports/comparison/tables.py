"""The tables of a sweep's page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedpriv.reports.comparison.analysis import Analysis, baseline_errors, cell_name
from fedpriv.reports.comparison.collaboration import WORDS, Collaboration
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.comparison.shapley import Contribution
from fedpriv.reports.comparison.sweep import DONE, EPSILON, FEDERATED, SweepRun, value_words
from fedpriv.reports.page import Cell, Grid, Head
from fedpriv.reports.statistics import Paired, cliff_word
from fedpriv.reports.tables import METRICS, MODELS, at_most, number, small

_SORTABLE = "sortable client"


@dataclass(frozen=True)
class Titled:
    """A table with its title and a line about it."""

    title: str
    grid: Grid
    text: str = ""
    kind: str = _SORTABLE


def change(value: float | None) -> Cell:
    """A relative change of an error: less is good."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    return Cell(f"{sign}{abs(value) * 100:.1f} %", value, "good" if value < 0 else "bad" if value > 0 else "")


def gain(value: float) -> Cell:
    """A gain: more is good."""
    return Cell(change(value).text, value, "good" if value > 0 else "bad" if value < 0 else "")


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
        Head("More error"),
        Head("difference", "relative difference of error, mean over seeds, clients, partitions and epsilons"),
        Head("95 % interval", "over seeds and clients"),
        Head("p, adjusted", "t test over seeds and clients, Holm's correction over all pairs"),
        Head("clients", "share of clients for which the first has less error"),
        Head("effect", "Cliff's delta against the spread between clients"),
        Head("", "what follows"),
    ]
    rows = [_pair(pair, q, pair.significant(q)) for pair, q in zip(overall.pairs, overall.adjusted, strict=True)]
    text = (
        f"All {len(rows)} pairs, over all clients, seeds, partitions and epsilons. The intervals are for one pair by "
        "itself; p is adjusted for all of them, and decides."
    )
    return Titled("Every pair", Grid(heads, rows), text)


def _pair(pair: Paired, adjusted: float, sure: bool) -> list[Cell]:
    mean, low, high = pair.change
    return [
        Cell(pair.a),
        Cell(pair.b),
        Cell(change(mean).text, mean),
        span(low, high),
        p_value(adjusted),
        Cell(f"{pair.better * 100:.0f} %", pair.better),
        Cell(f"{pair.cliff:+.2f} ({cliff_word(pair.cliff)})".replace("-", "\N{MINUS SIGN}"), pair.cliff),
        Cell("differs" if sure else "no evidence", None, "good" if sure else ""),
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
        own = cell.gains.get(cell.best)
        as_good = [rule for rule in cell.verdict.not_worse if rule != cell.best] if cell.verdict else []
        everyone = len(as_good) == len(cell.trials.rules) - 1
        rows.append(
            [
                *([Cell(cell.where)] if len(found.wheres) > 1 else []),
                Cell("none" if cell.epsilon is None else f"{cell.epsilon:g}", cell.epsilon),
                Cell(cell.best),
                change(own.change[0]) if own else Cell("–"),
                span(*own.change[1:]) if own else Cell("–"),
                Cell("all others" if everyone and as_good else ", ".join(as_good) or "none: it wins"),
                Cell(str(len(cell.trials.seeds)), len(cell.trials.seeds)),
                Cell(str(len(cell.trials.clients)), len(cell.trials.clients)),
            ]
        )
    text = (
        "One combination has few seeds, and all of them are adjusted for together: by itself it shows only large and "
        "steady differences."
    )
    return Titled("Each combination", Grid(heads, rows), text)


def fair(found: Analysis) -> Titled | None:
    """Worst client and spread for every contender."""
    if not found.fairness:
        return None
    metric = METRICS.get(found.sweep.metric, found.sweep.metric)
    heads = [
        Head("Contender"),
        Head("epsilon"),
        Head(f"mean {metric}", "plain mean over clients"),
        Head("median"),
        Head("90 % of clients below"),
        Head("worst client"),
        Head(f"its {metric}"),
        Head("losers", "share of clients with more error than their own seasonal naive forecast"),
        Head("worst change", "largest loss (or least gain) of a client against its seasonal naive forecast"),
        Head("Gini", "of the clients' errors"),
    ]
    rows = [
        [
            Cell(rule),
            Cell("none" if epsilon is None else f"{epsilon:g}", epsilon),
            *(Cell(number(v), v) for v in (f.mean, f.median, f.p90)),
            Cell(f.worst_client),
            Cell(number(f.worst), f.worst),
            Cell("–")
            if math.isnan(f.losers)
            else Cell(f"{f.losers * 100:.0f} %", f.losers, "bad" if f.losers else "good"),
            change(-f.gain_worst),
            Cell(number(f.gini), f.gini),
        ]
        for (rule, epsilon), f in found.fairness.items()
    ]
    text = "Over the clients of all partitions, errors averaged over seeds."
    return Titled("Not only the mean", Grid(heads, rows), text)


def by_client(found: Analysis) -> Titled | None:
    """Every client of every partition: its error under every contender against its own seasonal naive."""
    rows: list[list[Cell]] = []
    for (where, epsilon), cell in found.cells.items():
        naive = baseline_errors(found.sweep.errors, cell.trials, where)
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
                    row.append(change(float(np.exp(np.log(errors / naive[:, k]).mean()) - 1)))
            rows.append(row)
    if not rows:
        return None
    heads = [*([Head("Partition")] if len(found.wheres) > 1 else []), Head("Client"), Head("epsilon")]
    heads += [
        Head(rule, "error against the client's seasonal naive forecast, mean over seeds") for rule in found.contenders
    ]
    return Titled("Each client", Grid(heads, rows), "Click a heading to sort.")


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
                mean = float(values.mean()) if len(values) else math.nan
                share = metric in ("nmae", "wql", "coverage50", "coverage90")
                row.append(
                    Cell("–") if math.isnan(mean) else Cell(f"{mean * 100:.1f} %" if share else number(mean), mean)
                )
            if any(cell.value is not None for cell in row):
                rows.append([Cell(rule), Cell("none" if epsilon is None else f"{epsilon:g}", epsilon), *row])
    text = (
        "Plain means over clients, partitions and seeds. Less is better, except for coverage, which should be as named."
    )
    return Titled(
        "Other measures", Grid([Head("Contender"), Head("epsilon"), *(Head(METRICS[m]) for m in known)], rows), text
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
    text = "The same runs protect larger units less. Largest epsilon over runs and clients."
    return Titled("", Grid(heads, rows), text)


def _rung(value: float | None) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(at_most(value), value) if math.isfinite(value) else Cell("no finite one")


def runs(found: Analysis) -> Titled:
    """Every run with a link to its page or folder."""
    sweep = found.sweep
    frame = sweep.errors[sweep.errors["model"] == FEDERATED]
    means = frame.groupby("run", sort=False)["value"].mean().to_dict()
    heads = [
        Head("Run"),
        *([Head("arm")] if any(run.arm for run in sweep.runs) else []),
        *(Head(key) for key in sweep.varying),
        Head("seed"),
        Head("status"),
        Head(f"mean {METRICS.get(sweep.metric, sweep.metric)}"),
        Head("epsilon", "largest committed of its clients"),
        Head("seconds"),
    ]
    rows: list[list[Cell]] = []
    for run in sweep.runs:
        mean = means.get(run.run)
        rows.append(
            [
                Cell(run.run, link=_link(found, run)),
                *([Cell(run.arm)] if any(r.arm for r in sweep.runs) else []),
                *(_axis(run, key) for key in sweep.varying),
                Cell(run.seed, _as_number(run.seed)),
                Cell(run.status, None, "good" if run.status == DONE else "bad"),
                Cell(number(mean), mean) if mean is not None else Cell("–"),
                Cell(at_most(run.epsilon), run.epsilon) if run.epsilon is not None else Cell("none"),
                Cell(f"{run.seconds:.0f}", run.seconds) if run.seconds is not None else Cell("–"),
            ]
        )
    text = "Each leads to the page of the run, or to its folder. Identical runs share one folder."
    return Titled("", Grid(heads, rows), text)


def _axis(run: SweepRun, key: str) -> Cell:
    value = run.axes.get(key)
    if key == EPSILON:
        return Cell("none" if run.budget is None else f"{run.budget:g}", run.budget)
    return Cell(value_words(value), float(value) if isinstance(value, int | float) else None)


def _link(found: Analysis, run: SweepRun) -> str:
    """Relative, so that the folder can be moved; empty where there is nothing."""
    folder = found.sweep.folder(run)
    if (folder / "report.html").exists():
        return f"runs/{run.run}/report.html"
    return f"runs/{run.run}/" if folder.is_dir() else ""


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def not_done(found: Analysis) -> Titled | None:
    """Failures and refusals with their reasons."""
    others = found.sweep.others
    if not others:
        return None
    heads = [Head("Run"), Head("what"), Head("seed"), Head("status"), Head("why")]
    rows = [
        [
            Cell(run.run, link=_link(found, run)),
            Cell(cell_name(" · ".join(filter(None, (found.sweep.contender(run), found.sweep.where(run)))), run.budget)),
            Cell(run.seed),
            Cell(run.status, None, "bad"),
            Cell(run.error or "–"),
        ]
        for run in others
    ]
    return Titled("", Grid(heads, rows), "", "wide client")


def joining(value: Collaboration) -> list[Titled]:
    """Gain of joining by client and epsilon, break-even, settings, contributions."""
    heads = [Head("Client")]
    for at in value.joining:
        heads += [Head(f"gain at epsilon {at.epsilon:g}"), Head("95 % interval", "over seeds"), Head("")]
    heads.append(Head("break-even epsilon", "from which epsilon on joining pays"))
    rows: list[list[Cell]] = []
    for client in value.clients:
        row = [Cell(client)]
        for at in value.joining:
            own = next((g for g in at.clients if g.client == client), None)
            if own is None:
                row += [Cell("–")] * 3
            else:
                row += [gain(own.gain), span(own.low, own.high), Cell(own.outcome)]
        even = value.by_client.get(client)
        row.append(
            Cell(even.words(), even.epsilon if even and math.isfinite(even.epsilon) else 1e9) if even else Cell("–")
        )
        rows.append(row)
    text = (
        f"Against: {WORDS[value.alternative].lower()}. “gains” and “loses” only where the data say so, adjusted for "
        "the number of clients; the intervals are for one client by itself."
    )
    out = [Titled("Gain of joining, client by client", Grid(heads, rows), text)]
    out.append(_settings(value))
    for title, by_epsilon in (("Leave-one-out contribution", value.left_out), ("Shapley values", value.shapley)):
        out += [
            Titled(
                f"{title} at epsilon {epsilon:g}",
                Grid([Head("Client"), Head("contribution"), Head("95 % interval")], [_share(c) for c in rows_]),
                _exact(title, rows_),
            )
            for epsilon, rows_ in by_epsilon.items()
        ]
    return out


def _share(c: Contribution) -> list[Cell]:
    return [
        Cell(c.client),
        Cell(f"{c.value:+.4f}".replace("-", "\N{MINUS SIGN}"), c.value),
        Cell(f"{c.low:+.4f} to {c.high:+.4f}", c.low),
    ]


def _exact(title: str, found: tuple[Contribution, ...]) -> str:
    if title.startswith("Leave"):
        return "Mean log ratio of the others' errors without and with the client; 0.05 is about 5 %."
    return (
        "All orders of joining: exact for these runs."
        if all(c.exact for c in found)
        else "Estimated from sampled orders of joining."
    )


def _settings(value: Collaboration) -> Titled:
    heads = [Head("Setting"), Head("epsilon"), Head("mean error"), Head("median"), Head("worst client")]
    rows: list[list[Cell]] = []
    for (setting, epsilon), errors in value.errors.items():
        by = errors.mean(axis=0)
        name = MODELS.get(setting, setting) if isinstance(setting, str) else WORDS[setting]
        rows.append(
            [
                Cell(name),
                Cell("none" if epsilon is None else f"{epsilon:g}", epsilon),
                *(Cell(number(float(v)), float(v)) for v in (by.mean(), np.median(by), by.max())),
            ]
        )
    return Titled("Every setting", Grid(heads, rows), "Errors of all clients on the same held-out windows.")
