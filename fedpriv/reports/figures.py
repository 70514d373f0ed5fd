"""The pictures of the page, each from what the run folder says; a picture without data is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedpriv.reports.diagnostics import read_diagnostics, steps_picture, tails_picture
from fedpriv.reports.drawing import Draw, Palette, Picture, date_axis, figure, legend, plain_ticks, png, svg, words
from fedpriv.reports.forecasts import ForecastExamples
from fedpriv.reports.numbers import at_most, small
from fedpriv.reports.personal import personal_picture
from fedpriv.reports.tables import FEDERATED, METRICS, NAIVE, RunView

MAX_CLIENTS = 40  # more rows than this no longer fit a picture; the table has all of them


def pictures(view: RunView, directory: Path) -> dict[str, Picture]:
    """Draws all that `view` has data for, writes the PNGs into `directory`, and gives the SVGs by name."""
    plans: list[tuple[str, str, Draw | None]] = [
        ("ladder", "Bar chart: epsilon for each protected unit", _ladder(view)),
        ("clients", "Dot plot: error of each client for the model and the baselines", _clients(view)),
        ("rounds", "Line chart: error over rounds, relative to seasonal naive", _rounds(view)),
        ("epsilon", "Line chart: epsilon spent over rounds, with the committed value and the budget", _epsilon(view)),
        ("personal", "Dot plot: error of each client with the global and with its own model", personal_picture(view)),
        ("commitments", "Dot plot: committed and nominal epsilon of each client", _commitments(view)),
    ]
    diagnosed = read_diagnostics(view.folder.path)
    plans += [
        ("diagnostics-tails", "Line charts: distribution and tail of gradient norms", tails_picture(diagnosed)),
        ("diagnostics-steps", "Line charts: gradient norms and clipping over rounds", steps_picture(diagnosed)),
    ]
    examples = view.folder.examples
    if examples is not None:
        for i in range(len(examples)):
            alt = f"Line chart: forecast example of {examples.client[i]} with 90 % band and truth"
            plans.append((f"example-{i + 1}", alt, example_drawing(examples, i)))
    directory.mkdir(exist_ok=True)
    found: dict[str, Picture] = {}
    for name, alt, draw in plans:
        if draw is not None:
            found[name] = Picture(name, alt, svg(draw, name, alt))
            png(draw, directory / f"{name}.png")
    return found


# ---- what is promised -------------------------------------------------------------------------------


def _ladder(view: RunView) -> Draw | None:
    rungs = {unit: value for unit, value in view.ladder().items() if value}
    if not rungs:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(0.75 + 0.36 * len(rungs))
        units, values = list(rungs), list(rungs.values())
        headline = str(view.label.get("unit", ""))
        colours = [palette.ours if unit == headline else palette.muted for unit in units]
        axes.barh(units, values, height=0.62, color=colours)
        axes.invert_yaxis()
        if max(values) > 20 * min(values):
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 3, max(values) * 4)
        else:
            axes.set_xlim(0, max(values) * 1.18)
        plain_ticks(axes)
        for row, value in enumerate(values):
            axes.annotate(at_most(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_xlabel(f"epsilon at delta = {small(float(view.label.get('delta', 0)))} (less is more private)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        return made

    return draw


def _commitments(view: RunView) -> Draw | None:
    committed = {k: float(v) for k, v in (view.label.get("committed") or {}).items() if v is not None}
    nominal = {k: float(v) for k, v in (view.label.get("nominal") or {}).items() if v is not None}
    clients = list(committed)[:MAX_CLIENTS]
    if not clients:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.25 + 0.27 * len(clients))
        rows = np.arange(len(clients))
        claimed = [committed[c] for c in clients]
        spent = [nominal.get(c, 0.0) for c in clients]
        axes.barh(rows, claimed, 0.72, color=palette.ours, alpha=0.3, linewidth=0, label="committed (the claim)")
        axes.barh(rows, spent, 0.3, color=palette.other, linewidth=0, label="nominal (spent)")
        axes.axvline(view.scenario.privacy.epsilon, color=palette.naive, linestyle=":", label="budget")
        axes.set_yticks(rows, [words(c) for c in clients])
        axes.invert_yaxis()
        axes.set_xlim(0, max([view.scenario.privacy.epsilon, *committed.values()]) * 1.08)
        axes.set_xlabel(f"epsilon for one {view.label.get('unit', 'unit')}")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        legend(made, axes, 3)
        return made

    return draw


def _epsilon(view: RunView) -> Draw | None:
    spent = view.epsilons()
    if not spent.rounds:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(3.1)
        if max(spent.high) - min(spent.high) > 0 and spent.low != spent.high:
            axes.fill_between(
                spent.rounds, spent.low, spent.high, color=palette.other, alpha=0.25, linewidth=0, label="all clients"
            )
        axes.plot(spent.rounds, spent.high, color=palette.other, label="nominal, largest client")
        if view.label.get("max_epsilon") is not None:
            axes.axhline(float(view.label["max_epsilon"]), color=palette.ours, linestyle="--", label="committed")
        axes.axhline(view.scenario.privacy.epsilon, color=palette.naive, linestyle=":", label="budget")
        axes.set_xlim(0, max(view.scenario.federation.rounds, spent.rounds[-1]))
        axes.set_ylim(0)
        axes.set_xlabel("round")
        axes.set_ylabel(f"epsilon for one {view.scenario.privacy.unit}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        legend(made, axes, 4 if len(axes.get_legend_handles_labels()[0]) < 4 else 2)
        return made

    return draw


# ---- errors -----------------------------------------------------------------------------------------


def _clients(view: RunView, metric: str = "mse") -> Draw | None:
    scores = view.scores()
    found = view.compare(metric)
    if found is None:
        return None
    ranked = sorted(found.reductions, key=lambda client: -found.reductions[client])
    if len(ranked) > MAX_CLIENTS:
        ranked = ranked[: MAX_CLIENTS // 2] + ranked[-MAX_CLIENTS // 2 :]

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.25 + 0.27 * len(ranked))
        rows = np.arange(len(ranked))
        ours = np.array([scores[c][FEDERATED][metric] for c in ranked])
        naive = np.array([scores[c][NAIVE][metric] for c in ranked])
        last = np.array([scores[c].get("last-value", {}).get(metric, np.nan) for c in ranked])
        axes.hlines(rows, ours, naive, color=palette.muted, linewidth=1.4)
        axes.plot(ours, rows, "o", color=palette.ours, markersize=7, label="federated model")
        axes.plot(naive, rows, "D", color=palette.naive, markersize=5.5, label="seasonal naive")
        if np.isfinite(last).any():
            axes.plot(last, rows, "^", color=palette.last, markersize=5.5, label="last value")
        every = np.concatenate([ours, naive, last[np.isfinite(last)]])
        if every.min() > 0 and every.max() > 8 * every.min():
            axes.set_xscale("log")
            axes.set_xlim(every.min() / 1.25, every.max() * 1.25)
        else:
            axes.set_xlim(0, every.max() * 1.06)
        plain_ticks(axes)
        axes.set_yticks(rows, [words(c) for c in ranked])
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.set_xlabel(f"{METRICS[metric]} of scaled values, {found.split} part (less is better)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        legend(made, axes, 3)
        return made

    return draw


def _rounds(view: RunView, metric: str = "mse") -> Draw | None:
    split, errors = view.errors_over_rounds(metric)
    baseline = view.baseline_errors(split, metric)
    relative = bool(errors) and all(baseline.get(client) for client in errors)
    if len({round_ for points in errors.values() for round_, _ in points}) < 2:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(3.2)
        by_round: dict[int, list[tuple[float, float]]] = {}
        for i, (client, points) in enumerate(errors.items()):
            scale = baseline[client] if relative else 1.0
            for round_, value in points:
                by_round.setdefault(round_, []).append((value, baseline.get(client, 1.0)))
            axes.plot(
                [r for r, _ in points],
                [value / scale for _, value in points],
                color=palette.ours,
                alpha=0.35,
                linewidth=0.9,
                label="each client" if i == 0 else None,
            )
        rounds = [r for r in sorted(by_round) if len(by_round[r]) == max(map(len, by_round.values()))]
        mean = [
            sum(v for v, _ in by_round[r]) / (sum(b for _, b in by_round[r]) if relative else len(by_round[r]))
            for r in rounds
        ]
        bold = {"linewidth": 2.4, "marker": "o", "markersize": 4, "clip_on": False}
        axes.plot(rounds, mean, color=palette.ours, label="average client", **bold)
        if relative:
            axes.axhline(1.0, color=palette.naive, linestyle="--", label="seasonal naive")
        axes.set_xlabel("round")
        axes.set_ylabel(f"{METRICS[metric]}, {split} part" + ("\nseasonal naive = 1" if relative else ", scaled"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, max(1, *by_round))
        axes.grid(axis="y")
        legend(made, axes, 3)
        return made

    return draw


# ---- examples ---------------------------------------------------------------------------------------


def example_drawing(examples: ForecastExamples, index: int, *, title: str = "") -> Draw:
    """One window: what was given, the forecast (or filling) with its band, the truth; the client is the title."""

    def draw(palette: Palette) -> Figure:
        made, axes = figure(2.75)
        horizon = examples.truth.shape[1]
        stamps = examples.stamps[index].astype("datetime64[s]")
        ahead = stamps[-horizon:]
        # Three horizons of the past are enough to see the habit; more would squeeze the forecast.
        past = slice(max(0, examples.context.shape[1] - 3 * horizon), None) if examples.is_forecast else slice(None)
        before = stamps[: examples.context.shape[1]][past]
        axes.plot(before, examples.context[index][past], color=palette.muted, linewidth=1.2, label="given")
        levels = examples.levels
        if len(levels) >= 2:
            axes.fill_between(
                ahead,
                examples.quantiles[index, 0],
                examples.quantiles[index, -1],
                color=palette.ours,
                alpha=0.22,
                linewidth=0,
                label=f"{levels[0] * 100:g} to {levels[-1] * 100:g} %",
            )
        if examples.baseline.size:
            naive = examples.baseline[index]
            axes.plot(ahead, naive, color=palette.naive, linestyle=":", linewidth=1.4, label="seasonal naive")
        axes.plot(ahead, examples.point[index], color=palette.ours, label="forecast")
        axes.plot(ahead, examples.truth[index], color=palette.text, linestyle="--", linewidth=1.4, label="truth")
        date_axis(axes)
        axes.set_title(words(title or str(examples.client[index]), 60))
        axes.set_ylabel(words(examples.unit) or "value")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.01)
        axes.grid(axis="y")
        legend(made, axes, 5)
        return made

    return draw
