"""A user's table, checked against a trained model and laid out for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.data.table import Table, parse_stamps, regular_table, step_text
from fedpriv.data.windows import calendar_features
from fedpriv.errors import InputError
from fedpriv.trained import NOTHING, Trained, Use


@dataclass(frozen=True, eq=False)
class Panel:
    """A table laid out as the model takes it.

    Attributes:
        values: [M, T, C] float64, physical units, NaN where nothing was read.
        columns: [M][C] names of the user's columns.
        table: where it comes from, on the model's step.
        clock: what the model's clock shows at a stamp of the table.
    """

    values: NDArray[np.float64]
    columns: tuple[tuple[str, ...], ...]
    table: Table
    clock: Clock

    @property
    def names(self) -> list[str]:
        """[M * C] names of the user's columns."""
        return [name for meter in self.columns for name in meter]


@dataclass(frozen=True)
class Clock:
    """From the table's stamps to those of the model's clock.

    Attributes:
        direction: 0: as they stand; -1: local to UTC; +1: UTC to local.
        zone: IANA name.
    """

    direction: int = 0
    zone: str = ""

    def features(self, stamps: pd.DatetimeIndex) -> NDArray[np.float32]:
        """[L, F] calendar features of the stamps of one window, in which the clock is not changed."""
        if self.direction and len(stamps):
            middle = cast(pd.Timestamp, stamps[len(stamps) // 2])
            if self.direction < 0:
                aware = middle.tz_localize(self.zone, ambiguous=False, nonexistent="shift_forward")
            else:
                aware = middle.tz_localize("UTC").tz_convert(self.zone)
            stamps = stamps + self.direction * pd.Timedelta(aware.utcoffset())
        return calendar_features(stamps)


def as_table(table: Table | Any) -> Table:
    """A `Table` as it is; a DataFrame with a DatetimeIndex, checked and put on a regular calendar.

    Raises:
        InputError: another object, another index, text in numbers, stamps off the grid.
    """
    if isinstance(table, Table):
        return table
    if not isinstance(table, pd.DataFrame) or not isinstance(table.index, pd.DatetimeIndex):
        raise InputError(
            "the table must be a DataFrame with a DatetimeIndex and a column for each series (or a fedpriv Table); "
            f"got {type(table).__name__}"
            + (f" with a {type(table.index).__name__}" if isinstance(table, pd.DataFrame) else "")
            + ". Nothing was computed."
        )
    index, zone = parse_stamps(table.index.to_series(name="index"), where="the table")
    return regular_table(table.set_axis(index, axis=0), where="the table", timezone=zone)


def lay_out(
    trained: Trained,
    table: Table,
    use: Use,
    *,
    channels: Mapping[str, str] | None = None,
    resample: bool = False,
    timezone: str = "",
    unit: str = "",
) -> tuple[Panel, list[str]]:
    """Checks a table against the model and arranges its columns; and remarks for the user.

    Args:
        channels: the model's channel -> the table's column (or its part after the slash).
        resample: average a finer table to the model's step.
        timezone: IANA zone of naive stamps, or in which a UTC table's series live.
        unit: of the table's readings, where known.

    Raises:
        InputError: another step, a missing channel, an unknown zone, readings outside the model's declared bounds.
    """
    table = _on_step(trained, table, use, resample=resample)
    remarks: list[str] = []
    clock = _clock(trained, table, timezone, use, remarks)
    columns = _columns(trained, table, dict(channels or {}), use)
    place = {name: i for i, name in enumerate(table.columns)}
    values = np.stack([table.values[:, [place[name] for name in meter]] for meter in columns])  # [M, T, C]
    _check_bounds(trained, values, unit or table.unit, use, remarks)
    return Panel(values, columns, table, clock), remarks


def left_out(table: Table, stamps: pd.DatetimeIndex, zone: str) -> NDArray[np.bool_]:
    """[T] the naive stamps that do not exist in `zone`, because its clocks jumped over them in spring.

    None of a table in UTC, and none where no zone is known.
    """
    if not zone or table.timezone == "UTC":
        return np.zeros(len(stamps), dtype=bool)
    there = stamps.tz_localize(zone, ambiguous=np.ones(len(stamps), dtype=bool), nonexistent="NaT")
    return np.asarray(there.isna())


def _on_step(trained: Trained, table: Table, use: Use, *, resample: bool) -> Table:
    if table.step == trained.step:
        return table
    own, theirs = step_text(trained.step), step_text(table.step)
    if table.step > trained.step or trained.step.value % table.step.value:
        raise InputError(
            f"the table's step is {theirs}, but this model was trained on steps of {own}, and {own} cannot be made of "
            f"{theirs} by averaging. Use a model that was trained on {theirs} data. {NOTHING[use]}"
        )
    if not resample:
        groups = trained.step.value // table.step.value
        raise InputError(
            f"the table's step is {theirs}, but this model was trained on steps of {own}. Add --resample (in Python "
            f"resample=True) to average every {groups} readings to one of {own}, or use a model that was trained on "
            f"{theirs} data. {NOTHING[use]}"
        )
    return table.resampled(trained.step)


def _clock(trained: Trained, table: Table, zone: str, use: Use, remarks: list[str]) -> Clock:
    if zone:
        try:
            pd.Timestamp(0).tz_localize(zone)
        except (LookupError, ValueError, TypeError):
            raise InputError(
                f"timezone={zone!r} is not a known time zone such as Europe/Berlin. {NOTHING[use]}"
            ) from None
    if trained.timezone in ("", table.timezone):
        return Clock()
    if zone:
        return Clock(-1 if trained.timezone == "UTC" else 1, zone)
    if trained.timezone == "UTC":
        remarks.append(
            "the model's clock is UTC and the table's stamps name no zone: they are taken as UTC (--timezone)"
        )
    else:
        remarks.append("the model's clock is local time and the table's is UTC: taken as it stands (--timezone)")
    return Clock()


def _columns(trained: Trained, table: Table, mapping: dict[str, str], use: Use) -> tuple[tuple[str, ...], ...]:
    """[M][C] the columns of each meter."""
    for channel in mapping:
        if channel not in trained.channels:
            raise InputError(
                f"the model has no channel {channel!r}; it has {', '.join(trained.channels)}. {NOTHING[use]}"
            )
    if len(trained.channels) == 1 and not mapping:
        return tuple((name,) for name in table.columns)
    wanted = [mapping.get(channel, channel) for channel in trained.channels]
    if all(name in table.columns for name in wanted):
        return (tuple(wanted),)
    meters = list(dict.fromkeys(c.rpartition("/")[0] for c in table.columns if c.rpartition("/")[2] in wanted))
    for meter in meters or [""]:
        for channel, name in zip(trained.channels, wanted, strict=True):
            full = f"{meter}/{name}" if meter else name
            if full not in table.columns:
                near = difflib.get_close_matches(full, table.columns, n=1, cutoff=0.0)[0]
                raise InputError(
                    f"the model needs the channel{'s' * (len(wanted) > 1)} {', '.join(trained.channels)}, and the "
                    f"table has no column {full!r} (the nearest is {near!r}). Name the column with --channel "
                    f"{channel}=COLUMN (in Python channels={{{channel!r}: ...}}). {NOTHING[use]}"
                )
    return tuple(tuple(f"{meter}/{name}" for name in wanted) for meter in meters)


def _check_bounds(trained: Trained, values: NDArray[np.float64], unit: str, use: Use, remarks: list[str]) -> None:
    """Window scaling takes any unit; declared bounds do not."""
    data = trained.scenario.data
    if data.scaling != "bounds":
        return
    bounds = f"{data.low:g} to {data.high:g}" + (f" {trained.unit}" if trained.unit else "")
    if unit and trained.unit and unit != trained.unit:
        raise InputError(
            f"the table is in {unit}, but this model takes readings in {trained.unit} (it was trained with public "
            f"bounds, {bounds}). Convert them first. {NOTHING[use]}"
        )
    read = np.isfinite(values)
    outside = int(((values < data.low) | (values > data.high))[read].sum())
    if outside > 0.5 * read.sum():
        raise InputError(
            f"{outside} of {int(read.sum())} readings lie outside the public bounds that the model was trained with "
            f"({bounds}); is the table in another unit? {NOTHING[use]}"
        )
    if outside:
        remarks.append(f"{outside} readings lie outside the model's public bounds ({bounds})")
