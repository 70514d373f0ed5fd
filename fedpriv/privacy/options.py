"""Options of rules by name: one registry look-up and one check of values for controllers, gradient rules, filters."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from fedpriv.errors import InputError

T = TypeVar("T")


def build(registry: Mapping[str, type[T]], what: str, name: str, options: Mapping[str, object], **fixed: object) -> T:
    """The rule `name` of `registry` with its `options`; `fixed` are facts of the run that no option may set.

    Args:
        registry: name -> dataclass whose fields are the options.
        what: kind of rule, for messages.

    Raises:
        InputError: unknown name or option, or a value of the wrong type or out of range; nothing was started.
    """
    if name not in registry:
        near = difflib.get_close_matches(name, list(registry), n=1, cutoff=0.0)[0]
        known = ", ".join(registry)
        raise InputError(f"unknown {what} {name!r}; the nearest is {near!r} (known: {known}). Nothing was started.")
    kind = registry[name]
    assert dataclasses.is_dataclass(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    allowed = [f for f in fields if not fields[f].metadata.get("fixed")]
    values: dict[str, Any] = {key: value for key, value in fixed.items() if key in fields}
    for option, value in options.items():
        if option not in allowed:
            listed = ", ".join(allowed) or "none"
            raise InputError(f"{what} {name!r} has no option {option!r}; it allows: {listed}. Nothing was started.")
        values[option] = _typed(f"{what} {name!r}: {option}", value, str(fields[option].type))
    return kind(**values)  # pyright: ignore[reportReturnType]


def constants(rule: object) -> dict[str, Any]:
    """Every option of a rule with the value in force, for labels."""
    assert dataclasses.is_dataclass(rule)
    return {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if not f.metadata.get("fixed")}


def in_range(rule: str, option: str, value: float, *, low: float, high: float = math.inf, closed: str = "") -> None:
    """Refuses a value outside (low, high); `closed` names the ends that belong to it, as in "low,high".

    Raises:
        InputError: it is outside, infinite or not a number.
    """
    above = value >= low if "low" in closed else value > low
    below = value <= high if "high" in closed else value < high
    if not (math.isfinite(value) and above and below):
        left, right = "[" if "low" in closed else "(", "]" if "high" in closed else ")"
        raise InputError(f"{rule}: {option}={value:g} is not in {left}{low:g}, {high:g}{right}. Nothing was started.")


def _typed(where: str, value: object, kind: str) -> bool | int | float:
    if kind == "bool":
        if not isinstance(value, bool):
            raise InputError(f"{where}={value!r} is not true or false. Nothing was started.")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}={value!r} is not a number. Nothing was started.")
    if kind == "int":
        if value != int(value):
            raise InputError(f"{where}={value!r} is not a whole number. Nothing was started.")
        return int(value)
    return float(value)
