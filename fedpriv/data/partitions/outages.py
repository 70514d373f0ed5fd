"""Outages to lay over readings: the runs that EIA-930 really flagged, or synthetic ones of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import DataConfig
from fedpriv.data.partitions.base import Calendar
from fedpriv.data.registry import data_directory, dataset, find_file, fingerprint
from fedpriv.data.sources.base import HOUR, registry_columns
from fedpriv.data.table import parse_stamps, stamp
from fedpriv.errors import InputError
from fedpriv.seeding import stream

_FLAGS = "eia930_2020_2024_flags.csv"
_FIRST = stamp("2020-01-01 00:00")
_HOURS = 43_848  # 2020 to 2024: whole days, so that wrapping round keeps the hour of the day
_WITHOUT = ("AEC",)  # ends in 2021: two thirds flagged, which no other entity comes near
_LONG = 0.02  # share of synthetic runs that last days
_LIMIT = pd.Timedelta(days=60)

Mask = NDArray[np.bool_]


def flag_masks(data: DataConfig) -> Mapping[str, Mask]:
    """Entity -> [43848] hours of 2020 to 2024 that were flagged, sorted by how many they are.

    Raises:
        InputError: the flags file is not in the data directory.
    """
    path = find_file("eia930", _FLAGS, data_directory(data.dir))
    if path is None:
        raise InputError(
            f"partition.by=flags replays {_FLAGS} of the data set eia930, which is not in the data directory; fetch it "
            "or choose partition.by=outages. Nothing was started."
        )
    return _flag_masks(path, *fingerprint(path))


@lru_cache(maxsize=2)
def _flag_masks(path: Path, size: int, mtime_ns: int) -> Mapping[str, Mask]:
    del size, mtime_ns  # part of the key only
    frame = registry_columns(path, dataset("eia930").file(_FLAGS), ["date_time", "entity"])
    index, _ = parse_stamps(frame["date_time"], where=_FLAGS)
    hours = (((index - _FIRST) // HOUR).to_numpy() % _HOURS).astype(np.int64)
    masks: dict[str, Mask] = {}
    for entity, rows in frame.groupby("entity").indices.items():
        if str(entity) not in _WITHOUT:
            mask = np.zeros(_HOURS, dtype=bool)
            mask[hours[rows]] = True
            masks[str(entity)] = mask
    return {name: masks[name] for name in sorted(masks, key=lambda name: (int(masks[name].sum()), name))}


def replay(masks: Mapping[str, Mask], place: float, receiver: str, calendar: Calendar) -> Mask:
    """[T] the donor's flagged hours on `calendar`.

    Args:
        masks: of `flag_masks`, by share.
        place: in (0, 1], where in that order the donor stands.
        receiver: the series itself; its own flags are in it already, so it is no donor to itself.
        calendar: where to lay them. Stamps outside 2020 to 2024 take the same hour of a wrapped calendar.
    """
    donors = [name for name in masks if name != receiver]
    donor = masks[donors[min(int(np.ceil(place * len(donors))) - 1, len(donors) - 1)]]
    hours = ((calendar.index - _FIRST) // HOUR).to_numpy() % _HOURS
    return donor[hours]


def spread_shares(clients: int, worst: float, seed: int) -> NDArray[np.float64]:
    """[K] shares from `worst` / 50 to `worst`, evenly on a logarithmic scale; who has which by the seed."""
    shares = worst * 50.0 ** -np.linspace(0, 1, clients) if clients > 1 else np.array([worst])
    return shares[stream(seed, "partition", "outage-shares").permutation(clients)]


def outage_mask(calendar: Calendar, share: float, rng: np.random.Generator) -> Mask:
    """[T] outages, mostly of hours and rarely of days, that cover `share` of the calendar (a run more or less).

    Lengths: 98 % geometric with mean 3 h; 2 % log-normal around 3 days, at most 60, and at most a fifth of what
    is to be covered, so that a part of the calendar is not lost in one run.
    """
    mask = np.zeros(calendar.length, dtype=bool)
    target = share * calendar.length
    per_hour = pd.Timedelta(hours=1) / calendar.step
    limit = max(min(_LIMIT / calendar.step, target / 5), 1.0)
    while mask.sum() < target:
        if rng.random() < _LONG:
            hours = 72.0 * float(np.exp(0.8 * rng.standard_normal()))
        else:
            hours = float(rng.geometric(1 / 3))
        length = int(np.clip(round(hours * per_hour), 1, limit))
        first = int(rng.integers(0, calendar.length))
        mask[first : first + length] = True
    return mask
