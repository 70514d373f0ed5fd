"""What the tables of a sweep's page are made of: titled tables, changes, intervals, p-values as cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedpriv.reports.cells import Cell, Grid

_SORTABLE = "sortable client"
_ROUNDED = 0.0005  # below this a change is shown as 0.0 %


@dataclass(frozen=True)
class Titled:
    """A table with its title and a line about it."""

    title: str
    grid: Grid
    text: str = ""
    kind: str = _SORTABLE


def change(value: float | None, *, sure: bool = True) -> Cell:
    """A relative change of an error: less is good; without a colour where it may be chance."""
    if value is None or not math.isfinite(value):
        return Cell("–")
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    if abs(value) < _ROUNDED:
        return Cell(f"{sign}{abs(value) * 100:.2f} %" if abs(value) >= _ROUNDED / 10 else "0.0 %", value, "unsure")
    tone = "good" if value < 0 else "bad" if value > 0 else ""
    return Cell(f"{sign}{abs(value) * 100:.1f} %", value, tone if sure else "unsure")


def span(low: float, high: float) -> Cell:
    """An interval of shares."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return Cell("–")
    places = 1 if max(abs(low), abs(high)) >= 2 * _ROUNDED else 2  # else it would read as 0.0 to 0.0
    return Cell(f"{low * 100:+.{places}f} to {high * 100:+.{places}f} %".replace("-", "\N{MINUS SIGN}"), low)


def p_value(value: float) -> Cell:
    """A p-value for people."""
    if not math.isfinite(value):
        return Cell("–")
    return Cell("< 0.001" if value < 0.001 else f"{value:.2g}", value)
