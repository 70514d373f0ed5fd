"""Cutting windows from a client's calendar, and the public features of every step.

Runs once per training step, so everything is one vectorised gather; calendar features are computed once per
calendar.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.errors import InputError

if TYPE_CHECKING:
    from fedpriv.data.client_data import ClientData

CALENDAR_FEATURES = 7
"""sin and cos of the hour of the day, of the day of the week and of the day of the year; weekend."""

_DAY = pd.Timedelta(days=1)


@dataclass(frozen=True)
class Windows:
    """A batch of windows as read.

    Attributes:
        values: [B, L, C] float32, physical units; 0 where nothing was read.
        observed: [B, L, C] bool, where something was read.
        calendar: [B, L, F] float32, public features.
    """

    values: Tensor
    observed: Tensor
    calendar: Tensor

    def __len__(self) -> int:
        return self.values.shape[0]

    def rows(self, index: slice | Tensor) -> Windows:
        """The chosen rows, as a new object."""
        return Windows(*(getattr(self, f.name)[index] for f in fields(self)))


def day_steps(step: pd.Timedelta) -> int:
    """Steps in a day: 24 for one hour, 48 for half an hour; 1 for a day or more.

    Raises:
        InputError: a day is not a whole number of steps.
    """
    if step >= _DAY:
        return 1
    if _DAY.value % step.value:
        raise InputError(f"a day is not a whole number of steps of {step}; nothing was started.")
    return int(_DAY.value // step.value)


def season_steps(period: int, step: pd.Timedelta) -> int:
    """The season of the naive baseline, steps: `task.period`, or one day where it is 0."""
    return period or day_steps(step)


def split(
    num_steps: int,
    *,
    window: int,
    start: pd.Timestamp,
    step: pd.Timedelta,
    train_until: str = "",
    validation_until: str = "",
    train_fraction: float = 0.6,
    validation_fraction: float = 0.2,
    test_until: str = "",
) -> tuple[slice, slice, slice]:
    """Train, validation and test as index ranges of one calendar, in this order.

    Later parts begin one window after the boundary, so no window of one part shares a reading with a window
    of another (privacy spec: otherwise evaluation composes with training).

    Args:
        num_steps: length of the calendar, T.
        window: steps of a window, L.
        start, step: of the calendar.
        train_until, validation_until, test_until: ISO stamps, each the first one after its part. Empty: by
            fraction of the calendar (test: the end). With only `train_until` given, the rest is divided in the
            proportion of the fractions.
        train_fraction, validation_fraction: of the calendar.

    Raises:
        InputError: a stamp cannot be read, or the stamps are not in order.
    """

    def position(stamp: str, key: str) -> int:
        try:
            at = pd.Timestamp(stamp)
        except ValueError:
            at = pd.NaT
        if at is pd.NaT or not isinstance(at, pd.Timestamp):
            raise InputError(f"data.{key}={stamp!r} is not a stamp such as 2023-01-01; nothing was started.")
        if at.tzinfo is not None:
            at = at.tz_convert("UTC").tz_localize(None)
        return min(max(-((start - at).value // step.value), 0), num_steps)  # rounded up

    end = position(test_until, "test_until") if test_until else num_steps
    first = position(train_until, "train_until") if train_until else int(num_steps * train_fraction)
    if validation_until:
        second = position(validation_until, "validation_until")
    elif train_until:
        share = validation_fraction / (1 - train_fraction)
        second = first + int((end - first) * share)
    else:
        second = int(num_steps * (train_fraction + validation_fraction))
    if not first <= second <= end:
        raise InputError(
            f"data.train_until={train_until!r} and data.validation_until={validation_until!r} are not in order on a "
            f"calendar that starts at {start}; nothing was started."
        )
    return slice(0, first), slice(min(first + window, second), second), slice(min(second + window, end), end)


def even_starts(part: slice, length: int, count: int) -> NDArray[np.int64]:
    """At most `count` window starts, evenly spread and all inside `part`; [n] ascending, distinct.

    Raises:
        ValueError: the part is shorter than a window.
    """
    room = part.stop - part.start - length
    if room < 0:
        raise ValueError(f"part of {part.stop - part.start} steps holds no window of {length}")
    if count >= room + 1:
        return np.arange(part.start, part.start + room + 1)
    return part.start + (np.arange(count) * room // max(count - 1, 1)).astype(np.int64)


_WHOLE = 0.95  # share of a window: less may be missing just where it is to be scored


def held_starts(read: NDArray[np.bool_], part: slice, length: int, count: int) -> NDArray[np.int64]:
    """The same where most of `part` is not held, as in a partition by calendar blocks: evenly spread over the windows
    that were read nearly whole; empty if none was. Where half of all windows are like that, `even_starts`.

    The choice follows the readings' gaps, so it is for scores that are simulation only, never for a release.

    Args:
        read: [T] bool, at which steps of the calendar something was read.
    """
    starts = np.arange(part.start, part.stop - length + 1)
    before = np.concatenate([[0], np.cumsum(read)])
    whole = starts[before[starts + length] - before[starts] >= _WHOLE * length] if len(starts) else starts
    if 2 * len(whole) >= len(starts):
        return even_starts(part, length, count)
    if not len(whole):
        return whole
    return whole[np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(np.int64))]


def calendar_features(index: pd.DatetimeIndex) -> NDArray[np.float32]:
    """[T, F] features of the stamps alone; holidays are not among them (they differ by country)."""
    day_seconds = (index.hour * 3600 + index.minute * 60 + index.second).to_numpy()
    hour = day_seconds / 86_400
    week = (index.day_of_week.to_numpy() + hour) / 7
    year = (index.day_of_year.to_numpy() - 1 + hour) / 365.25
    turns = [f(2 * np.pi * phase) for phase in (hour, week, year) for f in (np.sin, np.cos)]
    weekend = (index.day_of_week >= 5).astype(np.float64)
    return np.stack([*turns, weekend], axis=1).astype(np.float32)


@lru_cache(maxsize=256)
def _features(start: pd.Timestamp, step: pd.Timedelta, num_steps: int) -> NDArray[np.float32]:
    table = calendar_features(pd.date_range(start, periods=num_steps, freq=step))
    table.flags.writeable = False
    return table


def cut(client: ClientData, meter: NDArray[np.int64], start: NDArray[np.int64], length: int) -> Windows:
    """Windows of `length` steps of the given meters from the given calendar positions.

    Args:
        client: whose readings.
        meter: [B] index of the meter.
        start: [B] index on the calendar; the window is [start, start + length).
        length: L, steps.

    Raises:
        ValueError: a window that is not wholly on the calendar, or no such meter.
    """
    num_meters, num_steps, _ = client.values.shape
    if len(start) and (start.min() < 0 or start.max() + length > num_steps):
        raise ValueError(f"windows [{start.min()}, {start.max() + length}) leave the calendar [0, {num_steps})")
    if len(meter) and (meter.min() < 0 or meter.max() >= num_meters):
        raise ValueError(f"meters {meter.min()} to {meter.max()} are not all in [0, {num_meters})")
    steps = start[:, None] + np.arange(length)  # [B, L]
    raw = client.values[meter[:, None], steps]  # [B, L, C]
    observed = np.isfinite(raw)
    calendar = _features(client.start, client.step, num_steps)[steps]  # [B, L, F]
    return Windows(
        values=torch.from_numpy(np.where(observed, raw, np.float32(0))),
        observed=torch.from_numpy(observed),
        calendar=torch.from_numpy(calendar),
    )
