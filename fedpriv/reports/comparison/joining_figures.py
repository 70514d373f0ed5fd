"""Pictures of the value of joining: gain per client, gain over epsilon, all settings, contributions."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from fedpriv.reports.comparison.axes import MARKERS, STYLES, epsilon_axis, percent_axis
from fedpriv.reports.comparison.collaboration import WORDS, AtEpsilon, Collaboration
from fedpriv.reports.comparison.shapley import Contribution
from fedpriv.reports.comparison.sweep import NAIVE
from fedpriv.reports.drawing import WIDTH, Draw, Palette, figure, legend, words
from fedpriv.reports.tables import MODELS

Plan = tuple[str, str, Draw | None]
MAX_CLIENTS = 40


def joining_plans(value: Collaboration) -> tuple[Plan, ...]:
    """(name, alt text, drawing) of each."""
    last = value.joining[-1].epsilon
    return (
        ("joining", "Dot plot: gain of joining for every client, with intervals", _joining(value.joining[-1])),
        ("joining-epsilon", "Line chart: gain of joining over epsilon, mean with band and every client", _over(value)),
        ("settings", "Line chart: error of federation, training alone and a trusted curator over epsilon", _all(value)),
        ("left-out", "Bar chart: what the others lose without a client", _bars(value.left_out.get(last, ()))),
        ("shapley", "Bar chart: Shapley values of the clients", _bars(value.shapley.get(last, ()))),
    )


def _joining(at: AtEpsilon) -> Draw:
    order = sorted(at.clients, key=lambda gain: -gain.gain)
    if len(order) > MAX_CLIENTS:
        order = order[: MAX_CLIENTS // 2] + order[-MAX_CLIENTS // 2 :]

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.45 + 0.28 * (len(order) + 1))
        axes.axvline(0, color=palette.muted, linewidth=1)
        shades = {"gains": palette.ours, "loses": palette.naive, "not told": palette.muted}
        ends = [0.0]
        for row, gain in enumerate(order):
            shade = shades[gain.outcome]
            if math.isfinite(gain.low):
                axes.plot([gain.low, gain.high], [row, row], color=shade, linewidth=2.2, solid_capstyle="butt")
            filled = shade if gain.outcome != "not told" else "none"
            axes.plot([gain.gain], [row], "o", color=shade, markersize=6.5, markerfacecolor=filled)
            ends.append(gain.gain)
        mean, low, high = at.gain
        row = len(order) + 0.3
        axes.plot([low, high], [row, row], color=palette.text, linewidth=3, solid_capstyle="butt")
        axes.plot([mean], [row], "D", color=palette.text, markersize=7)
        # an interval from three seeds can be far wider than all gains: cut it at the edge rather than squeeze the rest
        ends += [low, high]
        span = max(ends) - min(ends) or 0.01
        axes.set_xlim(min(ends) - 0.25 * span, max(ends) + 0.25 * span)
        axes.axhline(len(order) - 0.35, color=palette.grid, linewidth=1)
        axes.set_yticks([*range(len(order)), row], [*(words(g.client, 20) for g in order), "mean"])
        axes.set_ylim(row + 0.6, -0.6)
        percent_axis(axes, "x")
        axes.set_xlabel(f"gain of joining at epsilon {at.epsilon:g} (right: less error)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        handles = [
            axes.plot([], [], "o-", color=palette.ours, label="gains")[0],
            axes.plot([], [], "o-", color=palette.muted, markerfacecolor="none", label="cannot be told")[0],
            axes.plot([], [], "o-", color=palette.naive, label="loses")[0],
        ]
        made.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)
        return made

    return draw


def _over(value: Collaboration) -> Draw | None:
    if len(value.joining) < 2:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(3.2)
        epsilons = list(value.epsilons)
        axes.axhline(0, color=palette.naive, linestyle="--", linewidth=1.3, label="alone")
        for i, client in enumerate(value.clients):
            points = [(at.epsilon, g.gain) for at in value.joining for g in at.clients if g.client == client]
            axes.plot(
                [e for e, _ in points],
                [g for _, g in points],
                color=palette.ours,
                alpha=0.4,
                linewidth=0.9,
                label="each client" if i == 0 else None,
            )
        mean, low, high = (np.array([at.gain[i] for at in value.joining]) for i in range(3))
        if np.isfinite(low).all():
            axes.fill_between(epsilons, low, high, color=palette.text, alpha=0.13, linewidth=0, label="95 % interval")
        axes.plot(epsilons, mean, color=palette.text, linewidth=2.4, marker="D", markersize=5, label="mean")
        if value.overall is not None and value.overall.within:
            axes.plot([value.overall.epsilon], [0], "o", color=palette.naive, markersize=8, markerfacecolor="none")
        ends = [0.0, *mean, *(g.gain for at in value.joining for g in at.clients)]
        span = max(ends) - min(ends) or 0.01
        axes.set_ylim(min(ends) - 0.15 * span, max(ends) + 0.15 * span)
        epsilon_axis(axes, epsilons)
        percent_axis(axes, "y")
        axes.set_xlabel("epsilon (less is more private)")
        axes.set_ylabel("gain of joining")
        axes.grid(axis="y")
        legend(made, axes, 4)
        return made

    return draw


def _all(value: Collaboration) -> Draw | None:
    naive = value.errors.get((NAIVE, None))
    if naive is None:
        return None
    private = [s for s in WORDS if s[1] and any(key == s for key, _ in value.errors)]
    flat = [s for s in WORDS if not s[1] and (s, None) in value.errors]
    baselines = [key for key, _ in value.errors if isinstance(key, str) and key != NAIVE]
    over = len({e for _, e in value.errors if e is not None}) > 1

    def relative(key: object, epsilon: float | None) -> float:
        errors = value.errors[key, epsilon]  # type: ignore[index]
        return float(np.exp(np.log(errors / naive[0]).mean()) - 1)

    def draw(palette: Palette) -> Figure:
        made = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        axes = made.add_subplot()
        axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.3, label="seasonal naive")
        epsilons = sorted({e for _, e in value.errors if e is not None})
        place = 0
        for setting in private:
            own = [e for e in epsilons if (setting, e) in value.errors]
            shade = palette.series[place]
            axes.plot(
                own,
                [relative(setting, e) for e in own],
                color=shade,
                marker=MARKERS[place],
                linestyle=STYLES[place],
                label=WORDS[setting],
            )
            place += 1
        ends = [v for axes_line in axes.lines for v in np.atleast_1d(axes_line.get_ydata())]
        for setting in flat:
            level = relative(setting, None)
            axes.axhline(level, color=palette.series[place], linestyle=STYLES[place], label=WORDS[setting])
            ends.append(level)
            place += 1
        for name in baselines:
            level = relative(name, None)
            if level < 3 * max(abs(float(v)) for v in ends) + 0.3 and place < len(palette.series):
                axes.axhline(level, color=palette.series[place], linestyle=":", label=MODELS.get(name, name))
                place += 1
        if over:
            epsilon_axis(axes, epsilons)
        percent_axis(axes, "y")
        axes.set_xlabel("epsilon (less is more private); flat lines need none")
        axes.set_ylabel("error against\nseasonal naive")
        axes.grid(axis="y")
        legend(made, axes, 2)
        return made

    return draw


def _bars(found: tuple[Contribution, ...]) -> Draw | None:
    if not found:
        return None
    order = sorted(found, key=lambda c: -c.value)

    def draw(palette: Palette) -> Figure:
        made, axes = figure(0.8 + 0.28 * len(order))
        rows = np.arange(len(order))
        axes.barh(
            rows, [c.value for c in order], 0.6, color=[palette.ours if c.value >= 0 else palette.naive for c in order]
        )
        for row, c in enumerate(order):
            if math.isfinite(c.low):
                axes.plot([c.low, c.high], [row, row], color=palette.text, linewidth=1.4)
        axes.axvline(0, color=palette.muted, linewidth=1)
        axes.set_yticks(rows, [words(c.client, 20) for c in order])
        axes.invert_yaxis()
        percent_axis(axes, "x")
        axes.set_xlabel("contribution (right: the others have less error with it)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return made

    return draw
