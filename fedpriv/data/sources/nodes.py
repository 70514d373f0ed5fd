"""A real federation as its server sees it: the readings lie at the nodes, and only what all agreed on is known.

The step is `data.frequency`, the channels are `data.channels` (each node maps its own columns to them, in order), and
`data.days` and `data.meters` declare the size of a typical node, for the learning rate and for plans. Nothing can be
read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.sources.base import Facts, Parts, Series
from fedpriv.data.table import parse_step
from fedpriv.errors import InputError


class NodesSource:
    """Public agreements of a federation; no readings."""

    def facts(self, config: DataConfig) -> Facts:
        """Each node's data are its owner's."""
        return Facts("each node's own", "", config.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """Nobody, before the nodes have said their names."""
        return ()

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """As many placeholders as there are to be nodes."""
        return [f"node-{place:03d}" for place in range(max(count, 1))]

    def step(self, config: DataConfig) -> pd.Timedelta:
        """The agreed step."""
        return parse_step(config.frequency)

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """The agreed channels; else one called `value`."""
        return config.channels or ("value",)

    def parts(self, config: DataConfig) -> Parts | None:
        """None: by fractions or agreed dates."""
        return None

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """None here."""
        return ()

    def read(self, config: DataConfig, name: str) -> Series:
        """Refused: a server has no readings."""
        raise InputError(
            "data.source=nodes: the readings lie at the nodes of a real federation (see `fedpriv federation --help`); "
            "here nothing can be read, and nothing was started."
        )

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing beyond the agreement."""
        return ()
