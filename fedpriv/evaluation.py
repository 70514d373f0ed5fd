"""Scores on held-out windows, and a few windows for pictures.

Exact scores of private rows are a release that nobody paid for, so a deployed client computes none: everything here
is for simulation, where whoever runs it holds all data anyway, and the label says so. The scale of the
errors (the client's training standard deviation) is used for reporting only and never enters the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.tasks import drawn_kinds, make_examples, mask_kinds, task_masks
from fedpriv.data.windows import cut, day_steps, even_starts, held_starts
from fedpriv.diffusion.sampling import exact_law, point_forecast, sample
from fedpriv.examples import Examples
from fedpriv.laws import Law
from fedpriv.models.baselines import baselines_for, make_baseline
from fedpriv.models.climatology import Climatology, fit_climatology
from fedpriv.models.denoiser import Denoiser
from fedpriv.seeding import stream, torch_generator
from fedpriv.tallies import Tally

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


def held_out(
    data: ClientData, scenario: Scenario, *, part: Part, count: int, held: bool = False
) -> tuple[Examples, NDArray[np.int64], NDArray[np.int64]]:
    """`count` windows, as many of each meter, evenly spread over the part, as examples; their meters and first steps.

    With `held` spread over what the client holds of a part that it mostly does not hold (simulation only: it follows
    the gaps of the readings, so it is not for releases).

    The masks of an imputation task are a function of client and part, not of the run's seed: all runs are scored on
    the same entries.
    """
    span: slice = getattr(data, part)
    window, each = scenario.task.window, max(1, count // data.num_meters)
    starts = [even_starts(span, window, each)] * data.num_meters
    if held:
        read: NDArray[np.bool_] = np.any(np.isfinite(data.values), axis=2)  # [M, T]
        there = sum(len(held_starts(own, span, window, 1)) for own in read)  # meters with something to score
        found = [held_starts(own, span, window, max(1, count // max(1, there))) for own in read]
        starts = found if there else starts
    meter = np.repeat(np.arange(data.num_meters), [len(own) for own in starts])
    start = np.concatenate(starts)
    windows = cut(data, meter, start, scenario.task.window)
    rng = stream(0, "held-out", data.name, part)
    target = task_masks(scenario.task, windows.observed, rng)
    period = scenario.task.period or day_steps(data.step)
    return make_examples(windows, target, period=period, scaling=scenario.data), meter, start


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
    examples, meter, start = held_out(data, scenario, part=part, count=scenario.evaluation.windows, held=True)
    generator = torch_generator(stream(0, "samples", data.name, part))
    period = scenario.task.period or day_steps(data.step)
    reference = () if model.reference is None else (model.reference.kind,)
    simple = baselines_for(scenario.task.kind)
    kinds = _kinds(data, scenario, part, len(examples)) if samples else None
    tallies = {name: Tally(data, scenario, kinds=kinds) for name in (MODEL, *reference, *simple, CLIMATOLOGY)}
    for rows in _batches(examples):
        some = examples.rows(rows)
        tallies[MODEL].add(
            rows, some, *_forecast(model, some, scenario, samples=samples, device=device, generator=generator)
        )
        if model.reference is not None:
            band = model.reference.forecast(some)
            drawn = band.sample(samples, torch_generator(stream(0, "reference", data.name, part))) if samples else None
            tallies[model.reference.kind].add(rows, some, band.point, drawn, band.law)
        for name in simple:
            band = make_baseline(name, some, period=period)
            drawn = band.sample(samples, generator) if samples else None
            tallies[name].add(rows, some, band.point, drawn, band.law)
    _score_climatology(tallies[CLIMATOLOGY], data, scenario, examples, meter, start, part=part, samples=samples)
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
    examples, _, _ = held_out(data, scenario, part=part, count=scenario.evaluation.windows, held=True)
    generator = torch_generator(stream(0, "samples", data.name, part))
    kinds = _kinds(data, scenario, part, len(examples)) if samples else None
    tally = Tally(data, scenario, kinds=kinds)
    for rows in _batches(examples):
        some = examples.rows(rows)
        tally.add(rows, some, *_forecast(model, some, scenario, samples=samples, device=device, generator=generator))
    return tally.sums(name)


def _kinds(data: ClientData, scenario: Scenario, part: Part, windows: int) -> NDArray[np.str_] | None:
    """[windows] what each window of `held_out` hides, where a task hides this in one and that in another."""
    if len(mask_kinds(scenario.task)) < 2:
        return None
    return drawn_kinds(scenario.task, windows, stream(0, "held-out", data.name, part))


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
) -> tuple[Tensor, Tensor | None, Law | None]:
    """Point forecast, samples, and the law that these are drawn from, where it has a closed form."""
    on_device, diffusion = some.to(device), scenario.diffusion
    point = point_forecast(model, on_device, diffusion).cpu()
    if not samples:
        return point, None, None
    drawn = sample(model, on_device, count=samples, diffusion=diffusion, generator=generator).cpu()
    return point, drawn, exact_law(model, on_device, diffusion)


_climatologies: WeakKeyDictionary[ClientData, Climatology] = WeakKeyDictionary()


def _score_climatology(
    tally: Tally,
    data: ClientData,
    scenario: Scenario,
    examples: Examples,
    meter: NDArray[np.int64],
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
        tally.add(rows, some, table.point(*cell), drawn)


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
    examples, _, start = held_out(data, scenario, part="test", count=data.num_meters * (4 * count + 1), held=True)
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
