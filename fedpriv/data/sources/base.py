"""What every source offers: public facts first, one client's readings on request."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import DataConfig
from fedpriv.data.files import reading, require_columns
from fedpriv.data.registry import RegistryFile, cached_bytes
from fedpriv.data.table import Frame, Table

HOUR = cast(pd.Timedelta, pd.Timedelta(hours=1))
HALF_HOUR = cast(pd.Timedelta, pd.Timedelta(minutes=30))
QUARTER_HOUR = cast(pd.Timedelta, pd.Timedelta(minutes=15))


@dataclass(frozen=True)
class Parts:
    """Where a source's customary split lies: first stamps after training, validation and (empty: the end) test."""

    train_until: str
    validation_until: str
    test_until: str = ""


@dataclass(frozen=True)
class Facts:
    """Public facts of a source, for labels and reports."""

    licence: str
    citation: str
    unit: str


@dataclass(frozen=True)
class Series:
    """One client's readings as the source has them.

    Attributes:
        values: [M, T, C] float64, physical units, NaN where nothing was read.
        start, step: the calendar of axis T.
        meters, channels: [M] and [C] names.
        unit, timezone: as in `Table`.
    """

    values: NDArray[np.float64]
    start: pd.Timestamp
    step: pd.Timedelta
    meters: tuple[str, ...]
    channels: tuple[str, ...]
    unit: str
    timezone: str

    @classmethod
    def of_meters(cls, table: Table, *, channel: str) -> Series:
        """Every column of `table` is one meter with one channel."""
        return cls(
            values=np.ascontiguousarray(table.values.T[:, :, None]),
            start=table.start,
            step=table.step,
            meters=table.columns,
            channels=(channel,),
            unit=table.unit,
            timezone=table.timezone,
        )

    @classmethod
    def of_channels(cls, table: Table, *, meter: str) -> Series:
        """Every column of `table` is one channel of a single meter."""
        return cls(
            values=table.values[None],
            start=table.start,
            step=table.step,
            meters=(meter,),
            channels=table.columns,
            unit=table.unit,
            timezone=table.timezone,
        )


class Source(Protocol):
    """A kind of source. Only `read` touches readings; everything else uses public facts."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        ...

    def known(self, config: DataConfig) -> Sequence[str]:
        """Every client name that may be asked for; empty if any name may be (it is checked when read)."""
        ...

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """Clients in the order in which they are used when none are named; `count` 0 means all.

        May return more or fewer than `count`; the partitioner cuts and complains.
        """
        ...

    def step(self, config: DataConfig) -> pd.Timedelta:
        """Step of the published series."""
        ...

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Names of the channels that every client has; a public fact (the model's shape follows from it)."""
        ...

    def parts(self, config: DataConfig) -> Parts | None:
        """The customary split, or None for fractions."""
        ...

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The files that `read` will use for this client (their state is part of the cache key)."""
        ...

    def read(self, config: DataConfig, name: str) -> Series:
        """One client's readings.

        Raises:
            InputError: missing, damaged or unverified file, or readings that cannot be put on a calendar.
        """
        ...

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """What a simulation takes as public although in a deployment the client alone would know it."""
        ...


def registry_columns(path: Path, entry: RegistryFile, columns: Sequence[str]) -> Frame:
    """Only `columns` of a registered CSV, from verified bytes."""
    content = cached_bytes(path, entry)
    with reading(path):
        present = pd.read_csv(io.BytesIO(content), nrows=0).columns
        require_columns(columns, list(present), where=f"file {path}")
        return pd.read_csv(io.BytesIO(content), usecols=list(columns))[list(columns)]
