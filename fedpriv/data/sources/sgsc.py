"""Smart-Grid Smart-City: half-hourly energy of ten households, kWh per half-hour, local time.

With `data.frequency=1h` two half-hours are averaged (so the unit stays kWh per half-hour), complete pairs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.registry import data_directory, dataset, require_file
from fedpriv.data.sources.base import HALF_HOUR, Facts, Parts, Series, registry_columns
from fedpriv.data.table import parse_stamps, regular_table

_KEY = "sgsc10"
_FILE = "sgsc10_halfhourly.csv"
# The sample's customers, a published fact: the roster need not scan the file for them.
_CUSTOMERS = (
    "10006414",
    "10006486",
    "10006704",
    "10017554",
    "10017562",
    "10017936",
    "10017994",
    "10018060",
    "10018064",
    "10018250",
)


class SgscSource:
    """Clients are households, one meter and one channel each, every one on its own calendar."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        known = dataset(_KEY)
        return Facts(known.licence, known.citation, known.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """The ten customers of the sample."""
        return _CUSTOMERS

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """By customer number."""
        return _CUSTOMERS

    def step(self, config: DataConfig) -> pd.Timedelta:
        """Half an hour."""
        return HALF_HOUR

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Energy."""
        return ("energy",)

    def parts(self, config: DataConfig) -> Parts | None:
        """None: households have different spans, so the split is by fractions."""
        return None

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing: the sample's customer numbers are published."""
        return ()

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The one file that holds all households."""
        return (require_file(_KEY, _FILE, data_directory(config.dir)),)

    def read(self, config: DataConfig, name: str) -> Series:
        """[1, T, 1] kWh per half-hour."""
        known = dataset(_KEY)
        (path,) = self.files(config, name)
        columns = ["customer_id", "reading_datetime", "general_supply_kwh"]
        frame = registry_columns(path, known.file(_FILE), columns)
        frame = frame[frame["customer_id"] == int(name)]
        index, _ = parse_stamps(frame["reading_datetime"], where=name)
        values = frame[["general_supply_kwh"]].set_axis(index, axis=0).rename(columns={"general_supply_kwh": name})
        table = regular_table(values, where=name, step=HALF_HOUR, unit=known.unit)
        return Series.of_meters(table, channel="energy")
