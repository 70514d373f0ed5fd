"""The picture of what privacy costs: error against the same model without noise, over epsilon."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.axes import MARKERS, STYLES, epsilon_axis, percent_axis
from fedpriv.reports.comparison.cost import NEAR, Cost, costs
from fedpriv.reports.comparison.cost_words import main_costs, several
from fedpriv.reports.drawing import Draw, Palette, figure, words

_LINES = 4


def cost_figure(found: Analysis) -> Draw | None:
    """A line for each place of the best contender, with bands, and thin ones for the next; two epsilons or more."""
    main = [cost for cost in main_costs(found) if len(cost.points) > 1][:_LINES]
    if not main:
        return None
    other = [c for c in costs(found) if c.contender != main[0].contender and c.where == main[0].where][: 4 - len(main)]
    shown = [*main, *(c for c in other if len(c.points) > 1)]

    def draw(palette: Palette) -> Figure:
        made, axes = figure(3.1 + 0.22 * ((len(shown) + 2) // 2))
        axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.2, label="the same model without noise")
        axes.axhline(NEAR, color=palette.muted, linestyle=(0, (1, 3)), linewidth=1.2, label=f"{NEAR * 100:g} % more")
        for place, cost in enumerate(shown):
            x = list(cost.points)
            mean, low, high = (np.array([p.change[i] for p in cost.points.values()]) for i in range(3))
            shade = palette.series[place]
            if place == 0 and np.isfinite(low).all():
                axes.fill_between(x, low, high, color=shade, alpha=0.16, linewidth=0)
            axes.plot(
                x, mean, color=shade, linestyle=STYLES[place], marker=MARKERS[place], markersize=4.5, linewidth=1.7,
                label=_label(found, cost),
            )  # fmt: skip
        epsilon_axis(axes, found.epsilons)
        percent_axis(axes, "y")
        axes.grid(axis="y")
        axes.set_xlabel("epsilon (less is more private)")
        axes.set_ylabel("error against the same\nmodel without noise")
        made.legend(loc="outside upper left", ncols=2, handlelength=2.2, columnspacing=1.0)
        return made

    return draw


def _label(found: Analysis, cost: Cost) -> str:
    parts = [cost.contender if several(costs(found)) else "", cost.where]
    return words(", ".join(filter(None, parts)) or "the model", 26)
