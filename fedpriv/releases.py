"""Side releases of a run: noisy statistics, a noisy count of readings, noisy held-out scores.

Statistics are what a one-round model is fitted from, as the start of the diffusion model or in its place; the other two
are off unless the scenario asks for them.

Each kind has a contract of its own beside that of the training steps, in the same ledger and about the same unit; all
of a run's contracts are enrolled together or not at all. Which releases there are and what they cost is a function of
the scenario alone, so the noise of training is calibrated to what they leave of the budget, and every release is paid
for before a reading is looked at. The mechanisms and their proofs are in `fedpriv.privacy.side_releases`.

There is no private scaler among them: windows are scaled by their own given entries or by declared public bounds, so
nothing in the pipeline would use one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.roster import roster
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import cut, day_steps
from fedpriv.diffusion.sampling import point_forecast
from fedpriv.errors import InputError
from fedpriv.evaluation import held_out
from fedpriv.examples import Examples
from fedpriv.models.denoiser import Denoiser
from fedpriv.models.reference import OneRound, constants
from fedpriv.personal import personal_contracts, personal_parts
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import ScheduledDpEvent, encode_event
from fedpriv.privacy.side_releases import SideRelease, private_count, private_metrics, side_event, side_event_for
from fedpriv.privacy.statistics import EveryWindow, StatisticsMechanism
from fedpriv.privacy.units import Relation, Unit
from fedpriv.seeding import PrivacyRng

Kind = Literal["statistics", "count", "metrics", "personal"]
STATISTICS_CLIPPER, STATISTICS_BOUND = "auto-s", 1.0
"""How each window's vector is bounded: every window counts the same, whatever its size, and nothing is tuned."""
_COVERS = 16  # windows that a reading lies in, about: more gain nothing that could be measured
SCORES: Final = ("window-mse", "window-mae")
"""Means over held-out windows of the squared and absolute error in units of the window's own scale, each window's value
capped. A window's scale comes from its own given entries, so its score is a function of that window alone."""
_EVALUATIONS = 10  # in a run, when evaluation.every is 0
_BATCH = 64  # windows scored at a time


@dataclass(frozen=True)
class Planned:
    """One kind of side release of a run.

    Attributes:
        kind: statistics, count or metrics.
        noise_multiplier: sigma, of noise over the sensitivity for the unit.
        times: releases in the whole run.
    """

    kind: Kind
    noise_multiplier: float
    times: int

    @property
    def event(self) -> DpEvent:
        """Of one release."""
        return side_event(self.noise_multiplier)


def evaluated_rounds(scenario: Scenario) -> list[int]:
    """The rounds after which the server asks for validation scores; 0 is before the first."""
    rounds = scenario.rounds
    every = scenario.evaluation.every or max(1, rounds // _EVALUATIONS)
    return [r for r in range(rounds + 1) if r % every == 0 or r == rounds]


def planned(scenario: Scenario) -> list[Planned]:
    """The side releases that a scenario asks for."""
    privacy = scenario.privacy
    if not privacy.enabled or not (scenario.steps_total or scenario.model.statistics):
        return []
    found: list[Planned] = []
    if scenario.model.statistics and privacy.warm_start_noise is not None:
        found.append(Planned("statistics", privacy.warm_start_noise, 1))
    if privacy.release_count is not None:
        found.append(Planned("count", privacy.release_count, 1))
    if privacy.release_metrics is not None:
        found.append(Planned("metrics", privacy.release_metrics, len(evaluated_rounds(scenario)) + 1))  # and the test
    return found


def side_run(run_id: str, kind: Kind) -> str:
    """The run_id of a side contract in the ledger."""
    return f"{run_id}#{kind}"


def side_contracts(scenario: Scenario, run_id: str) -> list[Contract]:
    """What a client enrols beside the contract of its steps."""
    privacy = scenario.privacy
    releases = [
        Contract(
            run_id=side_run(run_id, each.kind),
            event=encode_event(each.event),
            steps_total=each.times,
            steps_per_round=1,
            unit=privacy.unit,
            relation=privacy.relation,
            delta=privacy.delta,
            epsilon=privacy.epsilon,
            terms=canonical(_terms(scenario, each)),
        )
        for each in planned(scenario)
    ]
    return [*releases, *personal_contracts(scenario, run_id)]


def side_parts(scenario: Scenario) -> list[tuple[DpEvent, int]]:
    """(event, times) of the side releases."""
    return [(each.event, each.times) for each in planned(scenario)]


def side_rungs(
    scenario: Scenario, units: Sequence[Unit], *, calendar_steps: int
) -> dict[str, list[tuple[DpEvent, int]]]:
    """(event, times) of the side releases by name of the unit, for a ladder before anything is made."""
    releases = planned(scenario)
    if not releases:
        return {}
    own = Unit.parse(scenario.privacy.unit, steps_per_day=day_steps(roster(scenario).step))
    return {
        unit.name: [
            (side_event_for(_terms(scenario, each), own, unit, calendar_steps=calendar_steps), each.times)
            for each in releases
        ]
        for unit in units
    }


def whole_event(scenario: Scenario, event: DpEvent) -> DpEvent:
    """All that a run costs: `event` (of a step, or the schedule of all steps), taken in full, and all beside it."""
    training = event
    if not scenario.steps_total:
        training = dp_event.NoOpDpEvent()
    elif not isinstance(event, ScheduledDpEvent):
        training = dp_event.SelfComposedDpEvent(event, scenario.steps_total)
    beside = [*side_parts(scenario), *personal_parts(scenario)]
    side = [dp_event.SelfComposedDpEvent(side, times) for side, times in beside]
    return dp_event.ComposedDpEvent([training, *side])


def _terms(scenario: Scenario, each: Planned) -> dict[str, Any]:
    terms: dict[str, Any] = {"side_release": each.kind, "noise_multiplier": each.noise_multiplier}
    terms |= {"steps_per_day": day_steps(roster(scenario).step)}
    if each.kind == "metrics":
        terms |= {"scores": list(SCORES), "cap": scenario.privacy.metrics_cap, "window": scenario.task.window}
    if each.kind == "statistics":
        cover = statistics_cover(scenario)
        terms |= {"model": scenario.model.statistics, "options": dict(constants(scenario))}
        terms |= {"window": cover.window, "stride": cover.stride, "task": scenario.task.kind}
        terms |= {"clipper": STATISTICS_CLIPPER, "bound": STATISTICS_BOUND}
    return terms


# ---- statistics of a one-round model ----------------------------------------------------------------


def statistics_cover(scenario: Scenario) -> EveryWindow:
    """The windows that enter the statistics: all at a public stride."""
    return EveryWindow(scenario.task.window, max(1, scenario.task.window // _COVERS))


def statistics_mechanism(scenario: Scenario) -> StatisticsMechanism:
    """Cover, clipper, noise and event of the statistics; its proof note is in `fedpriv.privacy.statistics`.

    The scenario's noise multiplier is in units of the sensitivity for the unit, the mechanism's in units of the bound
    of one window: they differ by the total weight of the windows that the unit touches.
    """
    privacy = scenario.privacy
    unit = Unit.parse(privacy.unit, steps_per_day=day_steps(roster(scenario).step))
    cover = statistics_cover(scenario)
    sigma = privacy.warm_start_noise if privacy.enabled else 0.0
    if sigma is None:
        raise InputError("privacy.warm_start_noise is not set; resolve the scenario first. Nothing was released.")
    return StatisticsMechanism(
        cover=cover,
        clipper=make_clipper(STATISTICS_CLIPPER, bound=STATISTICS_BOUND),
        noise_multiplier=sigma * cover.overlap(unit) if sigma else 0.0,
        unit=unit,
        relation=Relation.parse(privacy.relation),
        insecure_no_noise=not privacy.enabled,
    )


def statistics_objection(scenario: Scenario) -> str:
    """Why a scenario cannot release statistics; empty where it can."""
    privacy = scenario.privacy
    if not privacy.enabled:
        return ""
    if privacy.noise == "discrete-gaussian":
        return "statistics are released with floating-point noise, which privacy.noise=discrete-gaussian rules out"
    unit = Unit.parse(privacy.unit, steps_per_day=day_steps(roster(scenario).step))
    if unit.kind != "event":
        return f"the windows of a whole {unit.name} are all there is: noise that hides them leaves no statistics"
    return ""


# ---- making them ------------------------------------------------------------------------------------


def make_statistics(
    one_round: OneRound, data: ClientData, scenario: Scenario, *, rng: PrivacyRng, masks: PrivacyRng
) -> torch.Tensor:
    """[n] float32: the noised sum over the training windows. Reads private rows; paid for before.

    Args:
        one_round: what is summed.
        data: one client's.
        scenario: complete.
        rng: the noise.
        masks: which entries the windows of imputation tasks hide; each row uses its own draws.
    """

    def read(meter: NDArray[np.int64], start: NDArray[np.int64]) -> Examples:
        windows = cut(data, meter, start, scenario.task.window)
        target = task_masks(scenario.task, windows.observed, masks)
        period = scenario.task.period or day_steps(data.step)
        return make_examples(windows, target, period=period, scaling=scenario.data)

    mechanism = statistics_mechanism(scenario)
    sent = mechanism.release(
        one_round.baseline, read, num_meters=data.num_meters, start=data.train.start, stop=data.train.stop, rng=rng
    )
    return sent.vector.float()


def make_count(data: ClientData, scenario: Scenario, rng: PrivacyRng) -> SideRelease[float]:
    """The noisy number of calendar steps with a reading in the training part. Reads private rows; paid for before."""
    sigma = scenario.privacy.release_count
    assert sigma is not None
    observed = np.isfinite(data.values[:, data.train])
    unit, relation = _promise(data, scenario)
    return private_count(observed, noise_multiplier=sigma, unit=unit, relation=relation, rng=rng)


def make_metrics(
    model: Denoiser,
    data: ClientData,
    scenario: Scenario,
    *,
    part: Literal["validation", "test"],
    device: torch.device,
    rng: PrivacyRng,
) -> dict[str, float]:
    """Noisy means of `SCORES` on held-out windows, each in [0, cap]. Reads private rows; paid for before."""
    sigma = scenario.privacy.release_metrics
    assert sigma is not None
    examples, meter, start = held_out(data, scenario, part=part, count=scenario.evaluation.windows)
    rows: list[torch.Tensor] = []
    for low in range(0, len(examples), _BATCH):
        some = examples.rows(slice(low, low + _BATCH))
        point = point_forecast(model, some.to(device), scenario.diffusion).cpu()
        truth = some.values * some.scale + some.loc
        error = ((point - truth) / some.scale).double().where(some.target, 0.0).flatten(1)
        count = some.target.flatten(1).sum(dim=1).clamp(min=1)
        rows.append(torch.stack([error.square().sum(dim=1) / count, error.abs().sum(dim=1) / count], dim=1))
    unit, relation = _promise(data, scenario)
    released = private_metrics(
        torch.cat(rows).numpy(),
        np.asarray(start, dtype=np.int64),
        np.asarray(meter, dtype=np.int64),
        window=scenario.task.window,
        cap=scenario.privacy.metrics_cap,
        noise_multiplier=sigma,
        unit=unit,
        relation=relation,
        rng=rng,
    )
    return {name: float(value) for name, value in zip(SCORES, released.value, strict=True)}


def _promise(data: ClientData, scenario: Scenario) -> tuple[Unit, Relation]:
    unit = Unit.parse(scenario.privacy.unit, steps_per_day=day_steps(data.step))
    return unit, Relation.parse(scenario.privacy.relation)
