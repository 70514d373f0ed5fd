"""From a scenario to its clients: the public roster first, then one client's readings at a time."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import DataConfig, PartitionConfig, Scenario
from fedpriv.data.partition import PARTITIONERS, Division, Pool, Public, assemble
from fedpriv.data.partitions.base import part_slices
from fedpriv.data.partitions.pooled import Pooled
from fedpriv.data.registry import DATA_DIR_VARIABLE, fingerprint
from fedpriv.data.sources import SOURCES, Parts, Series
from fedpriv.data.table import group_means, parse_step
from fedpriv.errors import InputError

_SYNTHETIC_PER_CLIENT = 4  # synthetic series divided among clients where partition.series says nothing
_SERIES_KEPT = 256  # series of a divided source kept per process
_CLIENTS_KEPT = 256  # ClientData objects kept per process; Ray actors persist and see the same clients again

Stamp = tuple[str, int, int]  # path, size, modification time in ns


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's readings on its public calendar. The readings are private; everything else is public.

    Attributes:
        name: as in the roster.
        values: [M, T, C] float32, physical units, NaN where nothing was read; not writable.
        start, step: calendar of axis T.
        meters, channels: [M] and [C] names.
        unit: physical unit of the readings.
        train, validation, test: index ranges of axis T, with a gap of one window between them.
        timezone: "UTC" or "local".
    """

    name: str
    values: NDArray[np.float32]
    start: pd.Timestamp
    step: pd.Timedelta
    meters: tuple[str, ...]
    channels: tuple[str, ...]
    unit: str
    train: slice
    validation: slice
    test: slice
    timezone: str = "local"

    def __repr__(self) -> str:
        """Public facts only: a client's readings do not belong in logs."""
        return f"ClientData(name={self.name!r}, shape={self.values.shape}, start={self.start}, step={self.step})"

    def part(self, name: str) -> slice:
        """The index range of `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def num_meters(self) -> int:
        """M."""
        return len(self.meters)

    @property
    def index(self) -> pd.DatetimeIndex:
        """[T] stamps."""
        return pd.date_range(self.start, periods=self.values.shape[1], freq=self.step)


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
    stamps = _stamps([Path(data.path).expanduser()]) if data.source == "csv" else ()
    return _roster(data, scenario.partition, os.environ.get(DATA_DIR_VARIABLE, ""), stamps)  # pyright: ignore


@lru_cache(maxsize=32)
def _roster(data: DataConfig, partition: PartitionConfig, directory: str, stamps: tuple[Stamp, ...]) -> Roster:
    del directory, stamps  # part of the key only
    source = SOURCES[data.source]
    facts = source.facts(data)
    partitioner = PARTITIONERS[partition.kind]
    names = partitioner.names(Public(data, partition, _available(data, partition), chosen=bool(data.clients)))
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
        _require_channel(channel, present, f"source {data.source}")
    return data.channels or present


def _available(data: DataConfig, partition: PartitionConfig) -> tuple[str, ...]:
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
    return rule.owners(Public(data, partition, _available(data, partition), chosen=bool(data.clients)))


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
    series = (name,) if natural else _available(data, partition)
    paths = dict.fromkeys(path for one in series for path in source.files(data, one))
    return _stamps(list(paths))


def files(scenario: Scenario) -> list[Path]:
    """The files that a scenario's readings come from, sorted; none for generated data."""
    source, people = SOURCES[scenario.data.source], roster(scenario)
    natural = scenario.partition.kind == "natural" and not scenario.partition.by
    series = people.names if natural else _available(scenario.data, scenario.partition)
    return sorted({path for one in series for path in source.files(scenario.data, one) if path.exists()})


@lru_cache(maxsize=_SERIES_KEPT)
def _series(data: DataConfig, name: str, stamps: tuple[Stamp, ...]) -> Series:
    """One series on the scenario's frequency, with its channels; shared by the clients that hold parts of it."""
    del stamps
    series = SOURCES[data.source].read(data, name)
    values, start, step, channels = _prepared(series, data, f"series {name}")
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
        _available(data, partition),
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


def client_data(
    name: str,
    series: Series,
    data: DataConfig,
    *,
    context: int,
    horizon: int,
    parts: Parts | None = None,
    require_usable: bool = True,
) -> ClientData:
    """Resamples, picks channels, splits by time and checks that every part has a usable window.

    Args:
        name: for the client and for messages.
        series: [M, T, C] readings.
        data: frequency, channels and split.
        context, horizon: steps of a window.
        parts: the source's customary split, used unless `data` gives its own.
        require_usable: see `load_client`; the lengths of the parts are checked always.

    Raises:
        InputError: see `load_client`.
    """
    where = f"client {name}"
    values, start, step, channels = _prepared(series, data, where)
    readings = values.astype(np.float32, order="C")  # [M, T, C]
    window = context + horizon
    if readings.shape[1] < window:
        raise InputError(
            f"{where}: the window of {window} steps (task.context + task.horizon) is longer than the series of "
            f"{readings.shape[1]} steps. Nothing was started."
        )
    slices = part_slices(readings.shape[1], start, step, data, parts, window)
    for label, part in zip(("training", "validation", "test"), slices, strict=True):
        _require_length(part, window, where=where, label=label)
        if require_usable:
            _require_usable(readings[:, part], context, horizon, where=where, label=label)
    readings.flags.writeable = False
    train, validation, test = slices
    return ClientData(
        name=name,
        values=readings,
        start=start,
        step=step,
        meters=series.meters,
        channels=channels,
        unit=series.unit,
        train=train,
        validation=validation,
        test=test,
        timezone=series.timezone,
    )


def _prepared(
    series: Series, data: DataConfig, where: str
) -> tuple[NDArray[np.float64], pd.Timestamp, pd.Timedelta, tuple[str, ...]]:
    """[M, T, C] on the step of `data.frequency` with the channels of `data.channels`; start, step, channels."""
    values, start, step = np.moveaxis(series.values, 1, 0), series.start, series.step  # [T, M, C]
    if data.frequency:
        target = parse_step(data.frequency)
        values, start = group_means(values, start, step, target, where=where)
        step = target
    values, channels = _pick_channels(values, series.channels, data.channels, where)
    return np.moveaxis(values, 0, 1), start, step, channels


def _pick_channels(
    values: NDArray[np.float64], present: tuple[str, ...], wanted: tuple[str, ...], where: str
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    if not wanted:
        return values, present
    for channel in wanted:
        _require_channel(channel, present, where)
    return values[..., [present.index(c) for c in wanted]], wanted


def _require_channel(channel: str, present: tuple[str, ...], where: str) -> None:
    if channel not in present:
        near = difflib.get_close_matches(channel, present, n=1, cutoff=0.0)[0]
        raise InputError(f"{where} has no channel {channel!r}; the nearest is {near!r}. Nothing was started.")


_ADVICE = "Choose shorter windows or another split (data.train_until, data.train_fraction); nothing was started."


def _require_length(part: slice, window: int, *, where: str, label: str) -> None:
    """At least one window must fit: a matter of the calendar alone."""
    steps = max(part.stop - part.start, 0)
    if steps < window:
        raise InputError(
            f"{where} has no usable window in its {label} part: {steps} steps remain there, a window takes {window}. "
            f"{_ADVICE}"
        )


def _require_usable(part: NDArray[np.float32], context: int, horizon: int, *, where: str, label: str) -> None:
    """At least one window must have something read both in its context and in its horizon."""
    window = context + horizon
    read = np.isfinite(part).any(axis=2)  # [M, n]
    before = np.concatenate([np.zeros((part.shape[0], 1), dtype=np.int64), np.cumsum(read, axis=1)], axis=1)
    starts = part.shape[1] - window + 1
    in_context = before[:, context : context + starts] - before[:, :starts]
    in_horizon = before[:, window : window + starts] - before[:, context : context + starts]
    if not np.any((in_context > 0) & (in_horizon > 0)):
        raise InputError(
            f"{where} has no usable window in its {label} part: nowhere are there readings both in {context} steps "
            f"of context and in the {horizon} steps after. {_ADVICE}"
        )


def _stamps(paths: Sequence[Path]) -> tuple[Stamp, ...]:
    return tuple((str(path), *fingerprint(path)) for path in paths if path.exists())
