"""Axes that several pictures of a comparison share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.drawing import Palette

MAX_LINES = 8  # contenders drawn in colour; the rest are thin and grey
MAX_PANELS = 6
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


@dataclass(frozen=True)
class Look:
    """How a series is drawn, the same in all pictures of a page."""

    colour: str
    style: Any
    marker: str


def look(palette: Palette, names: Sequence[str], name: str) -> Look:
    """Of one of the compared: settings of a collaboration have a look of their own, others one by their place."""
    settings = list(WORDS.values())
    base = name.partition(" · ")[0]
    taken = [n for n in names if n in settings]
    if base in settings and (name == base or not taken):
        place = settings.index(base)
    else:
        place = list(names).index(name)
    if place >= len(MARKERS):
        return Look(palette.muted, "-", "")
    return Look(palette.series[place], STYLES[place], MARKERS[place])


def label_lines(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would touch.

    Args:
        axes: with its final limits; room to the right is the caller's.
        ends: (height of the line's end, name, colour).
    """
    low, high = axes.get_ylim()
    inches = axes.figure.get_size_inches()[1] * 0.75  # pyright: ignore[reportAttributeAccessIssue]
    step = 0.17 / inches
    order = sorted(ends)
    places: list[float] = []
    for height, _, _ in order:
        wanted = (height - low) / (high - low)
        places.append(wanted if not places else max(wanted, places[-1] + step))
    over = places[-1] - 1.0 if places else 0.0
    for i in reversed(range(len(places))):  # push back down what went out at the top
        if over > 0:
            limit = 1.0 if i == len(places) - 1 else places[i + 1] - step
            places[i] = min(places[i], limit)
    for (height, name, shade), place in zip(order, places, strict=True):
        axes.annotate(
            name,
            xy=(1.0, (height - low) / (high - low)),
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=shade,
            fontsize=8.5,
            va="center",
            ha="left",
            arrowprops={
                "arrowstyle": "-",
                "color": shade,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0.0, 0.5),  # to where the name begins, not through it
            },
            annotation_clip=False,
        )
