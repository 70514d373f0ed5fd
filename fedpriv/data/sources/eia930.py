"""EIA-930: hourly demand of US balancing authorities and utility zones, 2020 to 2024, UTC, MW.

Read from the joined table (with its flags file) or from the publisher's file per entity. Hours that the
publisher flagged hold imputed values, and the imputation looked at other entities; they count as missing
unless `data.drop_flagged` is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.registry import data_directory, dataset, find_file, require_file
from fedpriv.data.sources.base import HOUR, Facts, Parts, Series, registry_columns
from fedpriv.data.table import Column, Table, parse_stamps, regular_table, stamp

_KEY = "eia930"
_JOINED = "eia930_2020_2024_cleaned_mw.csv"
_FLAGS = "eia930_2020_2024_flags.csv"
_FIRST, _LAST = stamp("2020-01-01 00:00"), stamp("2024-12-31 23:00")
# Documented by the publisher: AEC ends in 2021 and has no test part; the others jump or start late.
_WITHOUT_TEST = ("AEC",)
_FAULTY = ("CISO-VEA", "SPA", "PSEI")


class Eia930Source:
    """Clients are entities (`PJM-AE`, `SOCO`, ...), one meter and one channel each."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        known = dataset(_KEY)
        return Facts(known.licence, known.citation, known.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """The 119 entities of the release."""
        return tuple(dataset(_KEY).regions)

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """Round robin over the 13 EIA regions (alphabetical), entities by code within a region.

        So the first few clients lie in different climates. Entities with faults that the publisher's
        documentation names come last, and AEC, which ends in 2021, not at all.
        """
        regions: dict[str, list[str]] = {}
        for code, region in sorted(dataset(_KEY).regions.items()):
            if code not in _FAULTY + _WITHOUT_TEST:
                regions.setdefault(region, []).append(code)
        turns = zip_longest(*(regions[name] for name in sorted(regions)))
        return [code for turn in turns for code in turn if code is not None] + list(_FAULTY)

    def step(self, config: DataConfig) -> pd.Timedelta:
        """One hour."""
        return HOUR

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Demand."""
        return ("demand",)

    def parts(self, config: DataConfig) -> Parts:
        """Train 2020 to 2022, validation 2023, test 2024."""
        return Parts("2023-01-01", "2024-01-01")

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing: the list of entities is published."""
        return ()

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The joined table and its flags, or the entity's own file."""
        directory = data_directory(config.dir)
        joined = find_file(_KEY, _JOINED, directory)
        if joined is None and (own := find_file(_KEY, f"{name}.csv", directory)) is not None:
            return (own,)
        # neither form there: the joined table is the one that the message asks for
        joined = require_file(_KEY, _JOINED, directory)
        return (joined, require_file(_KEY, _FLAGS, directory)) if config.drop_flagged else (joined,)

    def read(self, config: DataConfig, name: str) -> Series:
        """[1, 43848, 1] MW; flagged hours NaN if `drop_flagged`."""
        paths = self.files(config, name)
        known = dataset(_KEY)
        joined = paths[0].name.startswith(_JOINED)
        if joined:
            frame = registry_columns(paths[0], known.file(_JOINED), ["date_time", name])
            index, _ = parse_stamps(frame["date_time"], where=name)
            series = frame[name].set_axis(index, axis=0)
            if config.drop_flagged:
                flags = registry_columns(paths[1], known.file(_FLAGS), ["date_time", "entity"])
                flagged, _ = parse_stamps(flags.loc[flags["entity"] == name, "date_time"], where=name)
                series = series.mask(series.index.isin(flagged))
        else:
            series = _entity_series(paths[0], name, config.drop_flagged)
        table = regular_table(series.to_frame(name), where=name, step=HOUR, unit=known.unit, timezone="UTC")
        return Series.of_meters(_full_calendar(table), channel="demand")


def _entity_series(path: Path, name: str, drop_flagged: bool) -> Column:
    """The publisher's file of one entity: raw value, category and cleaned value per hour."""
    raw_name, clean_name = "raw demand (MW)", "cleaned demand (MW)"
    columns = ["date_time", raw_name, "category", clean_name]
    frame = registry_columns(path, dataset(_KEY).file(f"{name}.csv"), columns)
    index, _ = parse_stamps(frame["date_time"], where=name)
    flagged = (frame["category"] != "OKAY") | (frame[raw_name] != frame[clean_name])
    # a flagged zero is the publisher's placeholder for an hour that was never imputed
    missing = flagged if drop_flagged else flagged & (frame[clean_name] <= 0)
    return frame[clean_name].mask(missing).set_axis(index, axis=0)


def _full_calendar(table: Table) -> Table:
    """The same on the whole calendar 2020 to 2024, so that all clients share it."""
    index = pd.date_range(_FIRST, _LAST, freq=HOUR)
    values = table.frame().reindex(index).to_numpy(dtype=np.float64)
    return Table(_FIRST, HOUR, values, table.columns, table.unit, table.timezone)
