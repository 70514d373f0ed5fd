"""Shapes of series without their size, and clusters of them. Reads all clients' readings: simulation only."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import PartitionConfig
from fedpriv.data.partitions.base import Calendar, Division, Pool, Rule, Unit, too_few_units
from fedpriv.data.partitions.units import leave_nobody_out, make_units
from fedpriv.data.sources.base import Series
from fedpriv.seeding import stream

DAILY, ALL = "daily", "all"
HOURS = 24
_RESTARTS, _ROUNDS = 8, 100

Array = NDArray[np.float64]


def mean_by(values: Array, groups: NDArray[np.integer], count: int) -> Array:
    """[count] means of the finite `values` [T] by group; NaN for a group without any."""
    seen = np.isfinite(values)
    total = np.bincount(groups[seen], weights=values[seen], minlength=count)
    size = np.bincount(groups[seen], minlength=count)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def daily_profile(values: Array, index: pd.DatetimeIndex) -> Array:
    """[24] mean of each hour of the day over the mean of all readings [T]: 1 on average, whatever the size.

    Divided by the mean absolute reading where the mean is near zero, so that it stays finite. NaN for hours
    without a reading.
    """
    return mean_by(values, index.hour.to_numpy(), HOURS) / level(values)


def level(values: Array) -> float:
    """Mean of the finite readings, or of their sizes where gains and losses nearly cancel; 1 without readings."""
    seen = values[np.isfinite(values)]
    if not len(seen):
        return 1.0
    mean, size = float(seen.mean()), float(np.abs(seen).mean())
    return mean if abs(mean) > 0.05 * size else max(size, 1e-12)


def features(units: tuple[Unit, ...], calendar: Calendar | None, pool: Pool, *, which: str) -> Array:
    """[n, F] scale-free description of each unit: its mean day, and with `which=ALL` its week, year and spread.

    Series and meters are described by their training part, blocks by themselves. What a unit does not show (no
    reading in July, say) is the mean of the others.
    """
    rows: list[Array] = []
    for unit in units:
        series = pool.read(unit.series)
        values, index = _shown(unit, series, calendar, pool)
        size = level(values)
        parts = [daily_profile(values, index)]
        if which == ALL:
            parts.append(mean_by(values, index.day_of_week.to_numpy(), 7) / size)
            parts.append(mean_by(values, index.month.to_numpy() - 1, 12) / size)
            spread = np.nanstd(values) / abs(size) if np.isfinite(values).any() else np.nan
            parts.append(np.array([spread]))
        # blocks of features weigh alike, however many numbers they have
        rows.append(np.concatenate([part / np.sqrt(len(part)) for part in parts]))
    table = np.array(rows)
    seen = np.isfinite(table)
    means = np.where(seen, table, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return np.where(seen, table, means)


def training_mean(unit: Unit, calendar: Calendar | None, pool: Pool) -> float:
    """Mean absolute reading of a unit (of its training part where it is a series); 0 without readings."""
    values, _ = _shown(unit, pool.read(unit.series), calendar, pool)
    seen = np.abs(values[np.isfinite(values)])
    return float(seen.mean()) if len(seen) else 0.0


def _shown(unit: Unit, series: Series, calendar: Calendar | None, pool: Pool) -> tuple[Array, pd.DatetimeIndex]:
    """[T'] mean over meters of the first channel, in the unit's span or the series' training part; and its stamps."""
    own = Calendar(series.start, series.step, series.values.shape[1])
    chosen = series.values[:, :, 0] if unit.meter is None else series.values[[unit.meter], :, 0]
    if unit.span is not None and calendar is not None:
        offset = calendar.offset(series)
        part = slice(max(unit.span[0] - offset, 0), max(unit.span[1] - offset, 0))
    else:
        part = pool.slices(own)[0]
    chosen = chosen[:, part]
    seen = np.isfinite(chosen)
    count = seen.sum(axis=0)
    mean = np.where(count > 0, np.where(seen, chosen, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return mean, cast(pd.DatetimeIndex, own.index[part])


def cluster(table: Array, count: int, seed: int) -> NDArray[np.int64]:
    """[n] cluster of each row of `table` [n, F]: k-means with k-means++ starts, the best of several.

    Clusters are numbered by their first member, so that names do not depend on the start.
    """
    rng = stream(seed, "partition", "k-means")
    best, least = np.zeros(len(table), dtype=np.int64), np.inf
    for _ in range(_RESTARTS):
        owner, cost = _lloyd(table, _starts(table, count, rng))
        if cost < least - 1e-12:
            best, least = owner, cost
    order = {old: new for new, old in enumerate(dict.fromkeys(best.tolist()))}
    return np.array([order[old] for old in best.tolist()], dtype=np.int64)


def _starts(table: Array, count: int, rng: np.random.Generator) -> Array:
    """[count, F] rows, each drawn by its squared distance to those before (Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(0, len(table)))]
    while len(chosen) < count:
        distance = ((table[:, None] - table[chosen][None]) ** 2).sum(axis=2).min(axis=1)
        total = distance.sum()
        weights = distance / total if total > 0 else np.full(len(table), 1 / len(table))
        chosen.append(int(rng.choice(len(table), p=weights)))
    return table[chosen].copy()


def _lloyd(table: Array, centres: Array) -> tuple[NDArray[np.int64], float]:
    owner = np.full(len(table), -1)
    for _ in range(_ROUNDS):
        distance = ((table[:, None] - centres[None]) ** 2).sum(axis=2)
        new = distance.argmin(axis=1)
        if (new == owner).all():
            break
        owner = new
        for k in range(len(centres)):
            if (owner == k).any():
                centres[k] = table[owner == k].mean(axis=0)
    distance = ((table - centres[owner]) ** 2).sum()
    return owner.astype(np.int64), float(distance)


class Clusters(Rule):
    """Label-free clustering: units that look alike (mean day, week, year, relative spread) share a client.

    As many clusters as clients; where k-means leaves one empty, the largest gives a unit. Sizes are what they are.
    """

    def divide(self, pool: Pool) -> Division:
        """One k-means over all units; a client has its cluster in training, validation and test."""
        names, units = self.names(pool), make_units(pool)
        held: dict[str, list[Unit]] = {name: [] for name in names}
        if any(len(stratum) < len(names) for stratum in units.strata):
            raise too_few_units(pool, min(map(len, units.strata)), units.what)
        every = tuple(unit for stratum in units.strata for unit in stratum)
        found = cluster(features(every, units.calendar, pool, which=ALL), len(names), pool.config.seed)
        labels = {unit: f"cluster-{k}" for unit, k in zip(every, found.tolist(), strict=True)}
        first = 0
        for number, stratum in enumerate(units.strata):
            owners = leave_nobody_out(found[first : first + len(stratum)], len(names), pool, number)
            first += len(stratum)
            for unit, owner in zip(stratum, owners, strict=True):
                held[names[owner]].append(unit)
        return Division({name: tuple(own) for name, own in held.items()}, units.calendar, labels)

    def disclosed(self, config: PartitionConfig) -> tuple[str, ...]:
        """All of it."""
        return ("who holds which series (clusters of all clients' readings; simulation only)",)
