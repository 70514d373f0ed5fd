"""A user's own CSV or Parquet data: one file, wide or long, or a directory with a file per client.

file, wide             every column of readings is a client
file, client_column    every id is a client
file, channels         the file is one client, and the named columns are its channels
directory, wide        every file is a client, and its columns are the client's meters
directory, long        every file is a client, and its ids are the client's meters
directory, channels    every file is a client with one meter, and the named columns are its channels

With `data.group` a single file is one client of that name, whatever its columns are called: the columns or ids (those
in `data.clients`, or all) are its meters, or the named channels are those of its one meter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.files import (
    header,
    is_table_file,
    read_columns,
    read_table,
    require_columns,
    series_name,
    time_column_of,
    value_column_of,
)
from fedpriv.data.sources.base import Facts, Parts, Series
from fedpriv.data.table import Table, infer_step, parse_stamps
from fedpriv.errors import InputError

_STAMPS_FOR_STEP = 2000  # rows of the time column that the roster looks at


class CsvSource:
    """Clients are files, columns or ids of the user's data."""

    def facts(self, config: DataConfig) -> Facts:
        """Whose data they are is the user's to say."""
        return Facts("the user's own", "", config.unit)

    def known(self, config: DataConfig) -> Sequence[str]:
        """File names, column names, or nothing (ids are checked when they are read)."""
        return () if _ids_are_clients(config) or config.group else self.default(config, 0)

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """Files by name, columns as they stand, ids in order of appearance."""
        path = _path(config)
        if config.group:
            return [config.group]
        if path.is_dir():
            return [series_name(file) for file in _files(path)]
        if config.channels:
            return [series_name(path)]
        time = time_column_of(path, config.time_column)
        if not config.client_column:
            names = [c for c in header(path) if c != time]
            if not names:
                raise InputError(f"file {path} has no column of readings beside {time!r}; nothing was started.")
            return names
        column = config.client_column
        ids = read_columns(path, [column], text=[column])[column].astype("str")
        return list(dict.fromkeys(ids))

    def step(self, config: DataConfig) -> pd.Timedelta:
        """From the first stamps of the first file; stamps only, no reading is looked at."""
        first = _first_file(config)
        time = time_column_of(first, config.time_column)
        stamps = read_columns(first, [time], rows=_STAMPS_FOR_STEP)[time]
        index, _ = parse_stamps(stamps, where=f"file {first}")
        return infer_step(index, where=f"file {first}")

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """The named channels; else the column of readings (long), else one called `value` (wide)."""
        if config.channels:
            return config.channels
        if not config.client_column:
            return ("value",)
        path = _first_file(config)
        time = time_column_of(path, config.time_column)
        return (value_column_of(path, time, config.client_column, config.value_column),)

    def parts(self, config: DataConfig) -> Parts | None:
        """None: by fractions."""
        return None

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """The step, and the client names where they come out of the data."""
        found = ["step (from the first stamps)"]
        if config.group:
            return found
        if _ids_are_clients(config) and not config.clients:
            found.append(f"client names (a scan of column {config.client_column!r}; give data.clients to avoid it)")
        elif not config.clients:
            found.append("client names (file or column names)")
        return found

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """The client's file, or the one that holds all."""
        path = _path(config)
        return (next(f for f in _files(path) if series_name(f) == name),) if path.is_dir() else (path,)

    def read(self, config: DataConfig, name: str) -> Series:
        """[M, T, C] by the layout of the module's table."""
        (path,) = self.files(config, name)
        chosen = config.clients if config.group else () if _path(config).is_dir() else (name,)  # empty: all
        if config.channels:
            return Series.of_channels(_read(path, config, columns=config.channels), meter=name)
        if config.client_column:
            time = time_column_of(path, config.time_column)
            channel = value_column_of(path, time, config.client_column, config.value_column)
            return Series.of_meters(_read(path, config, ids=chosen), channel=channel)
        return Series.of_meters(_read(path, config, columns=chosen), channel="value")


def _read(path: Path, config: DataConfig, *, columns: Sequence[str] = (), ids: Sequence[str] = ()) -> Table:
    return read_table(
        path,
        time_column=config.time_column,
        client_column="" if config.channels else config.client_column,
        value_column=config.value_column,
        unit=config.unit,
        columns=columns,
        ids=ids,
        duplicates=config.duplicates,
    )


def _path(config: DataConfig) -> Path:
    path = Path(config.path).expanduser()
    if not path.exists():
        raise InputError(f"data.path={config.path!r} does not exist; nothing was started.")
    if config.group and path.is_dir():
        raise InputError(
            f"data.group={config.group!r} makes one file one client, but {config.path!r} is a directory; nothing "
            "was started."
        )
    if config.channels and path.is_file():
        require_columns(config.channels, header(path), where=f"file {path}")
    return path


def _first_file(config: DataConfig) -> Path:
    path = _path(config)
    return _files(path)[0] if path.is_dir() else path


def _ids_are_clients(config: DataConfig) -> bool:
    return bool(config.client_column) and not config.channels and Path(config.path).expanduser().is_file()


def _files(directory: Path) -> list[Path]:
    files = sorted(f for f in directory.iterdir() if f.is_file() and is_table_file(f) and not f.name.startswith("."))
    if not files:
        raise InputError(f"directory {directory} holds no .csv, .csv.gz or .parquet file; nothing was started.")
    names = [series_name(f) for f in files]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"directory {directory} holds {twice!r} in two formats; keep one. Nothing was started.")
    return files
