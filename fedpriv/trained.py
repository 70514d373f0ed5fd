"""A trained model with what one must know to use it: its facts, what it has learned to do, what is drawn from it.

`fedpriv.forecasting` and `fedpriv.imputation` build on this, and on `fedpriv.user_panel`. Nothing here looks at the
data that the model was trained on: step, channels, unit and clock are read from the run's model.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpriv.config import Scenario, TaskConfig
from fedpriv.data.tasks import make_examples
from fedpriv.data.windows import CALENDAR_FEATURES, Windows, season_steps
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.metrics import quantile
from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import load_reference, load_weights
from fedpriv.models.reference import make_one_round

Use = Literal["forecast", "impute"]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that are written."""
SAMPLING = ("solver", "sampling_steps", "guidance", "nag_scale", "nag_tau", "nag_alpha", "nag_norm")
"""The settings of `diffusion` that act on samples alone, so that a finished model takes others than it was run with."""
MOST_SAMPLES = 10_000
NOTHING = {"forecast": "Nothing was forecast.", "impute": "Nothing was filled."}


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

    def sampled(self, changes: Mapping[str, object]) -> Trained:
        """The same model, its samples drawn in another way. Post-processing: it costs no privacy.

        Args:
            changes: scenario keys of `SAMPLING`, such as {"diffusion.guidance": 2.0}; empty: as it was run.

        Raises:
            InputError: another key, or a value out of range or that the model was not trained for.
        """
        known = [f"diffusion.{name}" for name in SAMPLING]
        if other := [key for key in changes if key not in known]:
            raise InputError(
                f"{other[0]} is not a setting of how samples are drawn, and a finished model keeps all others; known "
                f"are {', '.join(known)}. Nothing was computed."
            )
        return replace(self, scenario=self.scenario.override(changes)) if changes else self

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
        raise InputError(f"this model cannot {does}: {reason}. {NOTHING[use]}")


def longest_run(task: TaskConfig) -> int:
    """The longest stretch of steps in a row that the training masks hid; 0 for forecast models.

    For random masks it is the length of the longest run to be expected in one window.
    """
    window = task.window
    runs = {
        "block": min(4 * task.horizon, window - 1),
        "stride": max(1, window // 8),
        "gap": max(1, min(round(task.ratio_high * window), window - 2)),
        "random": max(1, math.ceil(math.log(window) / -math.log(task.ratio_high))),
    }
    found = max(runs["block"], runs["stride"], runs["random"]) if task.mask == "any" else runs[task.mask]
    return {"forecast": 0, "imputation": found, "mixed": max(found, task.horizon)}[task.kind]


# ---- how much is drawn and told --------------------------------------------------------------------------


def check_samples(samples: int, *, least: int, use: Use) -> None:
    """Raises InputError where the number of samples cannot be drawn."""
    if not (samples == 0 and least == 0) and not 2 <= samples <= MOST_SAMPLES:
        none = "0 (no quantiles) or " if least == 0 else ""
        raise InputError(f"samples={samples} is not {none}2 to {MOST_SAMPLES}. {NOTHING[use]}")


def quantiles_of(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, ...] -> [Q, ...] at LEVELS, rising."""
    ordered = torch.from_numpy(np.sort(samples, axis=0))
    return np.stack([quantile(ordered, level).numpy() for level in LEVELS])


def level_names() -> list[str]:
    """Column names of the quantiles: q05, q25, q50, q75, q95."""
    return [f"q{round(100 * level):02d}" for level in LEVELS]
