"""Pictures of a user's own series: forecast fans, and filled gaps in their surroundings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fedpriv.forecasting import Forecast
from fedpriv.imputation import Imputation
from fedpriv.reports.drawing import WIDTH, Draw, Palette, date_axis, png, words

PANELS = 6  # series in one picture; the file has all of them
_HEIGHT = 1.75  # inches of a panel
_AROUND = 3  # lengths of a gap that are shown on either side of it

Floats = NDArray[np.float64]


def draw_forecast(result: Forecast, path: Path) -> None:
    """A PNG with a fan for each of the first series."""
    shown = list(range(min(PANELS, len(result.series))))

    def panel(axes: Axes, row: int, palette: Palette) -> None:
        horizon = len(result.stamps)
        # A few horizons of the past show the habit; more would squeeze the forecast.
        past = slice(-min(len(result.past_stamps), max(3 * horizon, 24)), None)
        before, read = result.past_stamps[past], result.past[row, past]
        axes.plot(before, read, color=palette.muted, linewidth=1.2, label="read")
        _fan(axes, result.stamps, result.quantiles[row], palette)
        axes.plot(result.stamps, result.mean[row], color=palette.ours, label="forecast")

    _write(path, [result.series[i] for i in shown], panel, unit=result.unit, one_axis=True)


def draw_imputation(result: Imputation, path: Path) -> None:
    """A PNG with the surroundings of the longest filled gap of each of the first series that had one."""
    columns = np.flatnonzero(result.filled.any(axis=0))[:PANELS]
    if not len(columns):
        columns = np.arange(min(PANELS, len(result.table.columns)))
    names = result.table.columns

    def panel(axes: Axes, row: int, palette: Palette) -> None:
        column = int(columns[row])
        filled, values = result.filled[:, column], result.table.values[:, column]
        around = _surroundings(filled)
        stamps = result.table.index[around]
        axes.plot(stamps, np.where(filled, np.nan, values)[around], color=palette.muted, linewidth=1.2, label="read")
        made = np.where(_joined(filled), values, np.nan)[
            around
        ]  # with the readings beside, so that the line meets them
        bands = result.band(names[column])
        if bands:
            # Bands narrow to the readings beside them, so that a gap of a single step has one that can be seen.
            fan = np.stack(
                [np.where(filled, band, np.where(_joined(filled), values, np.nan)) for band in bands.values()]
            )
            _fan(axes, stamps, fan[:, around], palette)
        # A point for every filled step: of a gap between two gaps that stay, a line alone would not be seen.
        axes.plot(stamps, made, color=palette.ours, linewidth=1.4, zorder=3)
        alone = np.where(filled, values, np.nan)[around]
        axes.plot(
            stamps, alone, color=palette.ours, linestyle="none", marker="o", markersize=3, label="filled", zorder=3
        )

    _write(path, [names[int(c)] for c in columns], panel, unit=result.table.unit, one_axis=False)


def _fan(axes: Axes, stamps: pd.DatetimeIndex, quantiles: Floats, palette: Palette) -> None:
    """Two bands, 5 to 95 % and 25 to 75 %."""
    outer = {"color": palette.ours, "alpha": 0.18, "linewidth": 0, "label": "5 to 95 %"}
    inner = {"color": palette.ours, "alpha": 0.30, "linewidth": 0, "label": "25 to 75 %"}
    if len(stamps) and np.isfinite(quantiles).any():
        axes.fill_between(stamps, quantiles[0], quantiles[-1], **outer)
        axes.fill_between(stamps, quantiles[1], quantiles[-2], **inner)


def _joined(filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The filled steps and the step on either side of them."""
    wide = filled.copy()
    wide[:-1] |= filled[1:]
    wide[1:] |= filled[:-1]
    return wide


def _surroundings(filled: NDArray[np.bool_]) -> slice:
    """The longest filled gap with some of what lies around it; the newest part of a series without one."""
    length = len(filled)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8))).reshape(-1, 2)
    if not len(edges):
        return slice(max(0, length - 168), length)
    begin, stop = edges[np.argmax(edges[:, 1] - edges[:, 0])]
    around = max(48, _AROUND * int(stop - begin))
    return slice(max(0, int(begin) - around), min(length, int(stop) + around))


def _write(
    path: Path, names: list[str], panel: Callable[[Axes, int, Palette], None], *, unit: str, one_axis: bool
) -> None:
    """Panels below one another; with `one_axis` they share their dates, which stand below the last."""

    def draw(palette: Palette) -> Figure:
        made = Figure(figsize=(WIDTH, 0.35 + _HEIGHT * max(1, len(names))), layout="constrained")
        for row, name in enumerate(names):
            axes = made.add_subplot(len(names), 1, row + 1)
            panel(axes, row, palette)
            date_axis(axes)
            axes.set_title(words(name, 60))
            axes.set_ylabel(words(unit) or "value")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.margins(x=0.01)
            axes.grid(axis="y")
            if one_axis and row < len(names) - 1:
                axes.tick_params(axis="x", labelbottom=False)
                axes.xaxis.get_offset_text().set_visible(False)
        made.align_ylabels()
        entries: dict[str, Any] = {}
        for axes in made.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        made.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=4, handlelength=1.6)
        return made

    drawing: Draw = draw
    png(drawing, path)
