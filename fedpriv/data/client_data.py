"""One client's readings: on the scenario's step, with its channels, split by time, checked to have usable windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import DataConfig
from fedpriv.data.partitions.base import part_slices
from fedpriv.data.roster import require_channel
from fedpriv.data.sources import Parts, Series
from fedpriv.data.table import group_means, parse_step
from fedpriv.errors import InputError


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's readings on its public calendar. The readings are private; everything else is public.

    Attributes:
        name: as in the roster.
        values: [M, T, C] float32, physical units, NaN where nothing was read; not writable.
        start, step: calendar of axis T.
        meters, channels: [M] and [C] names.
        unit: physical unit of the readings.
        train, validation, test: index ranges of axis T, with a gap of one window between them.
        timezone: "UTC" or "local".
    """

    name: str
    values: NDArray[np.float32]
    start: pd.Timestamp
    step: pd.Timedelta
    meters: tuple[str, ...]
    channels: tuple[str, ...]
    unit: str
    train: slice
    validation: slice
    test: slice
    timezone: str = "local"

    def __repr__(self) -> str:
        """Public facts only: a client's readings do not belong in logs."""
        return f"ClientData(name={self.name!r}, shape={self.values.shape}, start={self.start}, step={self.step})"

    def part(self, name: str) -> slice:
        """The index range of `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def num_meters(self) -> int:
        """M."""
        return len(self.meters)

    @property
    def index(self) -> pd.DatetimeIndex:
        """[T] stamps."""
        return pd.date_range(self.start, periods=self.values.shape[1], freq=self.step)


def client_data(
    name: str,
    series: Series,
    data: DataConfig,
    *,
    context: int,
    horizon: int,
    parts: Parts | None = None,
    require_usable: bool = True,
) -> ClientData:
    """Resamples, picks channels, splits by time and checks that every part has a usable window.

    Args:
        name: for the client and for messages.
        series: [M, T, C] readings.
        data: frequency, channels and split.
        context, horizon: steps of a window.
        parts: the source's customary split, used unless `data` gives its own.
        require_usable: see `fedpriv.data.clients.load_client`; the lengths of the parts are checked always.

    Raises:
        InputError: see `fedpriv.data.clients.load_client`.
    """
    where = f"client {name}"
    values, start, step, channels = prepared(series, data, where)
    readings = values.astype(np.float32, order="C")  # [M, T, C]
    window = context + horizon
    if readings.shape[1] < window:
        raise InputError(
            f"{where}: the window of {window} steps (task.context + task.horizon) is longer than the series of "
            f"{readings.shape[1]} steps. Nothing was started."
        )
    slices = part_slices(readings.shape[1], start, step, data, parts, window)
    for label, part in zip(("training", "validation", "test"), slices, strict=True):
        _require_length(part, window, where=where, label=label)
        if require_usable:
            _require_usable(readings[:, part], context, horizon, where=where, label=label)
    readings.flags.writeable = False
    train, validation, test = slices
    return ClientData(
        name=name,
        values=readings,
        start=start,
        step=step,
        meters=series.meters,
        channels=channels,
        unit=series.unit,
        train=train,
        validation=validation,
        test=test,
        timezone=series.timezone,
    )


def prepared(
    series: Series, data: DataConfig, where: str
) -> tuple[NDArray[np.float64], pd.Timestamp, pd.Timedelta, tuple[str, ...]]:
    """[M, T, C] on the step of `data.frequency` with the channels of `data.channels`; start, step, channels."""
    values, start, step = np.moveaxis(series.values, 1, 0), series.start, series.step  # [T, M, C]
    if data.frequency:
        target = parse_step(data.frequency)
        values, start = group_means(values, start, step, target, where=where)
        step = target
    values, channels = _pick_channels(values, series.channels, data.channels, where)
    return np.moveaxis(values, 0, 1), start, step, channels


def _pick_channels(
    values: NDArray[np.float64], present: tuple[str, ...], wanted: tuple[str, ...], where: str
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    if not wanted:
        return values, present
    for channel in wanted:
        require_channel(channel, present, where)
    return values[..., [present.index(c) for c in wanted]], wanted


_ADVICE = "Choose shorter windows or another split (data.train_until, data.train_fraction); nothing was started."


def _require_length(part: slice, window: int, *, where: str, label: str) -> None:
    """At least one window must fit: a matter of the calendar alone."""
    steps = max(part.stop - part.start, 0)
    if steps < window:
        raise InputError(
            f"{where} has no usable window in its {label} part: {steps} steps remain there, a window takes {window}. "
            f"{_ADVICE}"
        )


def _require_usable(part: NDArray[np.float32], context: int, horizon: int, *, where: str, label: str) -> None:
    """At least one window must have something read both in its context and in its horizon."""
    window = context + horizon
    read = np.isfinite(part).any(axis=2)  # [M, n]
    before = np.concatenate([np.zeros((part.shape[0], 1), dtype=np.int64), np.cumsum(read, axis=1)], axis=1)
    starts = part.shape[1] - window + 1
    in_context = before[:, context : context + starts] - before[:, :starts]
    in_horizon = before[:, window : window + starts] - before[:, context : context + starts]
    if not np.any((in_context > 0) & (in_horizon > 0)):
        raise InputError(
            f"{where} has no usable window in its {label} part: nowhere are there readings both in {context} steps "
            f"of context and in the {horizon} steps after. {_ADVICE}"
        )
