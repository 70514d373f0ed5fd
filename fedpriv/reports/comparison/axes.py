"""Axes that several pictures of a comparison share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))


def percent_axis(axes: Axes, which: str, ticks: int = 5) -> None:
    """Ticks such as −10 %, 0, +10 %, of shares."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))


def percent(value: float) -> str:
    """`−10 %`, `0`, `+2.5 %`."""
    return "0" if abs(value) < 1e-9 else f"{value * 100:+.3g} %".replace("-", "−")


def epsilon_axis(axes: Axes, epsilons: Sequence[float]) -> None:
    """Logarithmic, with ticks at what was run (fewer where they would touch); two or more different epsilons."""
    axes.set_xscale("log")
    low, high = min(epsilons), max(epsilons)
    axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    shown: list[float] = []
    last = -math.inf
    for epsilon in sorted(set(epsilons)):
        place = math.log(epsilon / low) / math.log(high / low)
        if place - last > 0.09:
            shown.append(epsilon)
            last = place
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
