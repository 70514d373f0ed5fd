"""From a scenario to the readings of its clients, one at a time; who they are stands in `fedpriv.data.roster`."""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from fedpriv.config import DataConfig, PartitionConfig, Scenario
from fedpriv.data.client_data import ClientData, client_data, prepared
from fedpriv.data.partition import PARTITIONERS, Division, Pool, Public, assemble
from fedpriv.data.partitions.pooled import Pooled
from fedpriv.data.roster import Stamp, available, roster, stamps_of
from fedpriv.data.sources import SOURCES, Series
from fedpriv.errors import InputError

_SERIES_KEPT = 256  # series of a divided source kept per process
_CLIENTS_KEPT = 256  # ClientData objects kept per process; Ray actors persist and see the same clients again


def load_client(scenario: Scenario, name: str, *, require_usable: bool = True) -> ClientData:
    """The readings of one client; no other client's readings are kept or looked at.

    Args:
        scenario: data, partition and task.
        name: of the client.
        require_usable: refuse readings among which no window can be used. A deployed client must not: whether it
            answers would then tell of its readings, and nobody pays for that.

    Raises:
        InputError: not in the roster, missing or damaged file, readings that cannot be put on a calendar,
            a window longer than the series or one of its parts, or a part without a usable window.
    """
    people = roster(scenario)
    if name not in people.names:
        near = difflib.get_close_matches(name, people.names, n=1, cutoff=0.0)[0]
        raise InputError(f"client {name!r} is not in this scenario; the nearest is {near!r}. Nothing was loaded.")
    data, partition, task = scenario.data, scenario.partition, scenario.task
    stamps = _source_stamps(data, partition, name)
    return _load(data, partition, task.context, task.horizon, name, require_usable, stamps)  # pyright: ignore


def training_size(scenario: Scenario, name: str) -> tuple[int, slice]:
    """(meters, range of the training calendar in steps) of one client: public facts.

    A server does not know its nodes' calendars: there the declared size of a typical one stands for each.
    """
    data = scenario.data
    if data.source != "nodes":
        client = load_client(scenario, name)
        return client.num_meters, client.train
    steps = int(pd.Timedelta(days=data.days) / roster(scenario).step)
    return data.meters, slice(0, int(steps * data.train_fraction))


def owners(scenario: Scenario) -> tuple[str, ...]:
    """Whose readings a trusted curator holds (`partition.kind = pooled`); empty for every other partition."""
    data, partition = scenario.data, scenario.partition
    rule = PARTITIONERS[partition.kind]
    if not isinstance(rule, Pooled):
        return ()
    return rule.owners(Public(data, partition, available(data, partition), chosen=bool(data.clients)))


def held_of(scenario: Scenario, curator: ClientData) -> dict[str, ClientData]:
    """Owner -> its meters out of what the curator holds, on the curator's calendar and split, under its own name.

    Where all series have one calendar, this is the client that the natural partition makes of the owner. Simulation
    only: it is for scores of each owner.
    """
    data, partition = scenario.data, scenario.partition
    stamps = _source_stamps(data, partition, curator.name)
    pool, _ = _divided(data, partition, scenario.task.window, stamps)  # pyright: ignore
    found: dict[str, ClientData] = {}
    first = 0
    for owner in owners(scenario):
        meters = pool.read(owner).meters
        rows = slice(first, first + len(meters))
        found[owner] = replace(curator, name=owner, values=curator.values[rows], meters=meters)
        first += len(meters)
    assert first == curator.num_meters, "every meter has one owner"
    return found


def describe(scenario: Scenario) -> dict[str, Any]:
    """What the partition did: settings, number of series, and units, series, fill and classes of every client.

    Simulation only: for some kinds it reads all clients' readings, and says what follows from them.

    Raises:
        InputError: as `load_client`.
    """
    data, partition, people = scenario.data, scenario.partition, roster(scenario)
    stamps = _source_stamps(data, partition, people.names[0])
    _, division = _divided(data, partition, scenario.task.window, stamps)  # pyright: ignore
    clients = division.describe()
    return {
        "kind": partition.kind,
        "settings": partition.model_dump(mode="json"),
        "series": len({series for client in clients.values() for series in client["series"]}),
        "units": sum(client["units"] for client in clients.values()),
        "simulated_public": list(people.simulated_public),
        "clients": clients,
    }


def _source_stamps(data: DataConfig, partition: PartitionConfig, name: str) -> tuple[Stamp, ...]:
    """State of the files that the client's readings come from: its own, or all that are divided."""
    source = SOURCES[data.source]
    natural = partition.kind == "natural" and not partition.by
    series = (name,) if natural else available(data, partition)
    paths = dict.fromkeys(path for one in series for path in source.files(data, one))
    return stamps_of(list(paths))


def files(scenario: Scenario) -> list[Path]:
    """The files that a scenario's readings come from, sorted; none for generated data."""
    source, people = SOURCES[scenario.data.source], roster(scenario)
    natural = scenario.partition.kind == "natural" and not scenario.partition.by
    series = people.names if natural else available(scenario.data, scenario.partition)
    return sorted({path for one in series for path in source.files(scenario.data, one) if path.exists()})


@lru_cache(maxsize=_SERIES_KEPT)
def _series(data: DataConfig, name: str, stamps: tuple[Stamp, ...]) -> Series:
    """One series on the scenario's frequency, with its channels; shared by the clients that hold parts of it."""
    del stamps
    series = SOURCES[data.source].read(data, name)
    values, start, step, channels = prepared(series, data, f"series {name}")
    values.flags.writeable = False
    return replace(series, values=values, start=start, step=step, channels=channels)


@lru_cache(maxsize=16)
def _divided(
    data: DataConfig, partition: PartitionConfig, window: int, stamps: tuple[Stamp, ...]
) -> tuple[Pool, Division]:
    """Who holds what; computed once per process."""
    pool = Pool(
        data,
        partition,
        available(data, partition),
        chosen=bool(data.clients),
        window=window,
        parts=SOURCES[data.source].parts(data),
        read=lambda name: _series(data, name, stamps),  # pyright: ignore[reportArgumentType]
    )
    return pool, PARTITIONERS[partition.kind].divide(pool)


@lru_cache(maxsize=_CLIENTS_KEPT)
def _load(
    data: DataConfig,
    partition: PartitionConfig,
    context: int,
    horizon: int,
    name: str,
    require_usable: bool,
    stamps: tuple[Stamp, ...],
) -> ClientData:
    source, partitioner = SOURCES[data.source], PARTITIONERS[partition.kind]
    parts = source.parts(data)
    if partition.kind == "natural" and not partition.by:
        series = source.read(data, name)  # no other client's readings are needed
    else:
        pool, division = _divided(data, partition, context + horizon, stamps)  # pyright: ignore
        series = partitioner.alter(name, assemble(division, name, pool.read), pool)
        parts = None if partitioner.own_split else parts
    return client_data(name, series, data, context=context, horizon=horizon, parts=parts, require_usable=require_usable)
