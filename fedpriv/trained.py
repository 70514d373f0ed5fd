"""A trained model with what one must know to use it, and a user's table laid out for it.

`fedpriv.forecasting` and `fedpriv.imputation` build on this. Nothing here looks at the data that the model was trained
on: step, channels, unit and clock are read from the run's model.json.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpriv.config import Scenario, TaskConfig
from fedpriv.data.table import Table, parse_stamps, regular_table, step_text
from fedpriv.data.tasks import make_examples
from fedpriv.data.windows import CALENDAR_FEATURES, Windows, calendar_features, season_steps
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.metrics import quantile
from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import load_reference, load_weights
from fedpriv.models.reference import make_one_round

Use = Literal["forecast", "impute"]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that are written."""
MOST_SAMPLES = 10_000
_NOTHING = {"forecast": "Nothing was forecast.", "impute": "Nothing was filled."}


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """A denoiser and the public facts that its use depends on.

    Attributes:
        model: with its trained parameters, on the CPU.
        scenario: complete, as it was run.
        step: time between two steps of the model.
        channels: [C] names.
        unit: physical unit of the training data; may be empty.
        timezone: clock of the training stamps, "UTC" or "local"; empty if unknown.
    """

    model: Denoiser
    scenario: Scenario
    step: pd.Timedelta
    channels: tuple[str, ...]
    unit: str = ""
    timezone: str = ""

    @classmethod
    def load(cls, path: Path | str, *, weights: Path | str | None = None) -> Trained:
        """The model of a run folder.

        Args:
            path: the folder.
            weights: another file of parameters of the same run, such as a client's own model beside its ledger
                (ledgers/CLIENT.personal.safetensors); None: the global model.

        Raises:
            InputError: not a run folder, no model in it yet, or a damaged file.
        """
        path = Path(path)
        if not (path / "scenario.toml").is_file():
            kind = "is not a run folder (no scenario.toml in it)" if path.exists() else "does not exist"
            raise InputError(f"{path} {kind}; runs are written by `fedpriv simulate`. Nothing was computed.")
        weights = Path(weights) if weights is not None else path / "model.safetensors"
        if weights == path / "model.safetensors" and not weights.is_file():
            raise InputError(
                f"{path} holds no model.safetensors: the run has not finished. Go on with it by `fedpriv simulate "
                f"{path / 'scenario.toml'} --out {path} --resume`. Nothing was computed."
            )
        # The start values are replaced below: a warm start's file need not be on this machine, adapters are merged.
        scenario = Scenario.from_toml(path / "scenario.toml")
        facts = _facts(path / "model.json") or _facts_of_the_data(scenario)
        model = build_denoiser(
            scenario.override({"model.warm_start": "", "model.trainable": "all"}),
            channels=len(facts["channels"]),
            calendar_features=CALENDAR_FEATURES,
            generator=torch.Generator(),
            period=season_steps(scenario.task.period, facts["step"]),
        )
        load_weights(model, weights)
        if kind := scenario.model.statistics:
            state = load_reference(weights, kind)
            if state is None:
                raise InputError(f"{weights} lacks the {kind} that the model starts from. Nothing was computed.")
            period = season_steps(scenario.task.period, facts["step"])
            model.reference = make_one_round(scenario, kind, period=period).restore(state)
        return cls.of(model, scenario, **facts)

    @classmethod
    def of(cls, model: Denoiser, scenario: Scenario, **facts: Any) -> Trained:
        """A model ready for use: a transformer whose output layer is all zero is not computed."""
        transformer = model.transformer
        model.run_transformer = transformer is not None and any(bool(p.any()) for p in transformer.output.parameters())
        return cls(model=model.eval(), scenario=scenario, **facts)

    @property
    def period(self) -> int:
        """Season of the model's baseline, steps."""
        return season_steps(self.scenario.task.period, self.step)

    def examples(
        self, values: NDArray[np.floating], hidden: NDArray[np.bool_], calendar: NDArray[np.float32]
    ) -> Examples:
        """What the model is given: readings, and what it is to generate.

        Args:
            values: [B, L, C] physical units; NaN where nothing was read.
            hidden: [B, L, C] bool, what to generate; what was read there is not looked at.
            calendar: [B, L, F] or [L, F] features of the stamps.
        """
        rows, length, _ = values.shape
        observed = np.isfinite(values) & ~hidden
        windows = Windows(
            values=torch.from_numpy(np.where(observed, values, 0.0).astype(np.float32)),
            observed=torch.from_numpy(observed),
            calendar=torch.from_numpy(calendar).expand(rows, length, calendar.shape[-1]),
        )
        target = torch.from_numpy(hidden)
        made = make_examples(windows, target, period=self.period, scaling=self.scenario.data, require_observed=False)
        # A reading that is missing elsewhere in the window is neither given nor asked, as it was in training.
        return replace(made, target=target)


def _facts(path: Path) -> dict[str, Any]:
    """Step, channels, unit and clock out of model.json; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return {
            "step": pd.Timedelta(seconds=float(card["step_seconds"])),
            "channels": tuple(str(name) for name in card["channels"]),
            "unit": str(card["unit"]),
            "timezone": str(card["timezone"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); nothing was computed.") from None


def _facts_of_the_data(scenario: Scenario) -> dict[str, Any]:
    """The same from the training data's headers, for runs that were made before model.json was written."""
    from fedpriv.data.roster import roster

    try:
        public = roster(scenario)
    except InputError as error:
        raise InputError(f"the run has no model.json, and its data cannot be asked instead: {error}") from None
    return {"step": public.step, "channels": public.channels, "unit": public.unit, "timezone": ""}


# ---- what a model has learned to do --------------------------------------------------------------------


def refusal(task: TaskConfig, use: Use) -> str:
    """Why a model of this task cannot be used so; empty where it can."""
    if use == "impute" and task.kind == "forecast":
        return (
            "a forecast model generates only the steps after its context and never sees what was read after a gap. "
            "Train one that fills gaps: --set task.kind=imputation, or task.kind=mixed for both"
        )
    if use == "forecast" and task.kind == "imputation" and task.mask not in ("block", "any"):
        return (
            f"its training masks (task.mask={task.mask}) never hid the end of a window, so it has not learned to "
            "forecast. Train with --set task.kind=forecast or mixed, or with task.mask=block or any"
        )
    return ""


def require(trained: Trained, use: Use) -> None:
    """Raises InputError with the reason where the model cannot be used so."""
    reason = refusal(trained.scenario.task, use)
    if reason:
        does = {"forecast": "forecast", "impute": "fill gaps"}[use]
        raise InputError(f"this model cannot {does}: {reason}. {_NOTHING[use]}")


def longest_run(task: TaskConfig) -> int:
    """The longest stretch of steps in a row that the training masks hid; 0 for forecast models.

    For random masks it is the length of the longest run to be expected in one window.
    """
    window = task.window
    runs = {
        "block": min(4 * task.horizon, window - 1),
        "stride": max(1, window // 8),
        "random": max(1, math.ceil(math.log(window) / -math.log(task.ratio_high))),
    }
    found = max(runs.values()) if task.mask == "any" else runs[task.mask]
    return {"forecast": 0, "imputation": found, "mixed": max(found, task.horizon)}[task.kind]


# ---- a user's table ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Panel:
    """A table laid out as the model takes it.

    Attributes:
        values: [M, T, C] float64, physical units, NaN where nothing was read.
        columns: [M][C] names of the user's columns.
        table: where it comes from, on the model's step.
        clock: what the model's clock shows at a stamp of the table.
    """

    values: NDArray[np.float64]
    columns: tuple[tuple[str, ...], ...]
    table: Table
    clock: Clock

    @property
    def names(self) -> list[str]:
        """[M * C] names of the user's columns."""
        return [name for meter in self.columns for name in meter]


@dataclass(frozen=True)
class Clock:
    """From the table's stamps to those of the model's clock.

    Attributes:
        direction: 0: as they stand; -1: local to UTC; +1: UTC to local.
        zone: IANA name.
    """

    direction: int = 0
    zone: str = ""

    def features(self, stamps: pd.DatetimeIndex) -> NDArray[np.float32]:
        """[L, F] calendar features of the stamps of one window, in which the clock is not changed."""
        if self.direction and len(stamps):
            middle = cast(pd.Timestamp, stamps[len(stamps) // 2])
            if self.direction < 0:
                aware = middle.tz_localize(self.zone, ambiguous=False, nonexistent="shift_forward")
            else:
                aware = middle.tz_localize("UTC").tz_convert(self.zone)
            stamps = stamps + self.direction * pd.Timedelta(aware.utcoffset())
        return calendar_features(stamps)


def as_table(table: Table | Any) -> Table:
    """A `Table` as it is; a DataFrame with a DatetimeIndex, checked and put on a regular calendar.

    Raises:
        InputError: another object, another index, text in numbers, stamps off the grid.
    """
    if isinstance(table, Table):
        return table
    if not isinstance(table, pd.DataFrame) or not isinstance(table.index, pd.DatetimeIndex):
        raise InputError(
            "the table must be a DataFrame with a DatetimeIndex and a column for each series (or a fedpriv Table); "
            f"got {type(table).__name__}"
            + (f" with a {type(table.index).__name__}" if isinstance(table, pd.DataFrame) else "")
            + ". Nothing was computed."
        )
    index, zone = parse_stamps(table.index.to_series(name="index"), where="the table")
    return regular_table(table.set_axis(index, axis=0), where="the table", timezone=zone)


def lay_out(
    trained: Trained,
    table: Table,
    use: Use,
    *,
    channels: Mapping[str, str] | None = None,
    resample: bool = False,
    timezone: str = "",
    unit: str = "",
) -> tuple[Panel, list[str]]:
    """Checks a table against the model and arranges its columns; and remarks for the user.

    Args:
        channels: the model's channel -> the table's column (or its part after the slash).
        resample: average a finer table to the model's step.
        timezone: IANA zone of naive stamps, or in which a UTC table's series live.
        unit: of the table's readings, where known.

    Raises:
        InputError: another step, a missing channel, an unknown zone, readings outside the model's declared bounds.
    """
    table = _on_step(trained, table, use, resample=resample)
    remarks: list[str] = []
    clock = _clock(trained, table, timezone, use, remarks)
    columns = _columns(trained, table, dict(channels or {}), use)
    place = {name: i for i, name in enumerate(table.columns)}
    values = np.stack([table.values[:, [place[name] for name in meter]] for meter in columns])  # [M, T, C]
    _check_bounds(trained, values, unit or table.unit, use, remarks)
    return Panel(values, columns, table, clock), remarks


def _on_step(trained: Trained, table: Table, use: Use, *, resample: bool) -> Table:
    if table.step == trained.step:
        return table
    own, theirs = step_text(trained.step), step_text(table.step)
    if table.step > trained.step or trained.step.value % table.step.value:
        raise InputError(
            f"the table's step is {theirs}, but this model was trained on steps of {own}, and {own} cannot be made of "
            f"{theirs} by averaging. Use a model that was trained on {theirs} data. {_NOTHING[use]}"
        )
    if not resample:
        groups = trained.step.value // table.step.value
        raise InputError(
            f"the table's step is {theirs}, but this model was trained on steps of {own}. Add --resample (in Python "
            f"resample=True) to average every {groups} readings to one of {own}, or use a model that was trained on "
            f"{theirs} data. {_NOTHING[use]}"
        )
    return table.resampled(trained.step)


def _clock(trained: Trained, table: Table, zone: str, use: Use, remarks: list[str]) -> Clock:
    if zone:
        try:
            pd.Timestamp(0).tz_localize(zone)
        except (LookupError, ValueError, TypeError):
            raise InputError(
                f"timezone={zone!r} is not a known time zone such as Europe/Berlin. {_NOTHING[use]}"
            ) from None
    if trained.timezone in ("", table.timezone):
        return Clock()
    if zone:
        return Clock(-1 if trained.timezone == "UTC" else 1, zone)
    if trained.timezone == "UTC":
        remarks.append(
            "the model's clock is UTC and the table's stamps name no zone: they are taken as UTC (--timezone)"
        )
    else:
        remarks.append("the model's clock is local time and the table's is UTC: taken as it stands (--timezone)")
    return Clock()


def _columns(trained: Trained, table: Table, mapping: dict[str, str], use: Use) -> tuple[tuple[str, ...], ...]:
    """[M][C] the columns of each meter."""
    for channel in mapping:
        if channel not in trained.channels:
            raise InputError(
                f"the model has no channel {channel!r}; it has {', '.join(trained.channels)}. {_NOTHING[use]}"
            )
    if len(trained.channels) == 1 and not mapping:
        return tuple((name,) for name in table.columns)
    wanted = [mapping.get(channel, channel) for channel in trained.channels]
    if all(name in table.columns for name in wanted):
        return (tuple(wanted),)
    meters = list(dict.fromkeys(c.rpartition("/")[0] for c in table.columns if c.rpartition("/")[2] in wanted))
    for meter in meters or [""]:
        for channel, name in zip(trained.channels, wanted, strict=True):
            full = f"{meter}/{name}" if meter else name
            if full not in table.columns:
                near = difflib.get_close_matches(full, table.columns, n=1, cutoff=0.0)[0]
                raise InputError(
                    f"the model needs the channel{'s' * (len(wanted) > 1)} {', '.join(trained.channels)}, and the "
                    f"table has no column {full!r} (the nearest is {near!r}). Name the column with --channel "
                    f"{channel}=COLUMN (in Python channels={{{channel!r}: ...}}). {_NOTHING[use]}"
                )
    return tuple(tuple(f"{meter}/{name}" for name in wanted) for meter in meters)


def _check_bounds(trained: Trained, values: NDArray[np.float64], unit: str, use: Use, remarks: list[str]) -> None:
    """Window scaling takes any unit; declared bounds do not."""
    data = trained.scenario.data
    if data.scaling != "bounds":
        return
    bounds = f"{data.low:g} to {data.high:g}" + (f" {trained.unit}" if trained.unit else "")
    if unit and trained.unit and unit != trained.unit:
        raise InputError(
            f"the table is in {unit}, but this model takes readings in {trained.unit} (it was trained with public "
            f"bounds, {bounds}). Convert them first. {_NOTHING[use]}"
        )
    read = np.isfinite(values)
    outside = int(((values < data.low) | (values > data.high))[read].sum())
    if outside > 0.5 * read.sum():
        raise InputError(
            f"{outside} of {int(read.sum())} readings lie outside the public bounds that the model was trained with "
            f"({bounds}); is the table in another unit? {_NOTHING[use]}"
        )
    if outside:
        remarks.append(f"{outside} readings lie outside the model's public bounds ({bounds})")


def check_samples(samples: int, *, least: int, use: Use) -> None:
    """Raises InputError where the number of samples cannot be drawn."""
    if not (samples == 0 and least == 0) and not 2 <= samples <= MOST_SAMPLES:
        none = "0 (no quantiles) or " if least == 0 else ""
        raise InputError(f"samples={samples} is not {none}2 to {MOST_SAMPLES}. {_NOTHING[use]}")


def quantiles_of(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, ...] -> [Q, ...] at LEVELS, rising."""
    ordered = torch.from_numpy(np.sort(samples, axis=0))
    return np.stack([quantile(ordered, level).numpy() for level in LEVELS])


def level_names() -> list[str]:
    """Column names of the quantiles: q05, q25, q50, q75, q95."""
    return [f"q{round(100 * level):02d}" for level in LEVELS]
