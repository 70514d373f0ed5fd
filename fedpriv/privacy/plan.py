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
from typing import Any

from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import accountant_name, calibrate, epsilon_of, ladders
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler
from fedpriv.privacy.units import Relation, Unit


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


@dataclass(frozen=True)
class Outlook:
    """What a situation leads to.

    Attributes:
        change: what differs from the plan, in words; "as planned" for the plan itself.
        noise_multiplier: sigma.
        epsilon: of the unit, at delta.
        expected_batch_size: windows per step, B.
        noise_to_signal: sigma sqrt(P) / B, one step.
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
    """The outlook of a situation, its ladder under both relations, and what would help."""

    now: Outlook
    ladders: dict[str, dict[str, float]]
    helps: tuple[Outlook, ...]
    accountant: str

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
    helps = tuple(_outlook(text, changed, now) for text, changed in _changes(situation))
    rungs = ladders(
        sampler=situation.sampler,
        noise_multiplier=_inner(situation.hardened, now.noise_multiplier),
        steps=situation.steps,
        delta=situation.delta,
        steps_per_day=situation.steps_per_day,
        calendar_steps=situation.calendar_steps,
    )
    return Plan(now, rungs, helps, accountant_name())


def _changes(s: Situation) -> list[tuple[str, Situation]]:
    """Each keeps the budget and changes one thing; a stated sigma is calibrated anew, or nothing would change."""
    free = replace(s, noise_multiplier=None)
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


def _outlook(change: str, s: Situation, reference: Outlook | None) -> Outlook:
    sigma = s.noise_multiplier
    if sigma is None:
        sigma = _least_noise(
            s.sampler,
            s.unit,
            s.relation,
            s.steps_per_day,
            s.calendar_steps,
            s.steps,
            s.epsilon,
            s.delta,
            s.hardened,
            s.side,
        )
    unit = Unit.parse(s.unit, steps_per_day=s.steps_per_day)
    event = s.sampler.amplify(_inner(s.hardened, sigma), unit, s.relation, calendar_steps=s.calendar_steps)
    batch = s.sampler.expected_batch_size(num_meters=s.num_meters, start=0, stop=s.calendar_steps)
    ratio = sigma * math.sqrt(s.num_parameters) / batch
    overall = ratio / math.sqrt(s.steps)
    return Outlook(
        change=change,
        noise_multiplier=sigma,
        epsilon=epsilon_of([(event, s.steps), *s.side], s.delta, s.relation),
        expected_batch_size=batch,
        noise_to_signal=ratio,
        noise_to_signal_all=overall,
        gain=reference.noise_to_signal_all / overall if reference is not None else 1.0,
    )


@lru_cache(maxsize=256)
def _least_noise(
    sampler: Sampler,
    unit_name: str,
    relation: str,
    steps_per_day: int,
    calendar_steps: int,
    steps: int,
    target: float,
    delta: float,
    hardened: bool,
    side: tuple[tuple[DpEvent, int], ...],
) -> float:
    unit = Unit.parse(unit_name, steps_per_day=steps_per_day)
    # Only the unit meter depends on the calendar; leaving it out elsewhere lets clients share the result.
    length = calendar_steps if unit.kind == "meter" else None
    beside = [dp_event.SelfComposedDpEvent(event, times) for event, times in side]

    def whole(sigma: float) -> DpEvent:
        step = sampler.amplify(_inner(hardened, sigma), unit, relation, calendar_steps=length)
        return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(step, steps), *beside])

    return calibrate(whole, count=1, epsilon=target, delta=delta, relation=Relation.parse(relation))


def _inner(hardened: bool, sigma: float) -> DpEvent:
    return discrete_event(sigma) if hardened else dp_event.GaussianDpEvent(sigma)
