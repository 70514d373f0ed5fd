"""Privacy loss distributions of events and their composition, memoised by canonical text.

One distribution per event and grid, one per (event, count); heterogeneous lists compose those. All estimates are
pessimistic and cover both directions of the relation.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import DpEvent, dp_event
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld

from fedpriv.errors import InputError
from fedpriv.privacy.events import PublicChoiceDpEvent, ScheduledDpEvent, decode_event, encode_event
from fedpriv.privacy.mixtures import loss_range, mixture_pld
from fedpriv.privacy.renyi import epsilon_by_renyi
from fedpriv.privacy.units import Relation

INTERVAL = 1e-3  # grid of the losses, nats
HOPELESS = 2000.0  # expected loss, nats, above which nothing is composed
MAX_GRID = 50_000  # points of one step's grid; wider losses get a coarser one, still pessimistic

Pld = pld.PrivacyLossDistribution


def flat_counts(parts: Sequence[tuple[DpEvent, int]]) -> Counter[str]:
    """Canonical text of each leaf event, and how often it takes place; 0 times and NoOp vanish.

    n times a schedule are n of its steps, charged as all of them; within another event it is a whole one.
    """
    counts: Counter[str] = Counter()
    for event, count in parts:
        if count < 0:
            raise InputError(f"count={count} of a privacy event is negative.")
        if count == 0 or isinstance(event, dp_event.NoOpDpEvent):
            continue
        if isinstance(event, dp_event.SelfComposedDpEvent):
            counts.update(flat_counts([(_whole(event.event), event.count * count)]))
        elif isinstance(event, ScheduledDpEvent):
            if count > event.steps:
                raise InputError(f"{count} steps of a schedule of {event.steps}; nothing was charged.")
            counts.update(flat_counts(event.part(0, event.steps)))  # which of its steps is not known here: all
        elif isinstance(event, dp_event.ComposedDpEvent):
            counts.update(flat_counts([(_whole(e), count) for e in event.events]))
        else:
            counts[encode_event(event)] += count
    return counts


def hopeless(counts: Mapping[str, int]) -> bool:
    """Whether events cost so much that composing them would only waste hours: epsilon is then called infinite.

    An infinite epsilon is never too small a claim. Without this a server could keep a client busy by asking for noise
    of 1e-6. The measure is a bound on the expected privacy loss, in nats.
    """
    loss = 0.0
    for key, count in counts.items():
        event = decode_event(key)
        choices = (
            list(zip(event.events, event.probabilities, strict=True))
            if isinstance(event, PublicChoiceDpEvent)
            else [(event, 1.0)]
        )
        loss += count * sum(chance * _expected_loss(each) for each, chance in choices)
    return not loss <= HOPELESS


def _expected_loss(event: DpEvent) -> float:
    """At least the Kullback-Leibler divergence of one event (zero-out); 0 where it is of another kind."""
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        return event.sampling_probability * _expected_loss(event.event)
    if isinstance(event, dp_event.GaussianDpEvent):
        return 0.5 / event.noise_multiplier**2 if event.noise_multiplier > 1e-100 else math.inf
    if isinstance(event, dp_event.LaplaceDpEvent):
        return 1.0 / event.noise_multiplier if event.noise_multiplier > 1e-100 else math.inf
    if isinstance(event, dp_event.ZCDpEvent):
        return event.rho + event.xi
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        counts, weights = _mixture(event)
        spread = event.standard_deviation**2
        return float((weights * counts**2).sum()) / (2 * spread) if spread > 1e-100 else math.inf
    return 0.0


def leaves(parts: Sequence[tuple[DpEvent, int]]) -> list[tuple[DpEvent, int]]:
    """The leaf events themselves, each with its count."""
    return [(decode_event(key), count) for key, count in sorted(flat_counts(parts).items())]


def _whole(event: DpEvent) -> DpEvent:
    """A schedule as what all its steps cost together; other events as they are."""
    if not isinstance(event, ScheduledDpEvent):
        return event
    return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(e, n) for e, n in event.part(0, event.steps)])


@lru_cache(maxsize=4096)
def epsilon_of_counts(counts: tuple[tuple[str, int], ...], delta: float, relation: Relation) -> float:
    """Epsilon of sorted (canonical text, count) pairs."""
    if not counts:
        return 0.0
    if any(isinstance(decode_event(key), dp_event.ZCDpEvent) for key, _ in counts):
        return epsilon_by_renyi(counts, delta, relation)  # a bound on its divergences is all that is known of it
    interval = max(grid_interval(key, relation) for key, _ in counts)
    total: Pld | None = None
    for key, count in counts:
        part = composed(key, count, relation, interval)
        total = part if total is None else total.compose(part)
    assert total is not None
    return epsilon_at(total, delta)


def epsilon_at(total: Pld, delta: float) -> float:
    """`total.get_epsilon_for_delta(delta)`, which walks the losses in Python, on arrays: 400 rounds in a second."""
    sides = {id(p): p for p in (total._pmf_remove, total._pmf_add)}.values()  # pyright: ignore[reportPrivateUsage]
    return max(_pmf_epsilon(side.to_dense_pmf(), delta) for side in sides)


def _pmf_epsilon(pmf: pld_pmf.DensePLDPmf, delta: float) -> float:
    """Least epsilon >= 0 with infinity_mass + sum_{l > epsilon} p(l) (1 - e^(epsilon - l)) <= delta."""
    infinite: float = pmf._infinity_mass  # pyright: ignore[reportPrivateUsage]
    if infinite > delta:
        return math.inf
    probs = np.flip(pmf._probs)  # pyright: ignore[reportPrivateUsage]
    top = pmf._lower_loss + len(probs) - 1  # pyright: ignore[reportPrivateUsage]
    interval = pmf._discretization  # pyright: ignore[reportPrivateUsage]
    probs = probs[: max(top, 0)]  # losses > 0
    if not len(probs):
        return 0.0
    upper = infinite + np.cumsum(probs)
    anchor = min(int(np.searchsorted(upper, delta)), len(probs) - 1)  # epsilon is below this loss, and mostly near it
    losses, lower, reached = np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool)
    for last in (anchor + math.ceil(2 / interval), len(probs)):
        losses = (top - np.arange(min(last, len(probs)))) * interval
        # Relative to the anchor, since e^-l alone may underflow. The caps only bite far above, where the mass is still
        # below delta, and far below, past the answer.
        away = np.clip(losses[anchor] - losses, -700.0, 700.0)
        lower = np.cumsum(probs[:last] * np.exp(away))
        reached = upper[: len(losses)] - np.exp(-away) * lower >= delta  # the divergence at epsilon = each loss
        if reached.any():
            break
    first = int(np.argmax(reached)) if reached.any() else len(losses)
    if first == 0 or upper[first - 1] <= delta:
        return float(losses[first]) if first < len(losses) else 0.0
    return float(max(0.0, losses[anchor] + math.log((upper[first - 1] - delta) / lower[first - 1])))


@lru_cache(maxsize=64)
def composed(key: str, count: int, relation: Relation, interval: float) -> Pld:
    """The distribution of one event taking place `count` times."""
    event = decode_event(key)
    if isinstance(event, dp_event.GaussianDpEvent):  # count releases are one with sigma / sqrt(count)
        return _one(
            encode_event(dp_event.GaussianDpEvent(event.noise_multiplier / math.sqrt(count))), relation, interval
        )
    base = _one(key, relation, interval)
    return base if count == 1 else base.self_compose(count)


@lru_cache(maxsize=256)
def _one(key: str, relation: Relation, interval: float) -> Pld:
    """The privacy loss distribution of one event.

    Raises:
        InputError: an event that the accountant does not know.
    """
    event, neighboring = decode_event(key), relation.neighboring
    if isinstance(event, PublicChoiceDpEvent):
        return _mixed([_one_of(e, relation, interval) for e in event.events], list(event.probabilities))
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        counts, weights = _mixture(event)
        replace = relation is Relation.REPLACE_ONE
        return mixture_pld(event.standard_deviation, counts, weights, replace_one=replace, interval=interval)
    inner, prob = event, 1.0
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        inner, prob = event.event, event.sampling_probability
    if prob > 0 and isinstance(inner, dp_event.GaussianDpEvent) and inner.noise_multiplier > 0:
        return pld.from_gaussian_mechanism(
            inner.noise_multiplier,
            value_discretization_interval=interval,
            sampling_prob=prob,
            neighboring_relation=neighboring,
        )
    replace = relation is Relation.REPLACE_ONE
    if prob > 0 and isinstance(inner, dp_event.LaplaceDpEvent) and inner.noise_multiplier > 0 and not replace:
        return pld.from_laplace_mechanism(
            inner.noise_multiplier, value_discretization_interval=interval, sampling_prob=prob
        )
    raise InputError(f"the accountant has no privacy loss for {key[:200]} under {relation}; nothing was charged.")


def _one_of(event: DpEvent, relation: Relation, interval: float) -> Pld:
    if isinstance(event, dp_event.NoOpDpEvent):
        return pld.identity(interval)
    if isinstance(event, dp_event.SelfComposedDpEvent | dp_event.ComposedDpEvent | dp_event.NonPrivateDpEvent):
        raise InputError("a public choice is between single private events.")
    return _one(encode_event(event), relation, interval)


def _mixed(parts: list[Pld], weights: list[float]) -> Pld:
    mixed, mass = parts[0], weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        if weight > 0:
            mixed, mass = part.compute_mixture(mixed, weight / (mass + weight)), mass + weight
    return mixed


def _mixture(event: dp_event.MixtureOfGaussiansDpEvent) -> tuple[np.ndarray, np.ndarray]:
    counts, weights = np.asarray(event.sensitivities, dtype=float), np.asarray(event.sampling_probs, dtype=float)
    return counts[weights > 0], weights[weights > 0] / weights.sum()


@lru_cache(maxsize=1024)
def grid_interval(key: str, relation: Relation) -> float:
    """1e-3, or what keeps the grid of one step below `MAX_GRID` points."""
    event = decode_event(key)
    events = list(event.events) if isinstance(event, PublicChoiceDpEvent) else [event]
    width = 0.0
    for e in events:
        if isinstance(e, dp_event.MixtureOfGaussiansDpEvent) and e.standard_deviation > 0:
            counts, weights = _mixture(e)
            replace = relation is Relation.REPLACE_ONE
            width = max(width, loss_range(e.standard_deviation, counts, weights, replace_one=replace))
    return INTERVAL * max(1, math.ceil(width / INTERVAL / MAX_GRID))
