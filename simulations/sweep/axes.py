"""From the values of a grid to axes: what the tables call each of them, and the settings that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from fedpriv.config import parse_assignments
from fedpriv.errors import InputError
from simulations.sweep.sections import Axis, Point, dotted

EPSILON, ENABLED = "privacy.epsilon", "privacy.enabled"


def axes_of(grid: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of a grid; an empty one has none.

    Raises:
        InputError: a value that is not a setting, or one that is named twice.
    """
    return tuple(_axis(key, values) for key, values in dotted(grid).items())


def _axis(key: str, values: object) -> Axis:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"grid.{key}={values!r} is not a list of values; nothing was started.")
    points = [_point(key, value) for value in values]
    labels = [point.label for point in points]
    if len(set(labels)) < len(labels):
        raise InputError(f"grid.{key} names a value twice ({', '.join(map(str, labels))}); nothing was started.")
    return Axis(key=key, values=tuple(points))


def _point(key: str, value: object) -> Point:
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        if set(table) != {"label", "set"} or not isinstance(table["set"], Mapping):
            raise InputError(
                f"grid.{key}: {dict(table)!r} is neither a plain value nor {{ label = ..., set = {{ ... }} }}; nothing "
                "was started."
            )
        return Point(label=table["label"], set=dotted(table["set"]))
    if key == EPSILON and isinstance(value, float) and math.isinf(value):
        return Point(label=math.inf, set={ENABLED: False})
    label = value if isinstance(value, str | int | float) and not isinstance(value, bool) else str(value).lower()
    return Point(label=label, set={key: value})


def listed(value: object) -> list[Any]:
    """`a,b` of the command line as a list."""
    if not isinstance(value, str):
        return [value]
    return [parse_assignments([f"x={part.strip()}"])["x"] for part in value.strip("[] ").split(",") if part.strip()]
