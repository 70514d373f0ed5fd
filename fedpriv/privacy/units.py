"""What is protected (the privacy unit) and against which change of it (the neighbouring relation).

A series is x_m[t]: meter m, calendar step t of a public grid. The unit names the part of it that two neighbouring
data sets may differ in; an epsilon without unit and relation says nothing. Larger units contain smaller ones, so one
mechanism has a whole ladder of epsilons: reading <= day <= week <= month <= meter.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from dp_accounting import NeighboringRelation

from fedpriv.errors import InputError

DAYS_IN_MONTH = 31  # the longest month, so that the rung covers every one

Kind = Literal["event", "meter", "client"]


class Relation(StrEnum):
    """How two neighbouring data sets differ in one unit.

    ZERO_OUT: the unit is replaced by "no reading"; windows that touch it contribute nothing. Counts stay public.
    REPLACE_ONE: the unit's readings change arbitrarily; about twice the epsilon of ZERO_OUT.
    ADD_REMOVE: the unit is there or not. The calendar and the number of meters are public and index every
        sampler here, so this costs what ZERO_OUT costs.
    """

    ZERO_OUT = "zero-out"
    REPLACE_ONE = "replace-one"
    ADD_REMOVE = "add-remove"

    @classmethod
    def parse(cls, value: Relation | NeighboringRelation | str) -> Relation:
        """From the scenario's word or from dp-accounting's enum.

        Raises:
            InputError: an unknown word.
        """
        if isinstance(value, NeighboringRelation):
            return _FROM_NEIGHBORING[value]
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(r.value for r in cls)
            raise InputError(f"privacy.relation={value!r} is not one of {known}; nothing was started.") from None

    @property
    def neighboring(self) -> NeighboringRelation:
        """The same relation in dp-accounting's terms."""
        return _NEIGHBORING[self]


_NEIGHBORING = {
    Relation.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
    Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    Relation.ADD_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
}
_FROM_NEIGHBORING = {n: r for r, n in _NEIGHBORING.items()}


@dataclass(frozen=True)
class Unit:
    """A privacy unit.

    Attributes:
        name: as shown in labels: reading, day, week, month, meter, client or `event:W`.
        kind: `event` (any `steps` consecutive readings of one meter, all channels), `meter` (the whole series of
            one meter) or `client` (everything that one party holds).
        steps: readings in the unit, w >= 1; 0 for meter and client, whose length is that of the calendar.
    """

    name: str
    kind: Kind
    steps: int

    def __post_init__(self) -> None:
        """Refuses a unit without readings."""
        if (self.kind == "event") != (self.steps >= 1):
            raise InputError(f"unit {self.name!r}: steps={self.steps} does not fit kind {self.kind!r}.")

    @classmethod
    def parse(cls, name: str, *, steps_per_day: int) -> Unit:
        """`reading`, `day`, `week`, `month`, `meter`, `client`, or `event:W` for any W consecutive readings.

        Args:
            name: the scenario's word.
            steps_per_day: readings in 24 hours on the public calendar (24 for hourly data); 1 when a step is
                longer than a day, so that a day is never less than one reading.

        Raises:
            InputError: an unknown word or a steps_per_day below 1.
        """
        if steps_per_day < 1:
            raise InputError(f"steps_per_day={steps_per_day} is below 1; nothing was started.")
        days = {"day": 1, "week": 7, "month": DAYS_IN_MONTH}
        if name == "reading":
            return READING
        if name in days:
            return cls(name, "event", days[name] * steps_per_day)
        if name in ("meter", "client"):
            return METER if name == "meter" else CLIENT
        if match := re.fullmatch(r"event:([1-9]\d{0,8})", name):
            return cls(name, "event", int(match[1]))
        known = "reading, day, week, month, meter, client, event:W"
        raise InputError(f"privacy.unit={name!r} is not one of {known}; nothing was started.")


READING = Unit("reading", "event", 1)
METER = Unit("meter", "meter", 0)
CLIENT = Unit("client", "client", 0)


def event_unit(steps: int) -> Unit:
    """Any `steps` consecutive readings of one meter."""
    return Unit(f"event:{steps}", "event", steps)


def ladder_units(steps_per_day: int) -> tuple[Unit, ...]:
    """The rungs of the published ladder, smallest first: reading, day, week, month (31 days), meter."""
    return tuple(Unit.parse(n, steps_per_day=steps_per_day) for n in ("reading", "day", "week", "month", "meter"))


def contains(outer: Unit, inner: Unit) -> bool:
    """Whether every `inner` lies within some `outer`, so that epsilon(inner) <= epsilon(outer)."""
    size = {"event": 0.0, "meter": math.inf, "client": math.inf}
    rank = {"event": 0, "meter": 1, "client": 2}
    return (rank[outer.kind], outer.steps or size[outer.kind]) >= (rank[inner.kind], inner.steps or size[inner.kind])
