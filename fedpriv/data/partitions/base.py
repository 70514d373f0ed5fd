"""What a partition is: units, who holds them, and how one client's series is put together from its units.

A unit is what is given to a client whole: a series of the source (a utility, a station, a household), one meter of it,
or a calendar block of a meter. Every unit belongs to exactly one client, so every reading does, and the budgets of
clients compose in parallel.

A client keeps the public calendar of the source whatever it holds of it; what belongs to others is NaN in its copy,
like any other gap. So windows that straddle a border have fewer given entries and targets, a window without a
target contributes a loss and a gradient of exactly zero, and the expected batch (the denominator of every release)
still follows from public numbers alone: meters, calendar and sampling rate. A client that holds a tenth of its
calendar therefore has a tenth of the signal at the same noise; `Division.fill` says how much that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import DataConfig, PartitionConfig
from fedpriv.data.sources.base import Parts, Series
from fedpriv.data.windows import split
from fedpriv.errors import InputError

_DAY = cast(pd.Timedelta, pd.Timedelta(days=1))


@dataclass(frozen=True)
class Public:
    """What is known before any reading is parsed: the names that the source offers, and the settings.

    Attributes:
        data, config: the sections of the scenario.
        available: series that the source offers (or that the user chose), in order.
        chosen: the user named exactly these.
    """

    data: DataConfig
    config: PartitionConfig
    available: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True)
class Pool(Public):
    """The same with the readings of all series, as only a simulation has them.

    Attributes:
        window: steps of a window, L.
        parts: the source's customary split, or None for fractions.
        read: one of `available`, resampled and with the chosen channels only.
    """

    window: int = 2
    parts: Parts | None = None
    read: Callable[[str], Series] = field(default=lambda name: _unreadable(name), repr=False)

    def slices(self, calendar: Calendar) -> tuple[slice, slice, slice]:
        """Train, validation and test on `calendar`, as the clients will have them."""
        return part_slices(calendar.length, calendar.start, calendar.step, self.data, self.parts, self.window)


def _unreadable(name: str) -> Series:
    raise ValueError(f"series {name!r} cannot be read here: only names are public")


@dataclass(frozen=True)
class Calendar:
    """`length` stamps from `start`, `step` apart."""

    start: pd.Timestamp
    step: pd.Timedelta
    length: int

    @classmethod
    def of(cls, series: Sequence[Series]) -> Calendar:
        """The least calendar that holds all of `series`.

        Raises:
            InputError: their steps or phases differ, so that they cannot be divided among the same clients.
        """
        first = min(s.start for s in series)
        step = series[0].step
        if any(s.step != step or (s.start - first).value % step.value for s in series):
            raise InputError("the series have different steps, so they cannot share a calendar; nothing was started.")
        stop = max(s.start + s.values.shape[1] * s.step for s in series)
        return cls(first, step, int((stop - first).value // step.value))

    @property
    def index(self) -> pd.DatetimeIndex:
        """[T] stamps."""
        return pd.date_range(self.start, periods=self.length, freq=self.step)

    def offset(self, series: Series) -> int:
        """Position of the first reading of `series`."""
        return int((series.start - self.start).value // self.step.value)

    def midnight(self, position: int) -> int:
        """The last step at or before `position` that begins a day (or the first step of the calendar)."""
        stamp = self.start + position * self.step
        back = int((stamp - stamp.floor(_DAY)).value // self.step.value)
        return max(position - back, 0)


@dataclass(frozen=True)
class Unit:
    """What is given to one client whole.

    Attributes:
        series: name in the source.
        meter: index of the meter; None: all of them.
        span: [first, stop) on the common calendar; None: all of it.
    """

    series: str
    meter: int | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Division:
    """Who holds what.

    Attributes:
        holdings: client -> its units, in partition order of the clients.
        calendar: the common calendar that spans refer to; None where no unit has a span.
        classes: unit -> label of the class that decided about it (cluster, season); empty where none did.
        trim: clients keep only the part of the calendar from their first unit to their last.
    """

    holdings: Mapping[str, tuple[Unit, ...]]
    calendar: Calendar | None = None
    classes: Mapping[Unit, str] = field(default_factory=dict)
    trim: bool = False

    def fill(self, client: str) -> float:
        """Share of its meters' public calendar that the client holds, in (0, 1]."""
        if self.calendar is None or self.trim:
            return 1.0
        spans = [unit.span or (0, self.calendar.length) for unit in self.holdings[client]]
        rows = len({(unit.series, unit.meter) for unit in self.holdings[client]})
        return sum(stop - first for first, stop in spans) / (rows * self.calendar.length)

    def describe(self) -> dict[str, dict[str, Any]]:
        """For every client: number of units, its series, share of its calendar, units of each class."""
        return {
            client: {
                "units": len(units),
                "series": list(dict.fromkeys(unit.series for unit in units)),
                "fill": round(self.fill(client), 4),
                "classes": dict(sorted(Counter(self.classes[u] for u in units if u in self.classes).items())),
            }
            for client, units in self.holdings.items()
        }


class Partitioner(Protocol):
    """A rule that divides the series of a source among clients."""

    own_split: ClassVar[bool]
    """Clients have calendars of their own, which are split by fractions, not by the source's customary dates."""

    def wanted(self, config: PartitionConfig) -> int:
        """How many series of the source are divided when none are named; 0: all of them."""
        ...

    def names(self, public: Public) -> tuple[str, ...]:
        """Client names in partition order, from public facts alone.

        Raises:
            InputError: more clients are wanted than there can be, or options that do not fit the source.
        """
        ...

    def divide(self, pool: Pool) -> Division:
        """Every unit to exactly one client; the same for the same settings and readings.

        Raises:
            InputError: fewer units than clients.
        """
        ...

    def alter(self, client: str, series: Series, pool: Pool) -> Series:
        """What the client observes of what it holds (channels, rates, outages); mostly all of it."""
        ...

    def disclosed(self, config: PartitionConfig) -> tuple[str, ...]:
        """What a simulation of this partition takes as public although it follows from private readings."""
        ...


class Rule:
    """Defaults of a `Partitioner`: clients `client-000` ..., all series of the source, everything observed."""

    own_split: ClassVar[bool] = False

    def wanted(self, config: PartitionConfig) -> int:
        """`partition.series`."""
        return config.series

    def names(self, public: Public) -> tuple[str, ...]:
        """`client-000`, `client-001`, ...: `partition.clients` of them, or one for each series (0)."""
        count = public.config.clients or len(public.available)
        if unit_kind(public) == "series" and count > len(public.available):
            raise too_few_units(public, len(public.available), "series")
        return numbered(count)

    def alter(self, client: str, series: Series, pool: Pool) -> Series:
        """Everything that the client holds."""
        return series

    def disclosed(self, config: PartitionConfig) -> tuple[str, ...]:
        """Nothing: who holds what follows from names and the seed."""
        return ()


def numbered(count: int) -> tuple[str, ...]:
    """`client-000`, `client-001`, ..."""
    return tuple(f"client-{k:03d}" for k in range(count))


def unit_kind(public: Public) -> str:
    """`series`, `meter` or `block`; `auto` is series where there are two or more for each client, else blocks.

    With one series for each client every way of dealing them out is the natural division under other names.
    """
    config = public.config
    if config.kind == "dirichlet" and config.by == "season":
        return "block"
    if config.unit != "auto":
        return config.unit
    return "series" if len(public.available) >= 2 * config.clients else "block"


def too_few_units(public: Public, units: int, what: str) -> InputError:
    """The refusal when somebody would have nothing."""
    config = public.config
    remedy = (
        ""
        if config.kind == "temporal"
        else (
            ", more series (partition.series, data.clients), or calendar blocks (partition.unit=block, smaller "
            "partition.block_days)"
        )
    )
    return InputError(
        f"partition.kind={config.kind}, partition.clients={config.clients}: {units} {what} cannot be divided among "
        f"{config.clients} clients so that each has one; allowed are up to {units} clients{remedy}. "
        "Nothing was started."
    )


def customary(data: DataConfig, parts: Parts | None) -> Parts:
    """The boundaries that the scenario gives, else the source's customary ones; empty where fractions decide."""
    defaults = DataConfig.model_fields
    own = (
        bool(data.train_until or data.validation_until)
        or data.train_fraction != defaults["train_fraction"].default
        or data.validation_fraction != defaults["validation_fraction"].default
    )
    return parts if parts is not None and not own else Parts(data.train_until, data.validation_until)


def part_slices(
    num_steps: int, start: pd.Timestamp, step: pd.Timedelta, data: DataConfig, parts: Parts | None, window: int
) -> tuple[slice, slice, slice]:
    """Train, validation and test of a calendar, by the scenario's dates, the source's, or fractions."""
    chosen = customary(data, parts)
    return split(
        num_steps,
        window=window,
        start=start,
        step=step,
        train_until=chosen.train_until,
        validation_until=chosen.validation_until,
        test_until=chosen.test_until,
        train_fraction=data.train_fraction,
        validation_fraction=data.validation_fraction,
    )


def assemble(division: Division, client: str, read: Callable[[str], Series]) -> Series:
    """[M, T, C] of what `client` holds; NaN where others do. One whole series is returned as it is."""
    units = division.holdings[client]
    if len(units) == 1 and units[0].meter is None and units[0].span is None:
        return read(units[0].series)
    sources = {name: read(name) for name in dict.fromkeys(unit.series for unit in units)}
    calendar = division.calendar or Calendar.of(list(sources.values()))
    first, stop = 0, calendar.length
    if division.trim:
        spans = [unit.span for unit in units if unit.span is not None]
        first, stop = min(a for a, _ in spans), max(b for _, b in spans)
    example = next(iter(sources.values()))
    rows: dict[tuple[str, int], NDArray[np.float64]] = {}
    for unit in units:
        series = sources[unit.series]
        offset, length = calendar.offset(series), series.values.shape[1]
        begin, end = unit.span or (0, calendar.length)
        begin, end = max(begin, offset), min(end, offset + length)
        for meter in range(len(series.meters)) if unit.meter is None else (unit.meter,):
            row = rows.get((unit.series, meter))
            if row is None:
                row = rows[unit.series, meter] = np.full((calendar.length, len(series.channels)), np.nan)
            row[begin:end] = series.values[meter, begin - offset : end - offset]
    meters = [name if len(sources[name].meters) == 1 else f"{name}/{sources[name].meters[m]}" for name, m in rows]
    return replace(
        example,
        values=np.stack(list(rows.values()))[:, first:stop],
        start=cast(pd.Timestamp, calendar.start + first * calendar.step),
        meters=tuple(meters),
    )
