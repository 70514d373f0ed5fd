"""Filling the gaps of a user's own series with a trained model.

Windows are laid so that every gap lies whole inside one window, with readings on both sides where there are any; gaps
that are close together share a window. What was read is returned as it was, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.data.table import Table
from fedpriv.diffusion.sampling import point_forecast, sample
from fedpriv.errors import InputError
from fedpriv.seeding import stream, torch_generator
from fedpriv.trained import LEVELS, Trained, check_samples, level_names, longest_run, quantiles_of, require
from fedpriv.user_panel import Panel, as_table, lay_out, left_out

LEAST_GIVEN = 0.25  # share of a window that must be given: what the training masks leave, with some room
_ENTRIES = 1 << 23  # of float64 worked on at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Left:
    """A gap that was not filled."""

    series: str
    start: pd.Timestamp
    steps: int
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Imputation:
    """A table with its gaps filled.

    Attributes:
        table: readings as they were, bit by bit; filled entries are the model's conditional mean.
        filled: [T, N] bool, where the model filled in.
        quantiles: [Q, n] at LEVELS, of the n filled entries in the order of `np.nonzero(filled)`; [Q, 0] without
            samples.
        left: gaps that were not filled, each with its reason; their entries are NaN.
        notes: remarks for the user.
        skipped: [T] bool, stamps of local time that the clocks of its zone left out in spring: nothing was read there
            because there is no such hour, and nothing is filled.
    """

    table: Table
    filled: NDArray[np.bool_]
    quantiles: Floats
    left: tuple[Left, ...]
    notes: tuple[str, ...]
    skipped: NDArray[np.bool_]

    def frame(self, *, uncertainty: bool = False) -> Any:
        """A DataFrame like the table; with `uncertainty` followed by NAME.q05 ... NAME.q95, NaN where it was read."""
        frame = self.table.frame()
        if self.table.timezone == "UTC":
            frame.index = frame.index.tz_localize("UTC")
        if not uncertainty:
            return frame[~self.skipped]
        bands = {f"{name}.{level}": column for name in frame for level, column in self.band(str(name)).items()}
        return pd.concat([frame, pd.DataFrame(bands, index=frame.index)], axis=1)[~self.skipped]

    def band(self, series: str) -> dict[str, Floats]:
        """q05 ... q95 of one series, each [T], NaN where it was read or not filled. Empty without samples."""
        if not self.quantiles.size:
            return {}
        column = self.table.columns.index(series)
        rows, columns = np.nonzero(self.filled)
        own = columns == column
        found: dict[str, Floats] = {}
        for level, values in zip(level_names(), self.quantiles, strict=True):
            found[level] = np.full(len(self.table), np.nan)
            found[level][rows[own]] = values[own]
        return found


def impute(
    trained: Trained,
    table: Table | Any,
    *,
    samples: int = 0,
    seed: int = 0,
    longest_gap: int = 0,
    channels: Mapping[str, str] | None = None,
    resample: bool = False,
    timezone: str = "",
    unit: str = "",
    sampling: Mapping[str, object] | None = None,
) -> Imputation:
    """Fills the gaps of every series of a table.

    A gap is left as it is, with the reason, where it is longer than `longest_gap`, or where less than a quarter of
    the window around it was read. The same seed gives the same samples.

    Args:
        trained: the model.
        table: a `Table`, or a DataFrame with a DatetimeIndex; a column for each series. For a model of several
            channels: columns named as they are, or METER/CHANNEL.
        samples: draws per gap, for the quantiles; 0: only the mean.
        seed: of the samples.
        longest_gap: steps; 0: the longest run of hidden steps in training (see `fedpriv.trained.longest_run`).
        channels, resample, timezone, unit: see `fedpriv.user_panel.lay_out`.
        sampling: how samples are drawn, where not as the model was run; see `fedpriv.trained.Trained.sampled`.

    Raises:
        InputError: the model cannot fill gaps, or the table does not fit it.
    """
    require(trained, "impute")
    trained = trained.sampled(sampling or {})
    window, learned = trained.scenario.task.window, longest_run(trained.scenario.task)
    check_samples(samples, least=0, use="impute")
    longest_gap = longest_gap or learned
    if not 1 <= longest_gap < window:
        raise InputError(
            f"longest_gap={longest_gap} is not in 1 to {window - 1} steps (a window is {window}). Nothing was filled."
        )
    panel, notes = lay_out(
        trained, as_table(table), "impute", channels=channels, resample=resample, timezone=timezone, unit=unit
    )
    if longest_gap > learned:
        notes.append(f"gaps of more than {learned} steps are filled, which the model was not trained to do")
    tiles, left = _tiles(panel, window, longest_gap)
    values, quantiles = _fill(trained, panel, tiles, left, samples=samples, seed=seed)
    filled = np.isfinite(values) & np.isnan(panel.values)  # [M, T, C]
    names = panel.names
    shape = (len(panel.table), len(names))
    done = replace(
        panel.table,
        values=np.moveaxis(values, 0, 1).reshape(shape),
        columns=tuple(names),
        unit=unit or panel.table.unit,
    )
    where = np.moveaxis(filled, 0, 1).reshape(shape)
    skipped = _skipped(panel, timezone)
    if skipped.any():
        quantiles = quantiles[:, ~skipped[np.nonzero(where)[0]]] if quantiles.size else quantiles
        done.values[skipped], where[skipped] = np.nan, False
        left = [gap for gap in left if not skipped[(row := _row(panel, gap.start)) : row + gap.steps].all()]
    if not np.isnan(panel.values[:, ~skipped]).any():
        notes.append("the table has no gaps")
    return Imputation(
        table=done, filled=where, quantiles=quantiles, left=tuple(left), notes=tuple(notes), skipped=skipped
    )


def _skipped(panel: Panel, zone: str) -> NDArray[np.bool_]:
    """[T] stamps without a zone of their own that do not exist in `zone`, and at which nothing was read."""
    stamps = pd.date_range(panel.table.start, periods=len(panel.table), freq=panel.table.step)
    return left_out(panel.table, stamps, zone) & np.isnan(panel.values).all(axis=(0, 2))


def _row(panel: Panel, stamp: pd.Timestamp) -> int:
    return int((stamp - panel.table.start) // panel.table.step)


@dataclass(frozen=True)
class _Tile:
    """A window [start, start + L) of one meter and the gaps in it to fill; start may be negative in short tables."""

    meter: int
    start: int
    gaps: tuple[tuple[int, int], ...]


def _tiles(panel: Panel, window: int, longest: int) -> tuple[list[_Tile], list[Left]]:
    """Windows for all gaps that can be filled, and the gaps that are too long."""
    length = panel.values.shape[1]
    tiles: list[_Tile] = []
    left: list[Left] = []
    for meter, values in enumerate(panel.values):
        short: list[tuple[int, int]] = []
        for begin, stop in _runs(np.isnan(values).any(axis=1)):
            if stop - begin <= longest:
                short.append((begin, stop))
            else:
                reason = f"longer than {longest} steps, the longest gap that is filled"
                left += _lefts(panel, meter, [(begin, stop)], reason)
        while short:
            # Gaps that fit into half a window share one, so that at least a quarter of it lies on either side.
            room = max(window // 2, short[0][1] - short[0][0])
            gaps = tuple(gap for gap in short if gap[1] - short[0][0] <= room)
            short = short[len(gaps) :]
            middle = (gaps[0][0] + gaps[-1][1] - window) // 2
            tiles.append(_Tile(meter, min(max(middle, 0), length - window), gaps))
    return tiles, left


def _runs(missing: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[begin, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _lefts(
    panel: Panel, meter: int, gaps: list[tuple[int, int]], reason: str, channel: int | None = None
) -> list[Left]:
    """The gaps of the channels (or one) in which something is missing."""
    table, found = panel.table, []
    for begin, stop in gaps:
        missing = np.isnan(panel.values[meter, begin:stop])  # [n, C]
        for c, name in enumerate(panel.columns[meter]):
            if (channel is None or c == channel) and missing[:, c].any():
                steps = int(missing[:, c].sum())
                first = table.start + (begin + int(np.argmax(missing[:, c]))) * table.step
                found.append(Left(name, first, steps, reason))
    return found


def _fill(
    trained: Trained, panel: Panel, tiles: list[_Tile], left: list[Left], *, samples: int, seed: int
) -> tuple[Floats, Floats]:
    """[M, T, C] with the gaps of the tiles filled, and [Q, n] quantiles of these in table order; adds to `left`."""
    values = panel.values.copy()
    window, diffusion = trained.scenario.task.window, trained.scenario.diffusion
    meters, _, channels = values.shape
    places: list[NDArray[np.int64]] = []  # in the flattened table [T * M * C]
    bands: list[Floats] = []
    generator = torch_generator(stream(seed, "impute"))
    size = max(1, _ENTRIES // (max(samples, 1) * window * channels))
    for low in range(0, len(tiles), size):
        some = tiles[low : low + size]
        read = np.stack([_cut(panel.values[tile.meter], tile.start, window) for tile in some])  # [B, L, C]
        hidden = np.zeros(read.shape, dtype=bool)
        for row, tile in enumerate(some):
            for begin, stop in tile.gaps:
                inside = slice(begin - tile.start, stop - tile.start)
                hidden[row, inside] = np.isnan(read[row, inside])
        given = np.isfinite(read).mean(axis=1)  # [B, C]
        for row, channel in zip(*np.nonzero((given < LEAST_GIVEN) & hidden.any(axis=1)), strict=True):
            tile, count = some[row], round(given[row, channel] * window)
            reason = f"only {count} readings in the window of {window} steps around it"
            left += _lefts(panel, tile.meter, list(tile.gaps), reason, channel)
            hidden[row, :, channel] = False
        examples = trained.examples(read, hidden, _calendars(panel, some, window))
        made = point_forecast(trained.model, examples, diffusion).double().numpy()
        row, step, channel = np.nonzero(hidden)
        meter = np.array([tile.meter for tile in some])[row]
        place = np.array([tile.start for tile in some])[row] + step
        values[meter, place, channel] = made[row, step, channel]
        if samples:
            drawn = sample(trained.model, examples, count=samples, diffusion=diffusion, generator=generator)
            at_gaps = drawn.numpy()[:, row, step, channel].astype(np.float64)
            bands.append(quantiles_of(at_gaps))
            places.append((place * meters + meter) * channels + channel)
    if not bands:
        return values, np.zeros((len(LEVELS) if samples else 0, 0))
    return values, np.concatenate(bands, axis=1)[:, np.argsort(np.concatenate(places))]


def _cut(values: Floats, start: int, length: int) -> Floats:
    """[length, C] from `start`, NaN before the beginning."""
    part = values[max(start, 0) : start + length]
    return np.concatenate([np.full((length - len(part), values.shape[1]), np.nan), part])


def _calendars(panel: Panel, tiles: list[_Tile], window: int) -> NDArray[np.float32]:
    """[B, L, F]; windows of equal start are computed once."""
    step, origin = panel.table.step, panel.table.start
    known = {
        start: panel.clock.features(pd.date_range(origin + start * step, periods=window, freq=step))
        for start in {tile.start for tile in tiles}
    }
    return np.stack([known[tile.start] for tile in tiles])
