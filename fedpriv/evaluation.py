"""Scores on held-out windows, and a few windows for pictures.

Exact scores of private rows are a release that nobody paid for, so a deployed client computes none: everything here
is for simulation, where whoever runs it holds all data anyway, and the label says so. The scale of the
errors (the client's training standard deviation) is used for reporting only and never enters the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE
from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import cut, day_steps, even_starts
from fedpriv.diffusion.sampling import point_forecast, sample
from fedpriv.distances import DISTANCES, Distances, measure
from fedpriv.examples import Examples
from fedpriv.metrics import LEVELS as PINBALL_LEVELS
from fedpriv.metrics import METRICS, Score, score
from fedpriv.models.baselines import JointBand, baselines_for, make_baseline
from fedpriv.models.climatology import Climatology, fit_climatology
from fedpriv.models.denoiser import Denoiser
from fedpriv.models.gaussian import crps_student
from fedpriv.seeding import stream, torch_generator

Part = Literal["validation", "test"]
MODEL = "federated"
CLIMATOLOGY = "climatology"
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


def training_moments(data: ClientData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] mean and standard deviation of the training part, physical units: the zero and unit of the scaled scores."""
    values = data.values[:, data.train].astype(np.float64)
    read = np.isfinite(values)
    count = np.maximum(read.sum(axis=(0, 1)), 1)
    mean = np.where(read, values, 0.0).sum(axis=(0, 1)) / count
    std = np.sqrt(np.where(read, np.square(values - mean), 0.0).sum(axis=(0, 1)) / count)
    return mean, np.where(std > 0, std, 1.0)


class _Tally:
    """Adds up the scores of one model on one client's held-out windows."""

    def __init__(self, data: ClientData, scenario: Scenario) -> None:
        loc, scale = training_moments(data)
        self._loc, self._scale = torch.from_numpy(loc), torch.from_numpy(scale)
        self._span = slice(scenario.task.context if scenario.task.kind == "forecast" else 0, scenario.task.window)
        self._names = set(scenario.evaluation.metrics) & set(DISTANCES)
        self._score, self._distances = Score(), Distances()

    def add(self, some: Examples, point: Tensor, drawn: Tensor | None, law: JointBand | None = None) -> None:
        """Windows with their point forecast [B, L, C] and samples [S, B, L, C], physical units.

        `law`: the law that the samples were drawn from, where it is one; what has a closed form is scored by it.
        """
        truth = some.values * some.scale + some.loc
        scored = score(truth, point, drawn, some.target, self._scale)
        if law is not None and drawn is not None:
            scored = replace(scored, **closed_sums(truth, law, some.target, self._scale))
        self._score = self._score.merge(scored)
        if drawn is not None and self._names:
            found = measure(
                truth,
                drawn,
                some.target,
                some.given,
                loc=self._loc,
                scale=self._scale,
                span=self._span,
                names=self._names,
            )
            self._distances = self._distances.merge(found)

    def sums(self, name: str) -> dict[str, float]:
        """All sums, keys `name/...`."""
        return {f"{name}/{key}": v for part in (self._score, self._distances) for key, v in part.to_dict().items()}


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
    examples, start = held_out(data, scenario, part=part, count=scenario.evaluation.windows)
    generator = torch_generator(stream(0, "samples", data.name, part))
    period = scenario.task.period or day_steps(data.step)
    reference = () if model.reference is None else (model.reference.kind,)
    simple = baselines_for(scenario.task.kind)
    tallies = {name: _Tally(data, scenario) for name in (MODEL, *reference, *simple, CLIMATOLOGY)}
    for rows in _batches(examples):
        some = examples.rows(rows)
        tallies[MODEL].add(some, *_forecast(model, some, scenario, samples=samples, device=device, generator=generator))
        if model.reference is not None:
            band = model.reference.forecast(some)
            drawn = band.sample(samples, torch_generator(stream(0, "reference", data.name, part))) if samples else None
            tallies[model.reference.kind].add(some, band.point, drawn, band)
        for name in simple:
            band = make_baseline(name, some, period=period)
            tallies[name].add(some, band.point, band.sample(samples, generator) if samples else None)
    _score_climatology(tallies[CLIMATOLOGY], data, scenario, examples, start, part=part, samples=samples)
    return {key: value for name, tally in tallies.items() for key, value in tally.sums(name).items()}


def evaluate_model(
    name: str,
    model: Denoiser,
    data: ClientData,
    scenario: Scenario,
    *,
    part: Part,
    samples: int,
    device: torch.device,
) -> dict[str, float]:
    """Sums of scores of one more model, keys `name/sum...`; on the windows and the sampling noise of `evaluate`'s."""
    examples, _ = held_out(data, scenario, part=part, count=scenario.evaluation.windows)
    generator = torch_generator(stream(0, "samples", data.name, part))
    tally = _Tally(data, scenario)
    for rows in _batches(examples):
        some = examples.rows(rows)
        tally.add(some, *_forecast(model, some, scenario, samples=samples, device=device, generator=generator))
    return tally.sums(name)


def _batches(examples: Examples) -> Iterator[slice]:
    for low in range(0, len(examples), _BATCH):
        yield slice(low, low + _BATCH)


def _forecast(
    model: Denoiser,
    some: Examples,
    scenario: Scenario,
    *,
    samples: int,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    on_device = some.to(device)
    point = point_forecast(model, on_device, scenario.diffusion).cpu()
    if not samples:
        return point, None
    return point, sample(model, on_device, count=samples, diffusion=scenario.diffusion, generator=generator).cpu()


_climatologies: WeakKeyDictionary[ClientData, Climatology] = WeakKeyDictionary()


def _score_climatology(
    tally: _Tally,
    data: ClientData,
    scenario: Scenario,
    examples: Examples,
    start: NDArray[np.int64],
    *,
    part: Part,
    samples: int,
) -> None:
    """The client's own climatology: a table of unprotected private means, so in simulation only, like every score."""
    index, slots = data.index, day_steps(data.step)
    weekend = np.asarray(index.day_of_week >= 5)
    day = np.asarray(index.hour * 3600 + index.minute * 60 + index.second, dtype=np.int64)
    slot = day * slots // 86_400
    table = _climatologies.get(data)
    if table is None:
        train = data.train
        table = fit_climatology(data.values[:, train], weekend=weekend[train], slot=slot[train], slots=slots)
        _climatologies[data] = table
    meter = np.repeat(np.arange(data.num_meters), len(start) // data.num_meters)
    steps = start[:, None] + np.arange(scenario.task.window)  # [B, L]
    generator = torch_generator(stream(0, "climatology", data.name, part))
    for rows in _batches(examples):
        some = examples.rows(rows)
        cell = (
            torch.from_numpy(meter[rows]),
            torch.from_numpy(weekend[steps[rows]].astype(np.int64)),
            torch.from_numpy(slot[steps[rows]]),
        )
        drawn = table.sample(*cell, count=samples, generator=generator) if samples else None
        tally.add(some, table.point(*cell), drawn)


def metrics_of(sums: Mapping[str, float], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Model -> metric -> value from the sums of `evaluate`; a metric that nothing was scored for is left out."""
    wanted = list(names)
    plain, distant = [n for n in wanted if n in METRICS], [n for n in wanted if n in DISTANCES]
    out: dict[str, dict[str, float]] = {}
    for model, one in scores(sums).items():
        own = {key.partition("/")[2]: value for key, value in sums.items() if key.startswith(f"{model}/")}
        out[model] = one.finalize(plain) | Distances.from_dict(own).finalize(distant)
    return out


def closed_sums(truth: Tensor, band: JointBand, target: Tensor, unit_scale: Tensor) -> dict[str, float]:
    """The sums of a `Score` that a one-round model's forecast has in closed form, in place of those from samples.

    Args:
        truth: [B, L, C] physical units; read at targets only.
        band: the forecast.
        target: [B, L, C] bool.
        unit_scale: [C]: the client's training standard deviation.
    """
    unit = unit_scale.double().expand(truth.shape)[target]  # [n]
    y, centre, spread = (x[target].double() for x in (truth, band.point, TAIL_SCALE * band.stddev))
    level = torch.tensor(PINBALL_LEVELS, dtype=torch.float64)[:, None]
    under = y - (centre + spread * torch.from_numpy(stdtrit(TAIL_DOF, level.numpy())))  # [levels, n]
    loss = torch.maximum(level * under, (level - 1.0) * under).mean(dim=0)
    error = (y - centre).abs()
    sums = {
        "crps": (crps_student(centre, spread, y) / unit).sum(),
        "covered50": (error <= float(stdtrit(TAIL_DOF, 0.75)) * spread).sum(),
        "covered90": (error <= float(stdtrit(TAIL_DOF, 0.95)) * spread).sum(),
        "pinball": (loss / unit).sum(),
        "raw_pinball": loss.sum(),
    }
    return {name: float(value) for name, value in sums.items()}


def scores(sums: Mapping[str, float]) -> dict[str, Score]:
    """The sums of `evaluate`, by model, without the sketches of distances."""
    names = {key.partition("/")[0] for key in sums}
    return {
        name: Score.from_dict({k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{name}/")})
        for name in sorted(names)
    }


def join_owners(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sums of several owners in one reply: the place of the owner, four digits and a colon, before every key."""
    return {f"{place:04d}:{key}": value for place, sums in enumerate(scores) for key, value in sums.items()}


def by_owner(client: str, sums: Mapping[str, float], owners: Sequence[str]) -> dict[str, dict[str, float]]:
    """Owner -> sums, the reverse of `join_owners`; without owners the client's own, as they are."""
    if not owners:
        return {client: dict(sums)}
    found: dict[str, dict[str, float]] = {owner: {} for owner in owners}
    for key, value in sums.items():
        place, _, rest = key.partition(":")
        found[owners[int(place)]][rest] = value
    return found


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
