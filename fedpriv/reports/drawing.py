"""How a picture is drawn and saved: once in stand-in colours as inline SVG, once in print colours as PNG.

In the SVG the stand-in colours are replaced by the page's CSS variables, so that one picture serves light mode, dark
mode and paper. Colours are from the Okabe-Ito set, and every series also differs in marker or line style. Pictures
are as wide as a phone can show (`WIDTH`), so that their text stays readable there.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fedpriv.reports.atomic import replace_file

WIDTH = 5.0  # inches at 72 points: text of 10 points is still 10 px high on a phone of 360 px


@dataclass(frozen=True)
class Palette:
    """Colours by role, as matplotlib takes them."""

    text: str = "#1c2430"
    muted: str = "#5b6675"
    grid: str = "#d9dee5"
    paper: str = "#ffffff"
    ours: str = "#0072b2"
    naive: str = "#d55e00"
    last: str = "#8a6d9b"
    other: str = "#009e73"
    s0: str = "#0072b2"
    s1: str = "#d55e00"
    s2: str = "#009e73"
    s3: str = "#aa4499"
    s4: str = "#b37700"
    s5: str = "#4b3fa8"
    s6: str = "#8c2d04"
    s7: str = "#5b6675"

    @property
    def series(self) -> tuple[str, ...]:
        """Colours for series that have no role of their own."""
        return (self.s0, self.s1, self.s2, self.s3, self.s4, self.s5, self.s6, self.s7)


LIGHT = Palette()
_ROLES = tuple(Palette.__dataclass_fields__)
STAND_IN = Palette(*(f"#f0e1{i:02x}" for i in range(1, len(_ROLES) + 1)))
_CSS = {getattr(STAND_IN, role): f"var(--fig-{role})" for role in _ROLES}

Draw = Callable[[Palette], Figure]


@dataclass(frozen=True)
class Picture:
    """One picture of the page: `svg` is inlined, the PNG of the same name lies in figures/."""

    name: str
    alt: str
    svg: str


def _style(palette: Palette) -> Any:
    return {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.text,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "text.color": palette.text,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.text,
        "ytick.labelcolor": palette.text,
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.linewidth": 1.8,
        "svg.fonttype": "path",  # the page must not depend on the reader's fonts
    }


def svg(draw: Draw, name: str, alt: str) -> str:
    """One <svg> element with CSS variables for colours and ids of its own."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_style(STAND_IN), "svg.hashsalt": name}):
        draw(STAND_IN).savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    # Ids are per document once inlined: two pictures must not share glyphs or clip paths.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1).strip()


def png(draw: Draw, path: Path) -> None:
    """The same picture in print colours, 200 dots per inch."""
    with matplotlib.rc_context(_style(LIGHT)):
        made = draw(LIGHT)
        replace_file(
            path, lambda t: made.savefig(t, format="png", dpi=200, facecolor=LIGHT.paper, metadata={}), durable=False
        )


def figure(height: float) -> tuple[Figure, Axes]:
    """A figure of the common width with one set of axes; `height` in inches."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    return made, made.add_subplot()


def legend(made: Figure, axes: Axes, columns: int) -> None:
    """Above the axes, where it can cover no data."""
    handles, labels = axes.get_legend_handles_labels()
    made.legend(
        handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2, handletextpad=0.5
    )


def date_axis(axes: Axes) -> None:
    """Few, short date labels."""
    locator = AutoDateLocator(minticks=3, maxticks=7)  # with fewer it finds none for two and a half to three days
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def plain_ticks(axes: Axes) -> None:
    """Numbers instead of powers of ten on a logarithmic axis, few enough not to touch."""
    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def words(text: str, longest: int = 26) -> str:
    """A name out of somebody's data as matplotlib text: no formulae, not too long."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return short.replace("$", r"\$")
