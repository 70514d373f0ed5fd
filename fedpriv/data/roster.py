"""Who takes part in a scenario: public facts of its data, known before any reading is parsed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig, PartitionConfig, Scenario
from fedpriv.data.partition import PARTITIONERS, Public
from fedpriv.data.registry import DATA_DIR_VARIABLE, fingerprint
from fedpriv.data.sources import SOURCES
from fedpriv.data.table import parse_step
from fedpriv.errors import InputError

_SYNTHETIC_PER_CLIENT = 4  # synthetic series divided among clients where partition.series says nothing

Stamp = tuple[str, int, int]  # path, size, modification time in ns


@dataclass(frozen=True)
class Roster:
    """Public facts of a scenario's data, known before any reading is parsed.

    Attributes:
        names: clients in partition order.
        source, licence, citation, unit: for labels and reports.
        step: step of the calendar after resampling.
        channels: names of the channels that every client has, as many as the model has.
        simulated_public: what this simulation takes as public although in a deployment only the client
            would know it (names found in the data, for example); empty if nothing.
    """

    names: tuple[str, ...]
    source: str
    licence: str
    citation: str
    unit: str
    step: pd.Timedelta
    channels: tuple[str, ...]
    simulated_public: tuple[str, ...]


def roster(scenario: Scenario) -> Roster:
    """Who takes part, from headers, entity lists, file names and stamps alone.

    In long CSV files the names are in the data: name them in `data.clients`, or the column of ids is scanned
    and the scan is declared in `simulated_public`.

    Raises:
        InputError: missing file, unknown client (the nearest is named), too few clients.
    """
    data = scenario.data
    stamps = stamps_of([Path(data.path).expanduser()]) if data.source == "csv" else ()
    return _roster(data, scenario.partition, os.environ.get(DATA_DIR_VARIABLE, ""), stamps)  # pyright: ignore


@lru_cache(maxsize=32)
def _roster(data: DataConfig, partition: PartitionConfig, directory: str, stamps: tuple[Stamp, ...]) -> Roster:
    del directory, stamps  # part of the key only
    source = SOURCES[data.source]
    facts = source.facts(data)
    partitioner = PARTITIONERS[partition.kind]
    names = partitioner.names(Public(data, partition, available(data, partition), chosen=bool(data.clients)))
    return Roster(
        names=names,
        source=data.source,
        licence=facts.licence,
        citation=facts.citation,
        unit=facts.unit,
        step=parse_step(data.frequency) if data.frequency else source.step(data),
        channels=_chosen_channels(data),
        simulated_public=(*source.disclosed(data), *partitioner.disclosed(partition)),
    )


def _chosen_channels(data: DataConfig) -> tuple[str, ...]:
    present = SOURCES[data.source].channels(data)
    for channel in data.channels:
        require_channel(channel, present, f"source {data.source}")
    return data.channels or present


def available(data: DataConfig, partition: PartitionConfig) -> tuple[str, ...]:
    """Names of the series that the partition divides.

    Raises:
        InputError: a client that the source does not know or that is named twice, or more series than there are.
    """
    source = SOURCES[data.source]
    if data.group:  # data.clients then names the columns that are its meters
        return (data.group,)
    if not data.clients:
        count = PARTITIONERS[partition.kind].wanted(partition)
        natural = partition.kind in ("natural", "pooled") and not partition.by
        if not natural and count == 0 and data.source == "synthetic":
            count = _SYNTHETIC_PER_CLIENT * partition.clients  # there is no end of them to take "all" of
        found = tuple(source.default(data, count))
        if natural or count == 0:
            return found
        if count > len(found):
            raise InputError(
                f"partition.series={count} (or clients, one series each) is more than the {len(found)} series of "
                f"source {data.source}; nothing was started."
            )
        return found[:count]
    known = source.known(data)
    for name in data.clients:
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise InputError(f"unknown client {name!r} of source {data.source}{hint}. Nothing was started.")
    if len(set(data.clients)) < len(data.clients):
        raise InputError(f"data.clients={', '.join(data.clients)} names a client twice; nothing was started.")
    return data.clients


def require_channel(channel: str, present: tuple[str, ...], where: str) -> None:
    """Raises InputError, with the nearest name, where a channel is not among those present."""
    if channel not in present:
        near = difflib.get_close_matches(channel, present, n=1, cutoff=0.0)[0]
        raise InputError(f"{where} has no channel {channel!r}; the nearest is {near!r}. Nothing was started.")


def stamps_of(paths: Sequence[Path]) -> tuple[Stamp, ...]:
    """State of the files that exist: part of the key of what is kept in memory."""
    return tuple((str(path), *fingerprint(path)) for path in paths if path.exists())
