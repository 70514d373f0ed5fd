"""ETT-small: six loads and the oil temperature of two transformer stations, hourly or quarter-hourly.

The hourly files are samples of the quarter-hourly ones, so a station is a client once, in one resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.registry import data_directory, dataset, require_file
from fedpriv.data.sources.base import HOUR, QUARTER_HOUR, Facts, Parts, Series, registry_columns
from fedpriv.data.table import parse_stamps, parse_step, regular_table
from fedpriv.errors import InputError

_KEY = "ett"
_HOURLY, _QUARTERLY = ("ETTh1", "ETTh2"), ("ETTm1", "ETTm2")
_CHANNELS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")


class EttSource:
    """Clients are stations (`ETTh1`, `ETTh2` or `ETTm1`, `ETTm2`), one meter with seven channels each."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        known = dataset(_KEY)
        return Facts(known.licence, known.citation, known.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """All four files, of which one per station may be used.

        Raises:
            InputError: both resolutions of a station were named, or both resolutions at once.
        """
        kinds = {name[:4] for name in config.clients}
        if len(kinds & {"ETTh", "ETTm"}) > 1:
            raise InputError(
                f"ett: data.clients={', '.join(config.clients)} mixes hourly and quarter-hourly files, which hold the "
                "same readings of the same stations; name one resolution. Nothing was started."
            )
        return _HOURLY + _QUARTERLY

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """Both stations, in the resolution of `data.frequency` (hourly unless it is below an hour)."""
        return _HOURLY if self.step(config) == HOUR else _QUARTERLY

    def step(self, config: DataConfig) -> pd.Timedelta:
        """One hour, or 15 minutes for ETTm files or a frequency below an hour."""
        if config.clients:
            quarterly = config.clients[0].startswith("ETTm")
        else:
            quarterly = bool(config.frequency) and parse_step(config.frequency) < HOUR
        return QUARTER_HOUR if quarterly else HOUR

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Six loads and the oil temperature."""
        return _CHANNELS

    def parts(self, config: DataConfig) -> Parts:
        """The customary 12, 4 and 4 months of 30 days; the rest is unused."""
        return Parts("2017-06-26", "2017-10-24", "2018-02-21")

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing: the stations are published."""
        return ()

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The station's file."""
        return (require_file(_KEY, f"{name}.csv", data_directory(config.dir)),)

    def read(self, config: DataConfig, name: str) -> Series:
        """[1, 17420 or 69680, 7]; no unit is published."""
        known = dataset(_KEY)
        (path,) = self.files(config, name)
        frame = registry_columns(path, known.file(f"{name}.csv"), ["date", *_CHANNELS])
        index, _ = parse_stamps(frame["date"], where=name)
        step = QUARTER_HOUR if name.startswith("ETTm") else HOUR
        table = regular_table(frame[list(_CHANNELS)].set_axis(index, axis=0), where=name, step=step, unit=known.unit)
        return Series.of_channels(table, meter=name)
