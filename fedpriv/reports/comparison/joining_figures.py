"""Pictures of the value of joining: gain per client, gain over epsilon, all settings, contributions."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpriv.reports.comparison.axes import epsilon_axis, label_lines, look, percent, percent_axis
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.shapley import Contribution
from fedpriv.reports.comparison.sweep import NAIVE
from fedpriv.reports.drawing import WIDTH, Draw, Palette, figure, legend, words
from fedpriv.reports.tables import MODELS

Plan = tuple[str, str, Draw | None]
MAX_CLIENTS = 40
_NAMED = 8  # clients whose names stand at their lines
LEFT_OUT = "leave-one-out", "change of the others' error, % of log error\n(left: they have less with this client)"
SHAPLEY = "Shapley values", "share of the total change of error, % of log error\n(left: less error)"


def joining_plans(value: Collaboration) -> tuple[Plan, ...]:
    """(name, alt text, drawing) of each."""
    last = value.joining[-1].epsilon
    left_out, shares = value.left_out.get(last, ()), value.shapley.get(last, ())
    return (
        ("joining", "Dot plot: change of error by joining for every client, with intervals", _joining(value)),
        ("joining-epsilon", "Line chart: change of error by joining over epsilon, mean and every client", _over(value)),
        ("settings", "Line chart: error of federation, training alone and a trusted curator over epsilon", _all(value)),
        (
            "left-out",
            "Bar chart: change of the others' error by a client",
            _bars(left_out, last, LEFT_OUT),
        ),
        ("shapley", "Bar chart: Shapley values of the clients", _bars(shares, last, SHAPLEY)),
    )


def _joining(value: Collaboration) -> Draw:
    at = value.joining[-1]
    order = sorted(at.clients, key=lambda gain: -gain.gain)
    if len(order) > MAX_CLIENTS:
        order = order[: MAX_CLIENTS // 2] + order[-MAX_CLIENTS // 2 :]
    name = WORDS[value.alternative]

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.45 + 0.28 * (len(order) + 1))
        axes.axvline(0, color=palette.muted, linewidth=1)
        shades = {"gains": palette.ours, "loses": palette.naive, "not told": palette.muted}
        mean, low, high = -at.gain[0], -at.gain[2], -at.gain[1]
        # an interval from three seeds can be far wider than all gains: it is cut at the edge and says where it ends
        ends = [0.0, mean, *(v for v in (low, high) if math.isfinite(v)), *(-gain.gain for gain in order)]
        pad = 0.3 * (max(ends) - min(ends) or 0.01)
        edges = min(ends) - pad, max(ends) + pad
        axes.set_xlim(*edges)
        for row, gain in enumerate(order):
            shade = shades[gain.outcome]
            _whisker(axes, row, -gain.high, -gain.low, edges, shade, 2.2)
            filled = shade if gain.outcome != "not told" else "none"
            axes.plot([-gain.gain], [row], "o", color=shade, markersize=6.5, markerfacecolor=filled)
        row = len(order) + 0.3
        _whisker(axes, row, low, high, edges, palette.text, 3.0)
        axes.plot(
            [mean], [row], "D", color=palette.text, markersize=7, markerfacecolor=palette.text if at.sure else "none"
        )
        axes.axhline(len(order) - 0.35, color=palette.grid, linewidth=1)
        axes.set_yticks([*range(len(order)), row], [*(words(g.client, 20) for g in order), "mean"])
        axes.set_ylim(row + 0.6, -0.6)
        percent_axis(axes, "x")
        axes.set_xlabel(f"error by joining at epsilon {at.epsilon:g}, against {name}\n(left: less error)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        handles = [
            axes.plot([], [], "o-", color=palette.ours, label="gains")[0],
            axes.plot([], [], "o-", color=palette.muted, markerfacecolor="none", label="may be chance")[0],
            axes.plot([], [], "o-", color=palette.naive, label="loses")[0],
        ]
        made.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)
        return made

    return draw


def _whisker(
    axes: Axes, row: float, low: float, high: float, edges: tuple[float, float], shade: str, width: float
) -> None:
    """An interval; where it leaves the picture an arrowhead with the number at which it ends."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return
    axes.plot(
        [max(low, edges[0]), min(high, edges[1])], [row, row], color=shade, linewidth=width, solid_capstyle="butt"
    )
    for end, edge, marker, side in ((low, edges[0], "<", "left"), (high, edges[1], ">", "right")):
        if (end < edge) if side == "left" else (end > edge):
            axes.plot([edge], [row], marker, color=shade, markersize=7, clip_on=False, zorder=5)
            shift = 0.03 * (edges[1] - edges[0])
            x = edge + shift if side == "left" else edge - shift
            axes.text(x, row - 0.16, percent(end), ha=side, va="bottom", color=shade, fontsize=8)


def _over(value: Collaboration) -> Draw | None:
    if len(value.joining) < 2:
        return None
    name = WORDS[value.alternative]

    def draw(palette: Palette) -> Figure:
        made, axes = figure(3.2)
        epsilons = list(value.epsilons)
        other = look(palette, (), name)
        axes.axhline(0, color=other.colour, linestyle=other.style, linewidth=1.5)
        ends: list[tuple[float, str, str]] = []
        shades = {"gains": palette.ours, "loses": palette.naive, "not told": palette.muted}
        for client in value.clients:
            points = [(at.epsilon, g) for at in value.joining for g in at.clients if g.client == client]
            if not points:
                continue
            shade = shades[points[-1][1].outcome]
            axes.plot([e for e, _ in points], [-g.gain for _, g in points], color=shade, alpha=0.8, linewidth=1.0)
            ends.append((-points[-1][1].gain, words(client, 16), shade))
        mean, high, low = (-np.array([at.gain[i] for at in value.joining]) for i in range(3))
        if np.isfinite(low).all():
            axes.fill_between(epsilons, low, high, color=palette.text, alpha=0.11, linewidth=0, label="95 % interval")
        axes.plot(epsilons, mean, color=palette.text, linewidth=2.4, marker="D", markersize=5, label="mean")
        if value.overall is not None and value.overall.within:
            axes.plot([value.overall.epsilon], [0], "o", color=palette.naive, markersize=8, markerfacecolor="none")
        heights = [0.0, *mean, *low[np.isfinite(low)], *high[np.isfinite(high)], *(h for h, _, _ in ends)]
        pad = 0.06 * (max(heights) - min(heights) or 0.01)
        axes.set_ylim(min(heights) - pad, max(heights) + pad)
        epsilon_axis(axes, epsilons)
        percent_axis(axes, "y")
        axes.set_xlabel("epsilon (less is more private)")
        axes.set_ylabel(f"error by joining,\nagainst {name}")
        axes.grid(axis="y")
        if len(ends) <= _NAMED:
            label_lines(
                axes, [(float(mean[-1]), "mean", palette.text), (0.0, name, look(palette, (), name).colour), *ends]
            )
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
        axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.3)
        epsilons = sorted({e for _, e in value.errors if e is not None})
        ends = [(0.0, "seasonal naive", palette.muted)]
        for setting in private:
            own = [e for e in epsilons if (setting, e) in value.errors]
            drawn, levels = look(palette, (), WORDS[setting]), [relative(setting, e) for e in own]
            axes.plot(own, levels, color=drawn.colour, marker=drawn.marker, linestyle=drawn.style)
            ends.append((levels[-1], WORDS[setting], drawn.colour))
        for setting in flat:
            drawn, level = look(palette, (), WORDS[setting]), relative(setting, None)
            axes.axhline(level, color=drawn.colour, linestyle=drawn.style)
            ends.append((level, WORDS[setting], drawn.colour))
        most = max(abs(height) for height, _, _ in ends)
        for name in baselines:
            level = relative(name, None)
            if level < 3 * most + 0.3:
                axes.axhline(level, color=palette.last, linestyle=":")
                ends.append((level, MODELS.get(name, name), palette.last))
        if over:
            epsilon_axis(axes, epsilons)
        percent_axis(axes, "y")
        axes.set_xlabel("epsilon (less is more private);\nflat lines need none")
        axes.set_ylabel("error against\nseasonal naive")
        axes.grid(axis="y")
        label_lines(axes, ends)
        return made

    return draw


def _bars(found: tuple[Contribution, ...], epsilon: float, kind: tuple[str, str]) -> Draw | None:
    """Contributions as changes of log error in %, minus: less error; the same numbers as in the table."""
    if not found:
        return None
    order = sorted(found, key=lambda c: -c.value)

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.2 + 0.28 * len(order))
        rows = np.arange(len(order))
        shades = [
            palette.muted if c.low <= 0 <= c.high else palette.ours if c.value >= 0 else palette.naive for c in order
        ]
        axes.barh(rows, [-c.value for c in order], 0.6, color=shades)
        for row, c in enumerate(order):
            if math.isfinite(c.low):
                axes.plot([-c.high, -c.low], [row, row], color=palette.text, linewidth=1.4)
        axes.axvline(0, color=palette.muted, linewidth=1)
        axes.set_yticks(rows, [words(c.client, 20) for c in order])
        axes.invert_yaxis()
        percent_axis(axes, "x")
        axes.set_title(f"{kind[0].capitalize() if kind[0].islower() else kind[0]} at epsilon {epsilon:g}", fontsize=10)
        axes.set_xlabel(kind[1])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return made

    return draw
