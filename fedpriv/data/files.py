"""Reading a user's own CSV or Parquet file, wide (a column per series) or long (a row per reading)."""

from __future__ import annotations

import csv
import difflib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from fedpriv.data.table import Duplicates, Frame, Table, parse_stamps, parse_step, regular_table
from fedpriv.errors import InputError

SUFFIXES = (".csv.gz", ".csv", ".parquet", ".pq")


def series_name(path: Path) -> str:
    """The file's name without its ending."""
    return next((path.name[: -len(s)] for s in SUFFIXES if path.name.lower().endswith(s)), path.stem)


def is_table_file(path: Path) -> bool:
    """Whether the ending is one that `read_table` reads."""
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong while reading `path` into an InputError that says what it was."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise InputError(f"file {path} does not exist; nothing was loaded.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"file {path} is a truncated or damaged gzip file ({error}); nothing was loaded.") from None
    except UnicodeDecodeError:
        raise InputError(f"file {path} is not UTF-8 text; nothing was loaded.") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"file {path} is empty; nothing was loaded.") from None
    except (pd.errors.ParserError, pa.ArrowException, csv.Error):
        # the library's message may quote a line of the file, so it is not passed on
        likely = (
            "it is damaged or cut off" if _is_parquet(path) else "rows of unequal length, or no commas between cells"
        )
        raise InputError(f"file {path} is not a well-formed table ({likely}); nothing was loaded.") from None
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror or 'damaged'}); nothing was loaded.") from None


def header(path: Path) -> tuple[str, ...]:
    """The column names, without reading a row of data.

    Raises:
        InputError: no such file, not a table, cells that are not separated by commas, or two columns of one name.
    """
    with reading(path):
        if _is_parquet(path):
            import pyarrow.parquet as pq

            names = list(pq.read_schema(path).names)
        else:
            with (gzip.open if _is_gzip(path) else open)(path, "rt", encoding="utf-8-sig") as stream:
                names = next(csv.reader(stream), [])
    if len(names) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), "")):
        raise InputError(
            f"file {path} separates its cells by {mark!r}; commas are expected, and points in numbers. "
            "Nothing was loaded."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"file {path} has two columns named {twice!r}; nothing was loaded.")
    return tuple(names)


def read_columns(path: Path, columns: Sequence[str], *, rows: int | None = None, text: Sequence[str] = ()) -> Frame:
    """Only `columns` of `path`, in that order; the first `rows` of them; those in `text` as they are written.

    Rows with more or fewer cells than the header are an error (pandas would cut them off without a word).

    Raises:
        InputError: no such file or column (the nearest one is named), damaged file.
    """
    chosen = list(columns)
    require_columns(chosen, header(path), where=f"file {path}")
    with reading(path):
        if _is_parquet(path):
            import pyarrow.parquet as pq

            frame = pq.read_table(path, columns=chosen).to_pandas(ignore_metadata=True, date_as_object=False)
            return frame[chosen].iloc[:rows]
        if rows is not None:
            return pd.read_csv(path, usecols=chosen, nrows=rows)[chosen]
        import pyarrow as pa
        import pyarrow.csv as arrow

        options = arrow.ConvertOptions(
            include_columns=chosen, column_types={name: pa.string() for name in text}, strings_can_be_null=True
        )
        content = gzip.decompress(path.read_bytes()) if _is_gzip(path) else path.read_bytes()
        return arrow.read_csv(pa.BufferReader(content), convert_options=options).to_pandas(date_as_object=False)


def require_columns(wanted: Sequence[str], present: Sequence[str], *, where: str) -> None:
    """Raises InputError for the first of `wanted` that is not `present`, naming the nearest."""
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            shown = ", ".join(present[:8]) + (" ..." if len(present) > 8 else "")
            raise InputError(
                f"{where} has no column {name!r}{f'; the nearest is {near[0]!r}' if near else ''} (it has: {shown}). "
                "Nothing was loaded."
            )


def time_column_of(path: Path, configured: str) -> str:
    """The configured time column, else the first column of the file."""
    columns = header(path)
    if not columns:
        raise InputError(f"file {path} is empty; nothing was loaded.")
    if configured:
        require_columns([configured], columns, where=f"file {path}")
        return configured
    return columns[0]


def read_table(
    path: Path,
    *,
    time_column: str = "",
    client_column: str = "",
    value_column: str = "",
    unit: str = "",
    columns: Sequence[str] = (),
    ids: Sequence[str] = (),
    frequency: str = "",
    duplicates: Duplicates = "refuse",
) -> Table:
    """A user's CSV or Parquet file (CSV also gzip-compressed) as a checked table.

    Args:
        path: the file.
        time_column: column of ISO 8601 stamps; empty: the first one.
        client_column: long format: the column that names the series; empty: wide format.
        value_column: long format: the column of readings; empty: the only one left.
        unit: physical unit of the readings.
        columns: wide format: only these; empty: all but the time column.
        ids: long format: only these series; empty: all, in order of appearance.
        frequency: resample to this step by averaging complete groups; empty: as it is.
        duplicates: see `regular_table`.

    Raises:
        InputError: missing file or column, text in numbers, wrong frequency, repeats that cannot be repaired.
    """
    path = Path(path)
    time = time_column_of(path, time_column)
    where = f"file {path}"
    if client_column:
        frame, zone = _long_frame(path, time, client_column, value_column, tuple(ids), duplicates)
    else:
        chosen = list(columns) or [c for c in header(path) if c != time]
        if not chosen:
            raise InputError(f"{where} has no column of readings beside {time!r}; nothing was loaded.")
        raw = read_columns(path, [time, *chosen])
        index, zone = parse_stamps(raw[time], where=where)
        frame = raw[chosen].set_axis(index, axis=0)
    table = regular_table(frame, where=where, unit=unit, timezone=zone, duplicates=duplicates)
    return table.resampled(parse_step(frequency), where=where) if frequency else table


def value_column_of(path: Path, time: str, client: str, configured: str) -> str:
    """The configured value column, else the only column that is neither time nor client."""
    columns = header(path)
    if configured:
        require_columns([configured], columns, where=f"file {path}")
        return configured
    rest = [c for c in columns if c not in (time, client)]
    if len(rest) != 1:
        raise InputError(
            f"file {path} has {len(rest)} columns beside {time!r} and {client!r}; say with data.value_column which "
            "one holds the readings. Nothing was loaded."
        )
    return rest[0]


def _long_frame(
    path: Path, time: str, client: str, value: str, ids: tuple[str, ...], duplicates: Duplicates
) -> tuple[Frame, str]:
    require_columns([client], header(path), where=f"file {path}")
    value = value_column_of(path, time, client, value)
    raw = read_columns(path, [time, client, value], text=[client])
    names = raw[client].astype("str")
    chosen = list(ids) or list(dict.fromkeys(names))
    raw, names = raw[names.isin(chosen)], names[names.isin(chosen)]
    present = set(names)
    for name in chosen:
        if name not in present:
            raise InputError(f"file {path} has no rows with {client}={name}; nothing was loaded.")
    index, zone = parse_stamps(raw[time], where=f"file {path}")
    labels = names.to_numpy()
    values = raw[value].set_axis(index, axis=0).rename(value)
    # each series is checked on its own, so that a repeat in one is not mistaken for a row of another
    series = {
        name: regular_table(
            values[labels == name].to_frame(), where=f"file {path}, {client}={name}", duplicates=duplicates
        ).frame()[value]
        for name in chosen
    }
    return pd.DataFrame(series), zone


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith((".parquet", ".pq"))
