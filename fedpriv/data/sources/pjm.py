"""PJM: hourly load of utility zones, MW, local prevailing time, stamps at the end of the hour.

The published rows are out of order, the hour that daylight saving skips is absent (it stays missing) and
the repeated one is there twice (averaged). Readings of zero or less are placeholders and count as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.registry import data_directory, dataset, require_file
from fedpriv.data.sources.base import HOUR, Facts, Parts, Series, registry_columns
from fedpriv.data.table import Table, parse_stamps, regular_table, stamp
from fedpriv.errors import InputError

_KEY = "pjm"
# Utility zones first, then the two regions. NI is COMED under its former name and ends where COMED starts,
# before the common window; PJM_Load is the sum of several zones and ends in 2002.
_ZONES = ("AEP", "COMED", "DAYTON", "DEOK", "DOM", "DUQ", "EKPC", "FE", "PJME", "PJMW")
_EXCLUDED = {
    "NI": "it is the utility COMED under its former name and ends in 2011: use COMED",
    "PJM_Load": "it is a total over zones and ends in 2002",
}
_FIRST, _LAST = stamp("2013-06-01 01:00"), stamp("2018-08-02 23:00")


class PjmSource:
    """Clients are zones, one meter and one channel each, on their common window."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        known = dataset(_KEY)
        return Facts(known.licence, known.citation, known.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """The ten zones that share five years.

        Raises:
            InputError: `data.clients` names a file that is no client of its own; the reason is given.
        """
        for name in config.clients:
            if name in _EXCLUDED:
                raise InputError(f"pjm: {name} cannot be a client; {_EXCLUDED[name]}. Nothing was started.")
        return _ZONES

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """Alphabetical: eight utilities, then the regions PJME and PJMW."""
        return _ZONES

    def step(self, config: DataConfig) -> pd.Timedelta:
        """One hour."""
        return HOUR

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Load."""
        return ("load",)

    def parts(self, config: DataConfig) -> Parts:
        """Train to July 2016, validation to July 2017, test after."""
        return Parts("2016-08-01", "2017-08-01")

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing: the zones are published."""
        return ()

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The zone's file."""
        return (require_file(_KEY, f"{name}_hourly.csv", data_directory(config.dir)),)

    def read(self, config: DataConfig, name: str) -> Series:
        """[1, 45335, 1] MW."""
        known = dataset(_KEY)
        (path,) = self.files(config, name)
        column = f"{name}_MW"
        frame = registry_columns(path, known.file(f"{name}_hourly.csv"), ["Datetime", column])
        index, _ = parse_stamps(frame["Datetime"], where=name)
        series = frame[column].where(frame[column] > 0).set_axis(index, axis=0)
        table = regular_table(series.to_frame(name), where=name, step=HOUR, unit=known.unit, duplicates="mean")
        window = table.frame().reindex(pd.date_range(_FIRST, _LAST, freq=HOUR))
        cut = Table(_FIRST, HOUR, window.to_numpy(), table.columns, table.unit, "local")
        return Series.of_meters(cut, channel="load")
