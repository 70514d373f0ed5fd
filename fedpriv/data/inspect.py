"""A checked description of a user's own file, for `fedpriv data inspect`: what would go wrong, and where.

The result is for the owner of the data: it holds ranges and counts of private readings and is never sent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.data.files import header, read_columns, require_columns, time_column_of, value_column_of
from fedpriv.data.table import Column, Frame, infer_step, parse_stamps, regular_table, step_text, to_numbers
from fedpriv.errors import InputError

_IRREGULAR = 0.5  # share of rows off the grid beyond which there is none
_SPIKE = 8.0  # distance from the median, in scaled quartile ranges, beyond which a reading is called a spike


def inspect_file(
    path: Path, *, time_column: str = "", client_column: str = "", value_column: str = ""
) -> tuple[dict[str, object], Frame]:
    """Describes a CSV or Parquet file, wide or long.

    Unlike a reader it reports repeats, stamps off the grid and gaps instead of refusing them; text in numbers,
    missing columns and damaged files are still errors.

    Args:
        path: the file.
        time_column, client_column, value_column: as the keys `data.*` of a scenario.

    Returns:
        (summary, table). summary: file, format, rows, series, step, start, end, timezone, sorted,
        repeated_stamps (rows), off_grid (rows), problems (list of sentences; empty: it can be used as it is), remarks
        (list of sentences).
        table: a row per series with start, end, steps, readings, missing, missing_share, gaps, longest_gap
        (steps), repeated, off_grid, low, mean, high, zeros, negative, longest_flat (steps), spikes.

    Raises:
        InputError: missing or damaged file, missing column, no stamps, text in numbers.
    """
    time = time_column_of(path, time_column)
    where = f"file {path}"
    if client_column:
        require_columns([client_column], header(path), where=where)
        value = value_column_of(path, time, client_column, value_column)
        raw = read_columns(path, [time, client_column, value], text=[client_column])
        names = raw[client_column].astype("str").to_numpy()
        choices = {name: (names == name, value) for name in dict.fromkeys(names)}
    else:
        raw = read_columns(path, list(header(path)))
        choices = {name: (np.ones(len(raw), dtype=bool), name) for name in raw.columns if name != time}
    if not choices or not len(raw):
        raise InputError(f"{where} has no readings beside {time!r}.")
    index, zone = parse_stamps(raw[time], where=where)
    numbers = to_numbers(raw[sorted({column for _, column in choices.values()})], where=where).set_axis(index, axis=0)
    table: Frame = pd.DataFrame(
        {name: _describe(numbers[column][rows], where) for name, (rows, column) in choices.items()}
    ).T
    table.index.name = "series"
    steps = sorted(set(table["step"]))
    summary: dict[str, object] = {
        "file": str(path),
        "format": "long" if client_column else "wide",
        "rows": len(raw),
        "series": len(table),
        "step": steps[0] if len(steps) == 1 else steps,
        "start": str(index.min()),
        "end": str(index.max()),
        "timezone": zone,
        "sorted": bool(all(index[rows].is_monotonic_increasing for rows, _ in choices.values())),
        "repeated_stamps": int(table["repeated"].max()),
        "off_grid": int(table["off_grid"].max()),
    }
    summary["problems"] = _problems(summary, table)
    summary["remarks"] = _remarks(table)
    return summary, table.drop(columns="step").infer_objects()


def _describe(series: Column, where: str) -> dict[str, object]:
    """One series: its calendar, its gaps, its range."""
    stamps = cast(pd.DatetimeIndex, series.index)
    step = infer_step(stamps, where=where)
    repeated = np.asarray(stamps.duplicated())
    off = np.asarray((stamps - stamps.min()) % step != pd.Timedelta(0))
    if off.mean() > _IRREGULAR:
        raise InputError(
            f"{where}: the stamps follow no regular step: {int(off.sum())} of {len(stamps)} are off the grid of "
            f"{step_text(step)}, the most frequent distance of two rows. Round or resample them first; nothing was "
            "loaded."
        )
    clean = series[~(repeated | off)].to_frame("value")
    values = regular_table(clean, where=where, step=step).values[:, 0]
    missing = np.isnan(values)
    gaps = _runs(missing)
    read = values[~missing]
    same = np.diff(values) == 0
    low, middle, high = np.quantile(read, [0.25, 0.5, 0.75]) if len(read) else (np.nan,) * 3
    spread = max(high - low, 1e-12 + 1e-3 * abs(middle)) if len(read) else np.nan
    return {
        "step": step_text(step),
        "start": str(stamps.min()),
        "end": str(stamps.max()),
        "steps": len(values),
        "readings": len(read),
        "missing": int(missing.sum()),
        "missing_share": float(missing.mean()),
        "gaps": len(gaps),
        "longest_gap": int(gaps.max(initial=0)),
        "repeated": int(repeated.sum()),
        "off_grid": int(off.sum()),
        "low": float(read.min()) if len(read) else np.nan,
        "mean": float(read.mean()) if len(read) else np.nan,
        "high": float(read.max()) if len(read) else np.nan,
        "zeros": int((read == 0).sum()),
        "negative": int((read < 0).sum()),
        "longest_flat": int(_runs(same).max(initial=0)) + 1 if len(read) else 0,
        "spikes": int((np.abs(read - middle) > _SPIKE * spread).sum()) if len(read) else 0,
    }


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return (edges[1::2] - edges[::2]).astype(np.int64)


def _problems(summary: dict[str, object], table: Frame) -> list[str]:
    found: list[str] = []
    if isinstance(summary["step"], list):
        found.append(f"the series have different steps ({', '.join(summary['step'])}); set data.frequency")
    if summary["repeated_stamps"]:
        found.append("some stamps are there more than once; set data.duplicates=mean or remove the repeats")
    if summary["off_grid"]:
        found.append("some stamps are not a whole number of steps after the first; it cannot be read as it is")
    empty = [str(name) for name in table.index[table["readings"] == 0]]
    if empty:
        found.append(f"no reading at all in {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}")
    sparse = [str(name) for name in table.index[(table["missing_share"] > 0.2) & (table["readings"] > 0)]]
    if sparse:
        found.append(f"more than a fifth is missing in {', '.join(sparse[:5])}{' ...' if len(sparse) > 5 else ''}")
    return found


def _remarks(table: Frame) -> list[str]:
    """What is no fault of the file."""
    default, longest = Scenario(), int(table["steps"].max())
    data, window = default.data, default.task.window
    # validation and test each begin a window after the part before and hold one at least
    needed = math.ceil(2 * window / min(data.validation_fraction, 1 - data.train_fraction - data.validation_fraction))
    if longest >= needed:
        return []
    return [
        f"{longest:,} steps are too few for the default windows of {window} steps, which take {needed:,}; choose a "
        "shorter task.context or another split (data.train_fraction, data.validation_fraction)"
    ]
