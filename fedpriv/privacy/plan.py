"""Before any training: the noise a budget asks for, and what would make it matter less.

The figure of merit is the noise-to-signal ratio of one step. Noise of standard deviation sigma * C on each of P
coordinates of a sum of about B clipped gradients has norm sigma * C * sqrt(P), while the signal is at most B * C:

    noise_to_signal = sigma * sqrt(P) / B.

Above 1 a single step is mostly noise; averaged over T steps (momentum, server averaging) it shrinks by sqrt(T).
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import (
    accountant_name,
    calibrate,
    epsilon_of,
    filter_epsilon,
    ladder_of,
    ladder_units,
)
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.recipe import Rules
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler
from fedpriv.privacy.schedules import DynamicController
from fedpriv.privacy.units import Relation, Unit

_STAGES = 4  # of a schedule, in the changes that are looked at


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The public numbers of one client and run.

    Attributes:
        sampler: as in training.
        num_meters: series of the client, M.
        calendar_steps: training calendar, n steps.
        steps_per_day: readings in 24 hours.
        num_parameters: trained parameters, P.
        steps: private steps in all.
        epsilon, delta, unit, relation: the budget.
        noise_multiplier: sigma; None: the least that keeps the budget.
        hardened: discrete noise, accounted as zCDP without amplification.
        side: (event, times) of side releases, which come out of the same budget.
        rules: of the steps; a controller may put the noise on a schedule, or take a share of it for its statistic.
            None: one sigma for all steps, all of it on the gradient.
        side_rungs: the same for other units, by name, for the ladder.
        accountant: `pld`, or `rdp` for a Renyi filter.
    """

    sampler: Sampler
    num_meters: int
    calendar_steps: int
    steps_per_day: int
    num_parameters: int
    steps: int
    epsilon: float
    delta: float
    unit: str = "reading"
    relation: str = "zero-out"
    noise_multiplier: float | None = None
    hardened: bool = False
    side: tuple[tuple[DpEvent, int], ...] = ()
    side_rungs: tuple[tuple[str, tuple[tuple[DpEvent, int], ...]], ...] = ()
    rules: Rules | None = None
    accountant: Literal["pld", "rdp"] = "pld"

    def stages(self, sigma: float) -> list[tuple[float, int]]:
        """(total noise multiplier, steps) over the run, `sigma` being that of its start."""
        if self.rules is None:
            return [(sigma, self.steps)]
        return replace(self.rules.controller, steps_total=self.steps).noise(sigma)

    def events(self, sigma: float, unit: Unit, calendar_steps: int | None) -> list[tuple[DpEvent, int]]:
        """(event, count) of all steps and side releases."""
        steps = [
            (self.sampler.amplify(_inner(self.hardened, s), unit, self.relation, calendar_steps=calendar_steps), n)
            for s, n in self.stages(sigma)
        ]
        return [*steps, *self.side]

    def epsilon_of(self, parts: list[tuple[DpEvent, int]]) -> float:
        """What they cost, by the accountant of the run."""
        if self.accountant == "rdp":
            return filter_epsilon(parts, self.delta, self.relation)[0]
        return epsilon_of(parts, self.delta, self.relation)


@dataclass(frozen=True)
class Outlook:
    """What a situation leads to.

    Attributes:
        change: what differs from the plan, in words; "as planned" for the plan itself.
        noise_multiplier: sigma, the total one at the start of the run.
        epsilon: of the unit, at delta.
        expected_batch_size: windows per step, B.
        noise_to_signal: sigma sqrt(P) / B, one step; on a schedule, its root mean square.
        noise_to_signal_all: the same after all steps, / sqrt(T).
        gain: noise_to_signal_all of the plan over this one; above 1 is better.
    """

    change: str
    noise_multiplier: float
    epsilon: float
    expected_batch_size: float
    noise_to_signal: float
    noise_to_signal_all: float
    gain: float


@dataclass(frozen=True)
class Plan:
    """The outlook of a situation, its ladder under both relations, and what would help.

    Attributes:
        now: as planned.
        ladders: relation -> unit -> epsilon, side releases included. Under a Renyi filter this is the cost of the run
            if it goes as planned; the claim is the filter's, for its own unit alone (`costs`).
        helps: one change each.
        accountant: name and version.
        costs: epsilon of training alone, of the side releases alone, of both by exact accounting, and where a filter
            is asked for what it must allow, and its order.
    """

    now: Outlook
    ladders: dict[str, dict[str, float]]
    helps: tuple[Outlook, ...]
    accountant: str
    costs: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Plain values; None where no epsilon is finite."""
        finite = {
            relation: {unit: e if math.isfinite(e) else None for unit, e in rungs.items()}
            for relation, rungs in self.ladders.items()
        }
        return {
            "now": asdict(self.now),
            "ladders": finite,
            "helps": [asdict(h) for h in self.helps],
            "accountant": self.accountant,
            "costs": self.costs,
        }


def plan(situation: Situation) -> Plan:
    """Sigma, ladder, noise-to-signal and the changes worth considering.

    Raises:
        InputError: numbers out of range, such as a window longer than the calendar.
    """
    for name in ("num_meters", "num_parameters", "steps", "steps_per_day"):
        if getattr(situation, name) < 1:
            raise InputError(f"{name}={getattr(situation, name)} is below 1; nothing was planned.")
    now = _outlook("as planned", situation, None)
    helps = tuple(found for text, changed in _changes(situation) if (found := _if_possible(text, changed, now)))
    noises = [(_inner(situation.hardened, sigma), n) for sigma, n in situation.stages(now.noise_multiplier)]
    rungs = {
        relation.value: ladder_of(
            [(situation.sampler, noise, count) for noise, count in noises],
            ladder_units(situation.steps_per_day),
            delta=situation.delta,
            relation=relation,
            calendar_steps=situation.calendar_steps,
            extra=dict(situation.side_rungs),
        )
        for relation in (Relation.ZERO_OUT, Relation.REPLACE_ONE)
    }
    return Plan(now, rungs, helps, accountant_name(), _costs(situation, now))


def _costs(situation: Situation, now: Outlook) -> dict[str, float | None]:
    """What the parts of the run cost alone, so that one sees what is paid for what."""
    unit = Unit.parse(situation.unit, steps_per_day=situation.steps_per_day)
    whole = situation.events(now.noise_multiplier, unit, situation.calendar_steps)
    steps = whole[: len(whole) - len(situation.side)]
    delta, relation = situation.delta, situation.relation
    costs: dict[str, float | None] = {
        "training": epsilon_of(steps, delta, relation),
        "side_releases": epsilon_of(situation.side, delta, relation) if situation.side else 0.0,
        "all_exact": epsilon_of(whole, delta, relation),
    }
    if situation.accountant == "rdp":
        costs["filter"], costs["filter_order"] = filter_epsilon(whole, delta, relation)
    return costs


def _if_possible(change: str, situation: Situation, reference: Outlook) -> Outlook | None:
    """None where no noise keeps the budget, or a statistic of stated noise would take all of it."""
    try:
        return _outlook(change, situation, reference)
    except InputError:
        return None


def _changes(s: Situation) -> list[tuple[str, Situation]]:
    """Each keeps the budget and changes one thing; a stated sigma is calibrated anew, or nothing would change."""
    free = replace(s, noise_multiplier=None, rules=_coarse(s.rules))
    changes = [
        ("twice the meters", replace(free, num_meters=2 * s.num_meters)),
        ("twice the calendar", replace(free, calendar_steps=2 * s.calendar_steps)),
        ("half the steps", replace(free, steps=max(1, s.steps // 2))),
        ("a quarter of the parameters", replace(free, num_parameters=max(1, s.num_parameters // 4))),
        ("twice the epsilon", replace(free, epsilon=2 * s.epsilon)),
    ]
    if isinstance(s.sampler, RandomPhaseTiling):
        p, window = s.sampler.sampling_prob, s.sampler.window
        if p < 1:
            doubled = RandomPhaseTiling(window, min(1.0, 2 * p))
            changes.append(("twice the sampling rate", replace(free, sampler=doubled)))
        if window >= 4:
            changes.append(("windows of half the length", replace(free, sampler=RandomPhaseTiling(window // 2, p))))
    return changes


def _coarse(rules: Rules | None) -> Rules | None:
    """A schedule in few stages: each composes an event of its own, and the gains hardly change."""
    if rules is None or not isinstance(rules.controller, DynamicController):
        return rules
    return replace(rules, controller=replace(rules.controller, stages=min(rules.controller.stages, _STAGES)))


def _outlook(change: str, s: Situation, reference: Outlook | None) -> Outlook:
    unit = Unit.parse(s.unit, steps_per_day=s.steps_per_day)
    # Only the unit meter depends on the calendar; leaving it out elsewhere lets clients share the result.
    length = s.calendar_steps if unit.kind == "meter" else None
    sigma = s.noise_multiplier
    if sigma is None:
        alike = replace(s, num_meters=1, num_parameters=1, calendar_steps=length or 1)
        sigma = _least_noise(alike, unit, length)
    batch = s.sampler.expected_batch_size(num_meters=s.num_meters, start=0, stop=s.calendar_steps)
    on_gradient = [(_left(s, each), count) for each, count in s.stages(sigma)]
    mean = math.sqrt(sum(count * each**2 for each, count in on_gradient) / s.steps)
    ratio = mean * math.sqrt(s.num_parameters) / batch
    overall = ratio / math.sqrt(s.steps)
    return Outlook(
        change=change,
        noise_multiplier=sigma,
        epsilon=s.epsilon_of(s.events(sigma, unit, s.calendar_steps)),
        expected_batch_size=batch,
        noise_to_signal=ratio,
        noise_to_signal_all=overall,
        gain=reference.noise_to_signal_all / overall if reference is not None else 1.0,
    )


def _left(s: Situation, sigma: float) -> float:
    """What of the total noise multiplier is on the gradient."""
    return sigma if s.rules is None else s.rules.sigma_gradient(sigma)


@lru_cache(maxsize=256)
def _least_noise(s: Situation, unit: Unit, length: int | None) -> float:
    def whole(sigma: float) -> DpEvent:
        parts = s.events(sigma, unit, length)
        return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(event, times) for event, times in parts])

    return calibrate(
        whole,
        count=1,
        epsilon=s.epsilon,
        delta=s.delta,
        relation=Relation.parse(s.relation),
        accountant=s.accountant,
    )


def _inner(hardened: bool, sigma: float) -> DpEvent:
    return discrete_event(sigma) if hardened else dp_event.GaussianDpEvent(sigma)
