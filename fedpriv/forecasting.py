"""Forecasts of a user's own series with a trained model.

Horizons beyond the trained one are rolled: every sampled trajectory becomes the newest part of its own context, and
the next block is drawn from there, so that the spread grows as it should. The point forecast of a later block is the
mean over trajectories of the model's conditional mean, which has less sampling error than a mean of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.data.table import Table
from fedpriv.diffusion.sampling import point_forecast, sample
from fedpriv.errors import InputError
from fedpriv.seeding import stream, torch_generator
from fedpriv.trained import LEVELS, Trained, check_samples, level_names, quantiles_of, require
from fedpriv.user_panel import Panel, as_table, lay_out, left_out

LONGEST = 10_000  # steps of a horizon
SPARSE = 0.5  # share of the context below which a remark is made
_ENTRIES = 1 << 23  # of float64 worked on at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Forecast:
    """Forecasts of N series over H steps, in the unit of the table.

    Attributes:
        series: [N] names of the table's columns, without those that could not be forecast.
        stamps: [H], naive; the clock is that of the table.
        mean: [N, H] point forecast.
        quantiles: [N, Q, H] at LEVELS.
        samples: [S, N, H].
        past: [N, context] what the model was given, NaN where nothing was read.
        past_stamps: [context].
        skipped: name -> why it could not be forecast.
        notes: remarks for the user.
        unit: of the table's readings; may be empty.
        timezone: "UTC" or "local".
        absent: [H] bool, stamps of local time that the clocks of its zone leave out in spring: no row of `frame`.
    """

    series: tuple[str, ...]
    stamps: pd.DatetimeIndex
    mean: Floats
    quantiles: Floats
    samples: Floats
    past: Floats
    past_stamps: pd.DatetimeIndex
    skipped: dict[str, str]
    notes: tuple[str, ...]
    unit: str
    timezone: str
    absent: NDArray[np.bool_]

    def frame(self, *, time: str = "time", series: str = "series", samples: bool = False) -> Any:
        """A DataFrame with a row for every series and step: time, series, mean, q05 ... q95, and the samples if asked.

        Args:
            time, series: names of the first two columns.
            samples: add sample_001, sample_002, ...
        """
        count, horizon = self.mean.shape
        stamps = self.stamps.tz_localize("UTC") if self.timezone == "UTC" else self.stamps
        columns: dict[str, object] = {
            time: pd.DatetimeIndex(np.tile(stamps, count)) if count else stamps[:0],
            series: np.repeat(np.array(self.series, dtype=object), horizon),
            "mean": self.mean.reshape(-1),
        }
        columns |= {name: self.quantiles[:, i].reshape(-1) for i, name in enumerate(level_names())}
        if samples:
            columns |= {f"sample_{i + 1:03d}": drawn.reshape(-1) for i, drawn in enumerate(self.samples)}
        found = pd.DataFrame(columns)
        return found[~np.tile(self.absent, count)].reset_index(drop=True) if self.absent.any() else found


def forecast(
    trained: Trained,
    table: Table | Any,
    *,
    horizon: int = 0,
    samples: int = 100,
    seed: int = 0,
    at: str = "",
    channels: Mapping[str, str] | None = None,
    resample: bool = False,
    timezone: str = "",
    unit: str = "",
    sampling: Mapping[str, object] | None = None,
) -> Forecast:
    """Forecasts every series of a table from its newest readings.

    All series are forecast for the same stamps: from the step after the last row that holds a reading. Gaps, also one
    at the end of a single series, are allowed; a series is skipped, with the reason, where less than a season (at most
    half the context) of readings is left in the context. The same seed gives the same samples.

    Args:
        trained: the model.
        table: a `Table`, or a DataFrame with a DatetimeIndex; a column for each series. For a model of several
            channels: columns named as they are, or METER/CHANNEL.
        horizon: steps; 0: as trained. Longer horizons are rolled.
        samples: trajectories drawn per series, for the quantiles.
        seed: of the samples.
        at: stamp of the first step to forecast; readings from there on are not used. Empty: after the last reading.
        channels, resample, timezone, unit: see `fedpriv.user_panel.lay_out`.
        sampling: how samples are drawn, where not as the model was run; see `fedpriv.trained.Trained.sampled`.

    Raises:
        InputError: the model cannot forecast, the table does not fit it, or no series has enough readings.
    """
    require(trained, "forecast")
    trained = trained.sampled(sampling or {})
    task = trained.scenario.task
    horizon = horizon or task.horizon
    if not 1 <= horizon <= LONGEST:
        raise InputError(f"horizon={horizon} is not in 1 to {LONGEST} steps. Nothing was forecast.")
    check_samples(samples, least=2, use="forecast")
    panel, notes = lay_out(
        trained,
        as_table(table),
        "forecast",
        channels=channels,
        resample=resample,
        timezone=timezone,
        unit=unit,
    )
    past, origin = _newest(panel, task.context, at)  # [M, context, C]
    chosen, skipped = _enough(panel, past, trained.period, notes)  # [M, C] bool
    if not chosen.any():
        first, reason = next(iter(skipped.items()))
        raise InputError(f"no series can be forecast; {first}: {reason}. Nothing was forecast.")
    if horizon > task.horizon:
        notes.append(
            f"{horizon} steps are more than the {task.horizon} that the model was trained for: rolled forward in "
            f"{-(-horizon // task.horizon)} blocks"
        )
    rows = np.flatnonzero(chosen.any(axis=1))
    mean, drawn = _roll(trained, panel, past[rows], origin, horizon=horizon, samples=samples, seed=seed)
    keep = chosen[rows].reshape(-1)  # of the [rows * C] series
    mean = np.moveaxis(mean, 2, 1).reshape(-1, horizon)[keep]
    drawn = np.moveaxis(drawn, 3, 2).reshape(samples, -1, horizon)[:, keep]
    step = panel.table.step
    stamps = pd.date_range(origin, periods=horizon, freq=step)
    absent = left_out(panel.table, stamps, timezone)
    if absent.any():
        hours = ", ".join(f"{stamp:%Y-%m-%d %H:%M}" for stamp in stamps[absent])
        notes.append(f"the clocks of {timezone} leave out {hours}: no row is made")
    return Forecast(
        series=tuple(name for name, here in zip(panel.names, chosen.reshape(-1), strict=True) if here),
        stamps=stamps,
        mean=mean,
        quantiles=np.moveaxis(quantiles_of(drawn), 0, 1),
        samples=drawn,
        past=np.moveaxis(past[rows], 2, 1).reshape(-1, task.context)[keep],
        past_stamps=pd.date_range(origin - task.context * step, periods=task.context, freq=step),
        skipped=skipped,
        notes=tuple(notes),
        unit=unit or panel.table.unit,
        timezone=panel.table.timezone,
        absent=absent,
    )


def _newest(panel: Panel, context: int, at: str) -> tuple[Floats, pd.Timestamp]:
    """[M, context, C] the readings before the origin, NaN where there are none; and the origin."""
    values, table = panel.values, panel.table
    read = np.flatnonzero(np.isfinite(values).any(axis=(0, 2)))
    if not len(read):
        raise InputError("the table holds no readings. Nothing was forecast.")
    stop = int(read[-1]) + 1 if not at else _position(table, at)
    begin = stop - context
    part = values[:, max(begin, 0) : max(stop, 0)]
    past = np.full((values.shape[0], context, values.shape[2]), np.nan)
    first = max(-begin, 0)
    past[:, first : first + part.shape[1]] = part
    return past, cast(pd.Timestamp, table.start + stop * table.step)


def _position(table: Table, at: str) -> int:
    """The row at which `at` lies; may be beyond the table's end."""
    try:
        stamp = pd.Timestamp(at)
    except ValueError:
        stamp = pd.NaT
    if not isinstance(stamp, pd.Timestamp):
        raise InputError(f"at={at!r} is not a stamp such as 2024-01-31T13:00. Nothing was forecast.")
    if stamp.tzinfo is not None:
        if table.timezone != "UTC":
            raise InputError(f"at={at!r} names a zone, but the table's stamps do not. Nothing was forecast.")
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    since = (stamp - table.start).value
    if since % table.step.value:
        raise InputError(
            f"at={at!r} is not a whole number of steps after the table's start, {table.start}. Nothing was forecast."
        )
    return int(since // table.step.value)


def _enough(panel: Panel, past: Floats, period: int, notes: list[str]) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """[M, C] which series have the readings that a forecast needs; and the reasons of the others."""
    context = past.shape[1]
    least = max(1, min(period, context // 2))
    given = np.isfinite(past).sum(axis=1)  # [M, C]
    counts = dict(zip(panel.names, given.reshape(-1).tolist(), strict=True))
    skipped = {
        name: f"{count} readings in the {context} steps before the forecast, at least {least} are needed"
        for name, count in counts.items()
        if count < least
    }
    sparse = [name for name, count in counts.items() if least <= count < SPARSE * context]
    if sparse:
        shown = ", ".join(sparse[:5]) + (f" and {len(sparse) - 5} more" if len(sparse) > 5 else "")
        notes.append(f"less than half of the context of {context} steps was read: {shown}")
    return given >= least, skipped


def _roll(
    trained: Trained,
    panel: Panel,
    past: Floats,
    origin: pd.Timestamp,
    *,
    horizon: int,
    samples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Mean [M, horizon, C] and samples [S, M, horizon, C]."""
    task, step = trained.scenario.task, panel.table.step
    meters, _, channels = past.shape
    generator = torch_generator(stream(seed, "forecast"))
    starts = range(0, horizon, task.horizon)
    calendars = [
        panel.clock.features(
            pd.date_range(origin + (start - task.context) * step, periods=task.window, freq=step)  # pyright: ignore
        )
        for start in starts
    ]
    mean = np.empty((meters, horizon, channels))
    drawn = np.empty((samples, meters, horizon, channels))
    size = max(1, _ENTRIES // ((samples if len(starts) > 1 else 1) * task.window * channels))
    for low in range(0, meters, size):
        some = slice(low, low + size)
        history = past[some]  # [m, context, C]; from the second block on [S * m, context, C]
        for start, calendar in zip(starts, calendars, strict=True):
            span = slice(start, min(start + task.horizon, horizon))
            point, block = _block(trained, history, calendar, count=1 if start else samples, generator=generator)
            if start:
                by_sample = (samples, -1, task.horizon, channels)
                point, block = point.reshape(by_sample).mean(axis=0), block.reshape(by_sample)
            mean[some, span] = point[:, : span.stop - span.start]
            drawn[:, some, span] = block[:, :, : span.stop - span.start]
            if span.stop < horizon:
                before = np.broadcast_to(history, (samples, *history.shape)) if not start else history
                before = before.reshape(-1, *history.shape[1:])
                block = block.reshape(-1, *block.shape[2:])
                history = np.concatenate([before, block], axis=1)[:, -task.context :]
    return mean, drawn


def _block(
    trained: Trained, history: Floats, calendar: NDArray[np.float32], *, count: int, generator: Any
) -> tuple[Floats, Floats]:
    """One trained horizon: conditional mean [R, H, C] and `count` samples [count, R, H, C]."""
    task, diffusion = trained.scenario.task, trained.scenario.diffusion
    rows, _, channels = history.shape
    ahead = np.full((rows, task.horizon, channels), np.nan)
    values = np.concatenate([history, ahead], axis=1)  # [R, L, C]
    hidden = np.zeros(values.shape, dtype=bool)
    hidden[:, task.context :] = True
    examples = trained.examples(values, hidden, calendar)
    point = point_forecast(trained.model, examples, diffusion)[:, task.context :]
    drawn = sample(trained.model, examples, count=count, diffusion=diffusion, generator=generator)
    return point.double().numpy(), drawn[:, :, task.context :].double().numpy()


__all__ = ["LEVELS", "Forecast", "forecast"]
