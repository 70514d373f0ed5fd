"""A checked table of readings on a regular calendar: gaps are NaN and stay NaN.

Messages name files, columns and rows, never readings.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.errors import InputError

Duplicates = Literal["refuse", "mean"]
Frame = Any
"""A pandas DataFrame. Pandas ships no types, and what a checker infers for it is a union of everything."""
Column = Any
"""A pandas Series, for the same reason."""

_MAX_SPARSITY = 20  # calendar steps per row; beyond it the step or a stamp is wrong, not the series gappy
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Readings on a regular calendar.

    Attributes:
        start: stamp of row 0, without zone.
        step: time between rows.
        values: [T, N] float64, physical units; NaN where nothing was read.
        columns: [N] names.
        unit: physical unit, for labels; empty if unknown.
        timezone: "UTC", or "local" for naive stamps.
    """

    start: pd.Timestamp
    step: pd.Timedelta
    values: NDArray[np.float64]
    columns: tuple[str, ...]
    unit: str = ""
    timezone: str = "local"

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def index(self) -> pd.DatetimeIndex:
        """[T] stamps."""
        return pd.date_range(self.start, periods=len(self), freq=self.step)

    def frame(self) -> Frame:
        """The same as a DataFrame on `index`."""
        return pd.DataFrame(self.values, index=self.index, columns=list(self.columns))

    def resampled(self, step: pd.Timedelta, *, where: str = "the table") -> Table:
        """Means over groups of `step`, aligned to midnight; a group that lacks a reading is NaN.

        Raises:
            InputError: `step` is not a multiple of the table's step.
        """
        values, start = group_means(self.values, self.start, self.step, step, where=where)
        return replace(self, values=values, start=start, step=step)


def stamp(text: str) -> pd.Timestamp:
    """A constant stamp of the code."""
    return cast(pd.Timestamp, pd.Timestamp(text))


def parse_step(text: str) -> pd.Timedelta:
    """`1h`, `15min`, `h`, `1d` as a positive duration.

    Raises:
        InputError: anything else.
    """
    step = pd.Timedelta(0)
    if re.fullmatch(r"\d*\s*[A-Za-z]+", text):  # a bare number would be taken as nanoseconds
        with suppress(ValueError):
            step = pd.Timedelta(text if text[0].isdigit() else f"1{text}")
    if not step > pd.Timedelta(0):
        raise InputError(f"data.frequency={text!r} is not a duration such as 1h, 30min or 1d; nothing was started.")
    return cast(pd.Timedelta, step)


def step_text(step: pd.Timedelta) -> str:
    """A step as people write it: `1h`, `30min`, `1d`."""
    seconds = round(step.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def group_means(
    values: NDArray[np.float64], start: pd.Timestamp, step: pd.Timedelta, target: pd.Timedelta, *, where: str
) -> tuple[NDArray[np.float64], pd.Timestamp]:
    """Means of `values` [T, ...] over groups of `target`, aligned to midnight, and the first group's stamp.

    Only complete groups have a mean: one missing reading makes the group NaN.
    """
    if target == step:
        return values, start
    if target < step or target.value % step.value:
        raise InputError(
            f"{where}: the step is {step_text(step)}, so it cannot be resampled to {step_text(target)}; "
            "data.frequency must be a whole multiple of the step. Nothing was started."
        )
    size = int(target.value // step.value)
    first = cast(pd.Timestamp, start.floor(target))
    lead = int((start - first).value // step.value)
    tail = -(lead + len(values)) % size
    padded = np.pad(values, [(lead, tail)] + [(0, 0)] * (values.ndim - 1), constant_values=np.nan)
    return padded.reshape(-1, size, *values.shape[1:]).mean(axis=1), first


def parse_stamps(stamps: Column, *, where: str) -> tuple[pd.DatetimeIndex, str]:
    """ISO 8601 text or datetimes as naive stamps, and "UTC" (if they carried an offset) or "local".

    Raises:
        InputError: a value that is not a stamp, or a numeric column; the row is named.
    """
    if isinstance(stamps.dtype, pd.DatetimeTZDtype):
        stamps, zone = stamps.dt.tz_convert("UTC").dt.tz_localize(None), "UTC"
    else:
        zone = "local"
    if pd.api.types.is_datetime64_dtype(stamps.dtype):
        index = pd.DatetimeIndex(stamps).as_unit("ns")
    elif pd.api.types.is_numeric_dtype(stamps.dtype):
        raise InputError(
            f"{where}: the time column {stamps.name!r} holds numbers, not stamps such as 2024-01-31 13:00; choose it "
            "with data.time_column. Nothing was loaded."
        )
    else:
        index, zone = _parse_text(stamps, where)
    bad = np.asarray(index.isna())
    if bad.any():
        raise InputError(
            f"{where}: {int(bad.sum())} values of the time column {stamps.name!r} are not stamps such as "
            f"2024-01-31 13:00 (ISO 8601); the first is in data row {int(np.argmax(bad)) + 1}. Nothing was loaded."
        )
    return index, zone


def _parse_text(stamps: Column, where: str) -> tuple[pd.DatetimeIndex, str]:
    """ISO 8601 text; what is not a stamp becomes NaT."""
    with suppress(ValueError, TypeError):  # raised for what is looked at below
        parsed = pd.to_datetime(stamps, format="ISO8601")  # all naive, or all with one offset
        if not isinstance(parsed.dtype, pd.DatetimeTZDtype):
            return pd.DatetimeIndex(parsed).as_unit("ns"), "local"
    text = stamps.astype("str")
    offset = text.str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)\s*$", regex=True).to_numpy(dtype=bool)
    utc = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    if offset.any() and not (offset | utc.isna().to_numpy()).all():
        row = int(np.argmin(offset))
        raise InputError(
            f"{where}: some stamps carry an offset from UTC and others (first in data row {row + 1}) do not; "
            "nothing was loaded."
        )
    return pd.DatetimeIndex(utc.dt.tz_localize(None)).as_unit("ns"), "UTC" if offset.any() else "local"


def to_numbers(frame: Frame, *, where: str) -> Frame:
    """Every column as float64.

    Raises:
        InputError: text, infinity or a value beyond float32 in a column, naming the column and first row.
    """
    columns: dict[str, NDArray[np.float64]] = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_bool_dtype(column.dtype):
            raise InputError(f"{where}: column {name!r} holds true/false, not numbers; nothing was loaded.")
        parsed: Column = pd.to_numeric(column, errors="coerce")
        numbers = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.isnan(numbers) & column.notna().to_numpy()
        if wrong.any():
            raise InputError(
                f"{where}: column {name!r} holds text where numbers are expected in {int(wrong.sum())} rows, first in "
                f"data row {int(np.argmax(wrong)) + 1}; leave cells without a reading empty. Nothing was loaded."
            )
        huge = np.abs(numbers) > _FLOAT32_MAX
        if huge.any():
            raise InputError(
                f"{where}: column {name!r} holds an infinite or too large value, first in data row "
                f"{int(np.argmax(huge)) + 1}. Nothing was loaded."
            )
        columns[str(name)] = numbers
    return pd.DataFrame(columns, index=frame.index)


def infer_step(index: pd.DatetimeIndex, *, where: str) -> pd.Timedelta:
    """The most frequent positive difference of consecutive stamps (smallest one of a tie)."""
    differences = np.diff(np.sort(_nanoseconds(index)))
    differences = differences[differences > 0]
    if not len(differences):
        raise InputError(f"{where}: fewer than two different stamps, so there is no step; nothing was loaded.")
    steps, counts = np.unique(differences, return_counts=True)
    return cast(pd.Timedelta, pd.Timedelta(int(steps[np.argmax(counts)]), unit="ns"))


def regular_table(
    frame: Frame,
    *,
    where: str,
    step: pd.Timedelta | None = None,
    unit: str = "",
    timezone: str = "local",
    duplicates: Duplicates = "refuse",
) -> Table:
    """Sorts, repairs repeats, and puts `frame` (indexed by stamps, numeric) on a regular calendar.

    Rows that repeat one stamp with the same values are taken once. Rows that repeat it with other values are
    averaged if `duplicates="mean"` (a missing reading does not count), and refused otherwise.

    Args:
        frame: columns of numbers, indexed by naive stamps in any order.
        where: what to call the data in messages (a file or client name).
        step: the step that the data must have; None: the most frequent one.
        unit, timezone: as in `Table`.
        duplicates: what to do with one stamp and several values.

    Raises:
        InputError: no rows, conflicting repeats, stamps off the grid (wrong frequency), text.
    """
    if not len(frame) or not len(frame.columns):
        raise InputError(f"{where}: there are no readings in it; nothing was loaded.")
    frame = to_numbers(frame, where=where).sort_index(kind="stable")
    stamps = frame.index
    if stamps.has_duplicates:
        frame = _merge_repeats(frame, duplicates, where)
        stamps = frame.index
    found = infer_step(stamps, where=where) if len(stamps) > 1 or step is None else step
    if step is not None and found != step:
        raise InputError(
            f"{where}: wrong frequency; the stamps are {step_text(found)} apart, expected {step_text(step)}. "
            "Nothing was loaded."
        )
    positions = _positions(stamps, found, where)
    length = int(positions[-1]) + 1
    values = np.full((length, len(frame.columns)), np.nan)
    values[positions] = frame.to_numpy()
    return Table(cast(pd.Timestamp, stamps[0]), found, values, tuple(str(c) for c in frame.columns), unit, timezone)


def _merge_repeats(frame: Frame, duplicates: Duplicates, where: str) -> Frame:
    if duplicates == "mean":
        return frame.groupby(level=0, sort=True).mean()
    repeated = frame.reset_index(names="__stamp__").duplicated().to_numpy()  # NaN equals NaN here
    frame = frame[~repeated]
    again = frame.index.duplicated()
    if again.any():
        first = frame.index[again][0]
        raise InputError(
            f"{where}: {int(again.sum())} stamps are there more than once with different values, first {first} "
            "(in local time, the hour that is repeated in autumn does this). Remove one of each, or set "
            "data.duplicates=mean to average them. Nothing was loaded."
        )
    return frame


def _positions(stamps: pd.DatetimeIndex, step: pd.Timedelta, where: str) -> NDArray[np.int64]:
    since = _nanoseconds(stamps) - _nanoseconds(stamps[:1])[0]
    off = since % step.value != 0
    if off.any():
        raise InputError(
            f"{where}: wrong frequency; {int(off.sum())} of {len(stamps)} stamps are not a whole number of "
            f"{step_text(step)} after the first, the first such is {stamps[int(np.argmax(off))]}. Nothing was loaded."
        )
    positions = since // step.value
    if positions[-1] + 1 > _MAX_SPARSITY * len(stamps) + 10_000:
        raise InputError(
            f"{where}: {len(stamps)} rows between {stamps[0]} and {stamps[-1]} do not fill a calendar of "
            f"{step_text(step)}; a stamp or the frequency is wrong. Nothing was loaded."
        )
    return positions


def _nanoseconds(stamps: pd.DatetimeIndex) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stamps.to_numpy().astype("datetime64[ns]").astype(np.int64)
