"""How numbers are written for people: significant digits, epsilons rounded up, deltas."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant, no exponent where none is needed, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.{digits}g}"
    if abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{decimals}f}"


def at_most(epsilon: float | None) -> str:
    """An epsilon for people, rounded up to three digits: a promise must not be rounded to a stronger one."""
    if epsilon is None or not math.isfinite(epsilon) or epsilon <= 0:
        return number(epsilon)
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return number(math.ceil(epsilon / unit - 1e-9) * unit)


def rung(epsilon: float | None) -> str:
    """The epsilon of one unit of a ladder: in words where nothing finite can be said, which is no promise at all."""
    return at_most(epsilon) if epsilon is not None and math.isfinite(epsilon) else "no finite one"


def small(value: float) -> str:
    """A delta for people: 1e-5, not 1e-05."""
    return f"{value:g}".replace("e-0", "e-")
