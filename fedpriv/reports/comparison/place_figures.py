"""Where and for whom: the heat map of contenders by partition, and small charts of every client."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedpriv.reports.comparison.analysis import Analysis, Cell, client_changes, option
from fedpriv.reports.comparison.axes import MAX_LINES, MAX_PANELS, epsilon_axis, look, percent_axis
from fedpriv.reports.drawing import WIDTH, Draw, Palette, words

MAX_CLIENTS = 12
_SHORT_NAME = 16  # three longer names do not fit beside each other
_CAP = 1.0  # shares beyond which a heat map's colour no longer deepens


def heat_map(found: Analysis) -> Draw | None:
    """Error against seasonal naive; a panel for each epsilon, or for each place where there are more epsilons."""
    if not found.baseline or len(found.contenders) < 2:
        return None
    private: list[float | None] = list(found.epsilons)
    epsilons: list[float | None] = private or [None]
    if len(found.wheres) == 1:  # one panel, epsilons across
        panels = [
            ("", [(f"epsilon {e:g}" if e is not None else "", found.cells.get((found.wheres[0], e))) for e in epsilons])
        ]
    elif len(found.wheres) < len(epsilons):
        panels = [
            (w, [(f"ε {e:g}" if e is not None else "", found.cells.get((w, e))) for e in epsilons])
            for w in found.wheres
        ]
    else:
        panels = [
            (
                f"epsilon {e:g}" if e is not None else "without privacy",
                [(w, found.cells.get((w, e))) for w in found.wheres],
            )
            for e in epsilons[:MAX_PANELS]
        ]
    rules = [r for r in found.contenders if any(c and r in c.gains for _, columns in panels for _, c in columns)]
    columns = max(len(columns) for _, columns in panels)

    def draw(palette: Palette) -> Figure:
        height = 0.27 * len(rules)
        made = Figure(figsize=(WIDTH, 0.3 + (height + 0.75) * len(panels)), layout="constrained")
        for place, (title, cells) in enumerate(panels):
            axes = made.add_subplot(len(panels), 1, place + 1)
            for column, (_, cell) in enumerate(cells):
                for row, rule in enumerate(rules):
                    _square(axes, column, row, cell, rule, palette, many=columns > 4)
            axes.set_xlim(-0.5, columns - 0.5)
            axes.set_ylim(len(rules) - 0.5, -0.5)
            longest = 26 if columns <= 2 else 15 if columns <= 4 else 10
            axes.set_xticks(range(len(cells)), [words(name, longest) for name, _ in cells])
            axes.set_yticks(range(len(rules)), [words(rule, 25) for rule in rules])
            axes.xaxis.tick_top()
            axes.tick_params(length=0)
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
            if title:
                axes.set_title(title)
        return made

    return draw


def _square(axes: Axes, column: int, row: int, cell: Cell | None, rule: str, palette: Palette, *, many: bool) -> None:
    gain = cell.gains.get(rule) if cell else None
    if cell is None or gain is None:
        axes.text(column, row, "–", ha="center", va="center", color=palette.muted)
        return
    change = gain.change[0]
    shade, depth = (palette.ours if change < 0 else palette.naive), min(abs(change), _CAP) / _CAP
    if gain.low <= 0 <= gain.high:
        shade = palette.muted
    axes.add_patch(
        Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=shade, alpha=0.06 + 0.5 * depth**0.6, linewidth=0)
    )
    best = option(cell) == rule
    shown = f"{change * 100:+.1f}" if many else f"{change * 100:+.1f} %"
    text = shown.replace("-", "−") + (" ◆" if best else "")
    axes.text(
        column,
        row,
        text,
        ha="center",
        va="center",
        color=palette.text,
        fontsize=8.5,
        weight="bold" if best else "normal",
    )


def client_charts(found: Analysis) -> Draw | None:
    """One small chart per client of the first partition: its own error against its own seasonal naive."""
    where = found.wheres[0]
    cells = [found.cells[where, e] for e in found.epsilons if (where, e) in found.cells]
    if not cells or not found.baseline:
        return None
    clients = cells[0].trials.clients[:MAX_CLIENTS]
    rules = found.contenders[: min(MAX_LINES, 5)]
    over = len(cells) > 1

    def draw(palette: Palette) -> Figure:
        columns = 2
        rows = math.ceil(len(clients) / columns)
        made = Figure(figsize=(WIDTH, 0.6 + 0.24 * math.ceil((len(rules) + 1) / 3) + 1.35 * rows), layout="constrained")
        for place, client in enumerate(clients):
            axes = made.add_subplot(rows, columns, place + 1)
            if over:  # else differences between contenders would drown in what all of them gain
                axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.2, label="seasonal naive")
            for r, rule in enumerate(rules):
                points = [(c.epsilon or 0.0, client_change(found, c, rule, client)) for c in cells]
                points = [(e, change) for e, change in points if change is not None]
                if points:
                    own = look(palette, found.contenders, rule)
                    axes.plot(
                        [e for e, _ in points] if over else [r],
                        [change for _, change in points],
                        color=own.colour,
                        linestyle=own.style,
                        marker=own.marker,
                        markersize=4,
                        linewidth=1.4,
                        label=words(rule, 26),
                    )
            if over:
                epsilon_axis(axes, [c.epsilon or 0.0 for c in cells])
            else:
                axes.margins(y=0.25)
                axes.set_xlim(-0.7, len(rules) - 0.3)
                axes.set_xticks([])
            percent_axis(axes, "y", 3)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y")
            axes.set_title(words(client, 26), fontsize=9.5)
            if over and place >= len(clients) - columns:
                axes.set_xlabel("epsilon", fontsize=9)
        handles, labels = made.axes[0].get_legend_handles_labels()
        columns = 2 if max(map(len, labels)) > _SHORT_NAME else 3
        made.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=2.0, columnspacing=1.0)
        return made

    return draw


def client_change(found: Analysis, cell: Cell, rule: str, client: str) -> float | None:
    """Mean over seeds of one client's error against its seasonal baseline, as a relative change."""
    change = client_changes(found, cell, rule).get(client)
    return None if change is None else change[0]
