"""Epsilon of events: exact composition of privacy loss distributions, memoised, and calibration of the noise.

The reference is dp-accounting's PLD: pessimistic, both directions, losses on a grid of 1e-3 (finer changes epsilon by
less than 0.001). Mixtures are discretised by `fedpriv.privacy.mixtures` and composed by dp-accounting. RDP is there
as an independent upper bound. The claim is for parameters fixed in advance: see `fedpriv.privacy.contract`.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise

from dp_accounting import DpEvent, NeighboringRelation, dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from fedpriv.errors import InputError
from fedpriv.privacy.composition import (
    INTERVAL,
    composed,
    epsilon_at,
    epsilon_of_counts,
    flat_counts,
    grid_interval,
    hopeless,
    leaves,
)
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.renyi import ORDERS, cost_of, epsilon_of_units
from fedpriv.privacy.samplers import Sampler
from fedpriv.privacy.units import Relation, Unit, ladder_units

SIGMA_DIGITS = 5  # calibrated noise is rounded up to this many significant digits
SIGMA_MAX = 1e6

AnyRelation = Relation | NeighboringRelation | str


def accountant_name() -> str:
    """What labels call this accountant."""
    return f"dp-accounting {version('dp-accounting')} PLD, pessimistic, both directions, interval {INTERVAL:g}"


def epsilon(event: DpEvent, count: int, delta: float, relation: AnyRelation) -> float:
    """Epsilon at `delta` of `event` taking place `count` times; math.inf when no finite one holds.

    Raises:
        InputError: an event that is not known, or a delta outside (0, 1).
    """
    return epsilon_of([(event, count)], delta, relation)


def epsilon_of(parts: Sequence[tuple[DpEvent, int]], delta: float, relation: AnyRelation) -> float:
    """Epsilon at `delta` of all the events together, each (event, count); the order does not matter."""
    if not 0 < delta < 1:
        raise InputError(f"delta={delta!r} is not in (0, 1); nothing was computed.")
    counts = flat_counts(parts)
    if any(encode_event(dp_event.NonPrivateDpEvent()) == key for key in counts):
        return math.inf
    if hopeless(counts):
        return math.inf
    return epsilon_of_counts(tuple(sorted(counts.items())), delta, Relation.parse(relation))


def filter_epsilon(parts: Sequence[tuple[DpEvent, int]], delta: float, relation: AnyRelation) -> tuple[float, float]:
    """(epsilon, order): what a Renyi filter must allow for all the events, and the order at which that is least.

    A function of public numbers; fix the order with it before the first request.
    """
    relation = Relation.parse(relation)
    charged = leaves(parts)
    return min(
        (epsilon_of_units(sum(n * cost_of(event, order, relation) for event, n in charged), order, delta), order)
        for order in ORDERS
    )


def epsilon_curve(event: DpEvent, counts: Sequence[int], delta: float, relation: AnyRelation) -> list[float]:
    """Epsilon after each of the increasing `counts`, by composing onto the one before: 400 rounds in about a second."""
    relation = Relation.parse(relation)
    if any(b < a for a, b in pairwise(counts)):
        raise InputError("counts of an epsilon curve must not decrease.")
    key = encode_event(event)
    if key == encode_event(dp_event.NonPrivateDpEvent()):
        return [math.inf if n else 0.0 for n in counts]
    interval = grid_interval(key, relation)
    total, done, curve = pld.identity(interval), 0, list[float]()
    for n in counts:
        if n > done:
            total, done = total.compose(composed(key, n - done, relation, interval)), n
        curve.append(epsilon_at(total, delta))
    return curve


def rdp_epsilon(event: DpEvent, count: int, delta: float, relation: AnyRelation) -> float:
    """Epsilon by Renyi accounting, an upper bound of `epsilon`, where dp-accounting has the formula.

    Raises:
        InputError: dp-accounting's RDP does not cover this event under this relation.
    """
    relation = Relation.parse(relation)
    accountant = RdpAccountant(neighboring_relation=relation.neighboring)
    if isinstance(event, dp_event.GaussianDpEvent) and relation is Relation.REPLACE_ONE:
        # dp-accounting's PLD doubles the sensitivity of a Gaussian under replace-one, its RDP does not.
        event = dp_event.GaussianDpEvent(event.noise_multiplier / 2)
    if not accountant.supports(event):
        raise InputError(f"Renyi accounting does not cover {type(event).__name__} under {relation}.")
    return float(accountant.compose(event, count).get_epsilon(delta))


def calibrate(
    make_event: Callable[[float], DpEvent],
    *,
    count: int,
    epsilon: float,
    delta: float,
    relation: AnyRelation,
    accountant: str = "pld",
) -> float:
    """The least noise multiplier (5 significant digits, rounded up) whose PLD epsilon is at most `epsilon`.

    Args:
        make_event: sigma to the event of one step; more sigma must not cost more.
        count: steps in all.
        epsilon: the target, > 0.
        delta: in (0, 1).
        relation: neighbouring relation.
        accountant: pld, or rdp for what a Renyi filter of the best fixed order charges.

    Raises:
        InputError: a target that is not positive, or one that no sigma up to 1e6 meets.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon={epsilon!r} is not a positive number; nothing was started.")
    if count < 1:
        raise InputError(f"count={count} private steps leave nothing to calibrate; nothing was started.")

    def spent(sigma: float) -> float:
        parts = [(make_event(sigma), count)]
        return filter_epsilon(parts, delta, relation)[0] if accountant == "rdp" else epsilon_of(parts, delta, relation)

    low, high = _bracket(spent, epsilon)
    e_low, e_high = spent(low), spent(high)
    for _ in range(40):
        if high <= low * (1 + 2e-5):
            break
        middle = _between(low, high, e_low, e_high, epsilon)
        e = spent(middle)
        low, high, e_low, e_high = (low, middle, e_low, e) if e <= epsilon else (middle, high, e, e_high)
    sigma = _round_up(high)
    while spent(sigma) > epsilon:  # the grid of losses may make a ripple; never return more than asked
        sigma = _round_up(sigma * (1 + 1e-5))
    return sigma


def ladder(
    *,
    sampler: Sampler,
    noise_multiplier: float | DpEvent,
    steps: int,
    delta: float,
    relation: AnyRelation,
    steps_per_day: int,
    calendar_steps: int,
) -> dict[str, float]:
    """Epsilon of the same mechanism for each unit: {reading, day, week, month, meter: epsilon or inf}.

    Args:
        sampler: as used in training.
        noise_multiplier: sigma, noise in units of the clipping bound; or the event of one group under zero-out.
        steps: private steps in all.
        delta: in (0, 1).
        relation: neighbouring relation.
        steps_per_day: readings in 24 hours (month: 31 days).
        calendar_steps: public length of the training calendar, steps; units are cut to it.
    """
    return ladder_of(
        [(sampler, noise_multiplier, steps)],
        ladder_units(steps_per_day),
        delta=delta,
        relation=relation,
        calendar_steps=calendar_steps,
    )


def ladder_of(
    parts: Sequence[tuple[Sampler, float | DpEvent, int]],
    units: Sequence[Unit],
    *,
    delta: float,
    relation: AnyRelation,
    calendar_steps: int | None,
    extra: Mapping[str, Sequence[tuple[DpEvent, int]]] | None = None,
) -> dict[str, float]:
    """`ladder` of several mechanisms on the same data, each (sampler, noise, steps), for some units.

    Args:
        parts: the mechanisms; the noise is a multiplier, or the event of one group under zero-out.
        units: smallest first, each part of the next.
        delta, relation: as in `ladder`.
        calendar_steps: needed for the unit meter only.
        extra: (event, count) of side releases by name of the unit.
    """
    events = {
        unit.name: [
            *(
                (sampler.amplify(inner_event(noise), unit, relation, calendar_steps=calendar_steps), steps)
                for sampler, noise, steps in parts
            ),
            *(extra or {}).get(unit.name, ()),
        ]
        for unit in units
    }
    return rungs_of(events, delta, relation)


def rungs_of(
    events: Mapping[str, Sequence[tuple[DpEvent, int]]], delta: float, relation: AnyRelation
) -> dict[str, float]:
    """Epsilon of every unit from the (event, count) of all mechanisms for it.

    Args:
        events: by name of the unit; smallest first, each unit part of the next.
        delta, relation: as in `ladder`.
    """
    rungs = {name: epsilon_of(parts, delta, relation) for name, parts in events.items()}
    # A unit is part of every larger one, so a smaller bound above also holds below (long units, short calendars).
    best = math.inf
    for name in reversed(list(rungs)):
        best = rungs[name] = min(best, rungs[name])
    return rungs


def ladders(
    *,
    sampler: Sampler,
    noise_multiplier: float | DpEvent,
    steps: int,
    delta: float,
    steps_per_day: int,
    calendar_steps: int,
) -> dict[str, dict[str, float]]:
    """`ladder` under zero-out (which is also that of add-remove here) and replace-one."""
    return {
        relation.value: ladder(
            sampler=sampler,
            noise_multiplier=noise_multiplier,
            steps=steps,
            delta=delta,
            relation=relation,
            steps_per_day=steps_per_day,
            calendar_steps=calendar_steps,
        )
        for relation in (Relation.ZERO_OUT, Relation.REPLACE_ONE)
    }


def inner_event(noise: float | DpEvent) -> DpEvent:
    """The event of one group before amplification: of a multiplier that of Gaussian noise."""
    return noise if isinstance(noise, DpEvent) else dp_event.GaussianDpEvent(noise)


# ---- calibration ----------------------------------------------------------------------------------


def _bracket(spent: Callable[[float], float], target: float) -> tuple[float, float]:
    """(low, high) with spent(low) > target >= spent(high), within a factor of two."""
    sigma = 1.0
    if spent(sigma) > target:
        while spent(sigma) > target:
            if sigma > SIGMA_MAX:
                raise InputError(
                    f"no noise multiplier up to {SIGMA_MAX:g} keeps epsilon at {target:g}; nothing was started."
                )
            sigma *= 2
        return sigma / 2, sigma
    while spent(sigma / 2) <= target:
        sigma /= 2
        if sigma < 1e-3:
            return sigma / 2, sigma
    return sigma / 2, sigma


def _between(low: float, high: float, e_low: float, e_high: float, target: float) -> float:
    """A guess by log-log interpolation, kept off the ends so that both sides shrink."""
    share = 0.5
    if 0 < e_high < e_low < math.inf:
        share = math.log(e_low / target) / math.log(e_low / e_high)
        share += 1e-3 if share < 0.5 else -1e-3
    share = min(max(share, 0.01), 0.99)
    return low * (high / low) ** share


def _round_up(sigma: float) -> float:
    scale = 10.0 ** (SIGMA_DIGITS - 1 - math.floor(math.log10(sigma)))
    return math.ceil(sigma * scale * (1 - 1e-12)) / scale
