"""Scores on held-out windows, and a few windows for pictures.

Exact scores of private rows are a release that nobody paid for, so a deployed client computes none: everything here
is for simulation, where whoever runs it holds all data anyway, and the label says so. The scale of the
errors (the client's training standard deviation) is used for reporting only and never enters the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.data.clients import ClientData
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import cut, day_steps, even_starts
from fedpriv.diffusion.sampling import point_forecast, sample
from fedpriv.examples import Examples
from fedpriv.metrics import Score, merge, score
from fedpriv.models.baselines import BASELINES, make_baseline
from fedpriv.models.denoiser import Denoiser
from fedpriv.seeding import stream, torch_generator

Part = Literal["validation", "test"]
MODEL = "federated"
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_BATCH = 64  # windows scored at a time


@dataclass(frozen=True)
class Forecasts:
    """Example windows of one client, physical units, NaN where nothing was read. E windows, L steps, Q levels.

    Attributes:
        stamps: [E, L] datetime64[s].
        given, truth, point, baseline: [E, L] of the first channel; `given` is NaN at hidden steps.
        quantiles: [E, Q, L] at LEVELS.
        unit: physical unit.
    """

    stamps: NDArray[np.datetime64]
    given: NDArray[np.float64]
    truth: NDArray[np.float64]
    point: NDArray[np.float64]
    baseline: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    unit: str


def held_out(data: ClientData, scenario: Scenario, *, part: Part, count: int) -> tuple[Examples, NDArray[np.int64]]:
    """`count` windows per meter, evenly spread over the part, as examples; and their first steps.

    The masks of an imputation task are a function of client and part, not of the run's seed: all runs are scored on
    the same entries.
    """
    span: slice = getattr(data, part)
    starts = even_starts(span, scenario.task.window, max(1, count // data.num_meters))
    meter = np.repeat(np.arange(data.num_meters), len(starts))
    start = np.tile(starts, data.num_meters)
    windows = cut(data, meter, start, scenario.task.window)
    rng = stream(0, "held-out", data.name, part)
    target = task_masks(scenario.task, windows.observed, rng)
    period = scenario.task.period or day_steps(data.step)
    return make_examples(windows, target, period=period, scaling=scenario.data), start


def training_scale(data: ClientData) -> NDArray[np.float64]:
    """[C] standard deviation of the training part, physical units: the unit of the scaled scores."""
    values = data.values[:, data.train].astype(np.float64)
    with np.errstate(invalid="ignore"):
        std = np.nanstd(values, axis=(0, 1))
    return np.where(np.isfinite(std) & (std > 0), std, 1.0)


def evaluate(
    model: Denoiser,
    data: ClientData,
    scenario: Scenario,
    *,
    part: Part,
    samples: int,
    device: torch.device,
) -> dict[str, float]:
    """Sums of scores of the model and the baselines, keys `MODEL/sum...`; they merge over clients by adding.

    Args:
        samples: forecasts drawn per window for CRPS and coverage; 0 scores the point forecast only.
    """
    examples, _ = held_out(data, scenario, part=part, count=scenario.evaluation.windows)
    scale = torch.from_numpy(training_scale(data))
    generator = torch_generator(stream(0, "samples", data.name, part))
    period = scenario.task.period or day_steps(data.step)
    parts: dict[str, list[Score]] = {MODEL: [], **{name: [] for name in BASELINES}}
    for low in range(0, len(examples), _BATCH):
        some = examples.rows(slice(low, low + _BATCH))
        truth = some.values * some.scale + some.loc
        on_device = some.to(device)
        point = point_forecast(model, on_device, scenario.diffusion).cpu()
        drawn = None
        if samples:
            drawn = sample(model, on_device, count=samples, diffusion=scenario.diffusion, generator=generator).cpu()
        parts[MODEL].append(score(truth, point, drawn, some.target, scale))
        for name in BASELINES:
            band = make_baseline(name, some, period=period)
            drawn = band.sample(samples, generator) if samples else None
            parts[name].append(score(truth, band.point, drawn, some.target, scale))
    return {f"{name}/{key}": value for name, many in parts.items() for key, value in merge(many).to_dict().items()}


def scores(sums: dict[str, float]) -> dict[str, Score]:
    """The sums of `evaluate`, by model."""
    names = {key.partition("/")[0] for key in sums}
    return {
        name: Score.from_dict({k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{name}/")})
        for name in sorted(names)
    }


def forecasts(
    model: Denoiser,
    data: ClientData,
    scenario: Scenario,
    *,
    count: int,
    samples: int,
    device: torch.device,
) -> Forecasts:
    """`count` test windows of the first meter and channel with the model's forecast and its quantiles."""
    examples, start = held_out(data, scenario, part="test", count=data.num_meters * (4 * count + 1))
    index = torch.arange(1, 4 * count, 4)[:count].clamp(max=len(examples) - 1)
    some = examples.rows(index).to(device)
    generator = torch_generator(stream(0, "pictures", data.name))
    drawn = sample(model, some, count=samples, diffusion=scenario.diffusion, generator=generator)
    levels = torch.tensor(LEVELS, dtype=drawn.dtype)
    quantiles = torch.quantile(drawn.cpu()[..., 0], levels, dim=0).transpose(0, 1)  # [E, Q, L]
    known = (some.given | some.target).cpu()[..., 0]
    truth = (some.values * some.scale + some.loc).cpu()[..., 0]
    base = (some.baseline * some.scale + some.loc).cpu()[..., 0]
    nan = torch.full_like(truth, torch.nan)
    first = np.asarray(start)[index.numpy() % len(start)]
    step = np.timedelta64(int(data.step.total_seconds()), "s")
    begin = np.datetime64(data.start.tz_localize(None) if data.start.tzinfo else data.start, "s")
    stamps = begin + (first[:, None] + np.arange(scenario.task.window)) * step
    return Forecasts(
        stamps=stamps,
        given=torch.where(some.given.cpu()[..., 0], truth, nan).double().numpy(),
        truth=torch.where(known, truth, nan).double().numpy(),
        point=point_forecast(model, some, scenario.diffusion).cpu()[..., 0].double().numpy(),
        baseline=base.double().numpy(),
        quantiles=quantiles.double().numpy(),
        unit=data.unit,
    )
