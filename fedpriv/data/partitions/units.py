"""Cutting the source into units, and dealing units out in given proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpriv.data.partitions.base import Calendar, Pool, Unit, unit_kind
from fedpriv.errors import InputError
from fedpriv.seeding import stream

Shares = NDArray[np.float64]
Owners = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """All units of a source.

    Attributes:
        strata: groups of units that are dealt out one after the other. Series and meters are one group; blocks are
            three (training, validation, test), so that every client has all three parts.
        calendar: what spans refer to; None without spans.
        what: `series`, `meters` or `blocks`, for messages.
    """

    strata: tuple[tuple[Unit, ...], ...]
    calendar: Calendar | None
    what: str


def make_units(pool: Pool) -> Units:
    """The units of `partition.unit`.

    Raises:
        InputError: a block does not hold a window.
    """
    kind = unit_kind(pool)
    if kind == "series":
        return Units((tuple(Unit(name) for name in pool.available),), None, "series")
    read = {name: pool.read(name) for name in pool.available}
    if kind == "meter":
        units = tuple(Unit(name, meter) for name, series in read.items() for meter in range(len(series.meters)))
        return Units((units,), None, "meters")
    calendar = Calendar.of(list(read.values()))
    strata: list[tuple[Unit, ...]] = []
    for spans in block_spans(pool, calendar):
        own = [(name, m) for name, series in read.items() for m in range(len(series.meters))]
        strata.append(tuple(Unit(name, m, span) for span in spans for name, m in own))
    return Units(tuple(strata), calendar, "blocks")


def block_spans(pool: Pool, calendar: Calendar) -> list[list[tuple[int, int]]]:
    """Blocks of `partition.block_days` from midnight to midnight, for training, validation and test.

    Together they cover the calendar once. A part's last block takes what is left, and the gap before the next part.

    Raises:
        InputError: a block is shorter than a window.
    """
    _, validation, test = pool.slices(calendar)
    borders = [0, calendar.midnight(validation.start), calendar.midnight(test.start), calendar.length]
    steps = round(pool.config.block_days * 86_400 / calendar.step.total_seconds())
    if steps < pool.window:
        raise InputError(
            f"partition.block_days={pool.config.block_days} is {steps} steps, shorter than a window of {pool.window} "
            "(task.context + task.horizon), so no client would have a whole window; give more days. Nothing was "
            "started."
        )
    found: list[list[tuple[int, int]]] = []
    for first, stop in pairwise(borders):
        count = max((stop - first) // steps, 1)
        edges = [calendar.midnight(first + k * steps) if k else first for k in range(count)] + [stop]
        found.append(list(pairwise(edges)))
    return found


def deal(units: Sequence[Unit], shares: Shares, pool: Pool, *names: str | int) -> Owners:
    """[n] owner of each unit: shuffled by the partition's seed, then cut in the proportions `shares` [K].

    Counts are the shares rounded so that they add up (largest remainder).
    """
    count = len(units)
    exact = shares / shares.sum() * count
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: count - int(whole.sum())]] += 1
    owners = np.repeat(np.arange(len(shares)), whole)
    result = np.empty(count, dtype=np.int64)
    result[stream(pool.config.seed, "partition", *names).permutation(count)] = owners
    return result


def leave_nobody_out(owners: Owners, clients: int, pool: Pool, *names: str | int) -> Owners:
    """The same owners, with one unit of the largest client for each that had none.

    Needs at least as many units as clients.
    """
    owners = owners.copy()
    rng = stream(pool.config.seed, "partition", "repair", *names)
    for poor in range(clients):
        counts = np.bincount(owners, minlength=clients)
        if counts[poor] == 0:
            rich = np.flatnonzero(owners == int(np.argmax(counts)))
            owners[rich[int(rng.integers(0, len(rich)))]] = poor
    return owners
