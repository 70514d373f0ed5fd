"""Renyi divergences of events, in whole billionths of a nat: the currency of a filter of one fixed order.

A privacy filter may be asked for any mixture of events, each chosen after seeing the answers to those before, and
stops before a budget is passed. Watching an exact epsilon in that place is not sound (arXiv:2602.15815); the sum of
Renyi divergences at ONE order alpha, fixed before the first answer, is (Feldman and Zrnic 2021, arXiv:2008.11193,
theorem 4.3). The sum is kept in integers: each event costs ceil(1e9 * divergence), so rounding is always upwards and
nothing drifts. A total of c units at order alpha gives (Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition
12)

    epsilon = c / 1e9 + ln(1 - 1/alpha) - ln(delta * alpha) / (alpha - 1).

Divergences of mixtures of Gaussians are integrals over a line, taken by the trapezoidal rule, which converges
geometrically for such integrands; both directions are taken and the larger one counts. A pair that dominates in all
hockey-stick divergences dominates in all Renyi divergences, so the events of `fedpriv.privacy.laws` can be used as
they are. The order costs: see `suggest_order`.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.privacy.events import PublicChoiceDpEvent, decode_event, encode_event
from fedpriv.privacy.units import Relation

UNITS: Final = 10**9  # per nat
ORDERS: Final = (*(1.0 + x / 10 for x in range(1, 10)), *map(float, range(2, 33)), 40.0, 48.0, 64.0, 96.0, 128.0)
MAX_ORDER: Final = 1024.0
_SLACK_RELATIVE, _SLACK_NATS = 1e-9, 1e-12  # more than the quadrature and its logarithms can be wrong by
_MAX_POINTS = 4_000_000

Line = NDArray[np.float64]


def cost_of(event: DpEvent, order: float, relation: Relation | str) -> int:
    """Units of one event at `order`, rounded up.

    Raises:
        InputError: an event without a known divergence, or an order that is not in (1, 1024].
    """
    divergence = renyi_of(event, order, relation)
    if math.isinf(divergence):
        raise InputError(f"a {type(event).__name__} has no finite Renyi divergence; nothing was charged.")
    if divergence == 0.0:
        return 0
    return math.ceil((divergence * (1 + _SLACK_RELATIVE) + _SLACK_NATS) * UNITS)


def allowance(order: float, *, epsilon: float, delta: float) -> int:
    """The most units at `order` that keep (epsilon, delta), rounded down.

    Raises:
        InputError: not even nothing keeps them, because the order is too small for this delta.
    """
    check_order(order)
    units = math.floor((epsilon - _offset(order, delta)) * (1 - _SLACK_RELATIVE) * UNITS)
    if units < 1:
        raise InputError(
            f"at order {order:g} no divergence gives epsilon={epsilon:g} at delta={delta:g}; take a larger order. "
            "Nothing was enrolled."
        )
    return units


def epsilon_of_units(units: int, order: float, delta: float) -> float:
    """Epsilon at `delta` of a total of `units` at `order`; 0 for nothing."""
    return max(0.0, units / UNITS + _offset(order, delta)) if units else 0.0


def suggest_order(event: DpEvent, *, epsilon: float, delta: float, relation: Relation | str) -> float:
    """The order at which a filter admits most repetitions of an event that is expected to be typical.

    A function of public numbers alone: fix the order with it *before* the first request. Where several are about as
    good (1 %) the smallest is taken: too large an order can make sampled events thousands of times as dear, too
    small a one costs some percent.
    """
    admitted: dict[float, float] = {}
    for order in ORDERS:
        if epsilon > _offset(order, delta):
            admitted[order] = allowance(order, epsilon=epsilon, delta=delta) / max(cost_of(event, order, relation), 1)
    if not admitted:
        raise InputError(f"no order gives epsilon={epsilon:g} at delta={delta:g}; nothing was enrolled.")
    best = max(admitted.values())
    return min(order for order, count in admitted.items() if count >= 0.99 * best)


def epsilon_by_renyi(counts: Sequence[tuple[str, int]], delta: float, relation: Relation) -> float:
    """Epsilon of (canonical text, count) pairs that were fixed in advance: the best of many orders.

    For events whose exact privacy loss has no known form (zCDP); never smaller than the exact epsilon.
    """
    totals = (
        (order, sum(count * cost_of(decode_event(key), order, relation) for key, count in counts)) for order in ORDERS
    )
    return min(epsilon_of_units(units, order, delta) for order, units in totals)


def renyi_of(event: DpEvent, order: float, relation: Relation | str) -> float:
    """Renyi divergence of one event at `order`, nats; the larger of both directions, math.inf if there is none.

    Raises:
        InputError: an event without a known divergence, or an order that is not in (1, 1024].
    """
    check_order(order)
    if isinstance(event, dp_event.NoOpDpEvent):
        return 0.0
    if isinstance(event, dp_event.NonPrivateDpEvent):
        return math.inf
    if isinstance(event, dp_event.ComposedDpEvent):
        return math.fsum(renyi_of(e, order, relation) for e in event.events)
    if isinstance(event, dp_event.SelfComposedDpEvent):
        return event.count * renyi_of(event.event, order, relation)
    return _renyi_of(encode_event(event), float(order), Relation.parse(relation))


def check_order(order: float) -> None:
    """An order in (1, 1024].

    Raises:
        InputError: it is not.
    """
    if not 1.0 < order <= MAX_ORDER:
        raise InputError(f"order={order!r} of a Renyi filter is not in (1, {MAX_ORDER:g}]; nothing was enrolled.")


def _offset(order: float, delta: float) -> float:
    return math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)


@lru_cache(maxsize=8192)
def _renyi_of(key: str, order: float, relation: Relation) -> float:
    event = decode_event(key)
    if isinstance(event, dp_event.ZCDpEvent):
        return event.xi + event.rho * order  # stated for the relation it was made for: see `Sampler.amplify`
    if isinstance(event, PublicChoiceDpEvent):
        parts = [renyi_of(e, order, relation) for e in event.events]
        weights = np.asarray(event.probabilities, dtype=float)
        logs = (order - 1) * np.asarray(parts)[weights > 0] + np.log(weights[weights > 0])
        return _log_sum(logs) / (order - 1)
    mixture = _mixture(event)
    if mixture is None:
        raise InputError(f"no Renyi divergence is known for {key[:200]}; nothing was charged.")
    sigma, counts, weights = mixture
    if relation is Relation.REPLACE_ONE:
        return _divergence(sigma, (-counts, weights), (counts, weights), order)
    nothing = (np.zeros(1), np.ones(1))
    return max(
        _divergence(sigma, (counts, weights), nothing, order), _divergence(sigma, nothing, (counts, weights), order)
    )


def _mixture(event: DpEvent) -> tuple[float, Line, Line] | None:
    """(sigma, means, weights) of a Gaussian sum, means >= 0 in units of the bound."""
    if isinstance(event, dp_event.GaussianDpEvent):
        return float(event.noise_multiplier), np.ones(1), np.ones(1)
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        p = float(event.sampling_probability)
        if p == 1.0:
            return float(event.event.noise_multiplier), np.ones(1), np.ones(1)
        return float(event.event.noise_multiplier), np.array([0.0, 1.0]), np.array([1 - p, p])
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        weights = np.asarray(event.sampling_probs, dtype=float)
        means = np.asarray(event.sensitivities, dtype=float)[weights > 0]
        return float(event.standard_deviation), means, weights[weights > 0] / weights.sum()
    return None


def _divergence(sigma: float, above: tuple[Line, Line], below: tuple[Line, Line], order: float) -> float:
    """D_order(P || Q) of Gaussian mixtures with common standard deviation; P = `above`, Q = `below`."""
    if sigma <= 0:
        return math.inf
    spread = max(float(np.abs(above[0]).max()), float(np.abs(below[0]).max()))
    if spread == 0:
        return 0.0
    # The mixtures' ratio has no zeros nearer to the real line than sigma^2 / spread, and raising it to the order
    # makes it grow there like e^order; this step leaves an error below e^-50.
    step = min(sigma / 16, sigma**2 / (spread * max(16.0, order / 2)))
    reach = 2 * order * spread + 40 * sigma  # the integrand's peaks lie within 2 order spread
    points = int(2 * reach / step) + 1
    if points > _MAX_POINTS:
        raise InputError(
            f"noise of {sigma:g} beside {spread:g} windows per unit has no usable divergence at order {order:g}; "
            "nothing was charged."
        )
    x = np.linspace(-reach, reach, points)
    log_p, log_q = _log_density(x, sigma, *above), _log_density(x, sigma, *below)
    total = _log_sum(order * log_p + (1 - order) * log_q) + math.log(x[1] - x[0])
    return max(0.0, (total - math.log(sigma * math.sqrt(2 * math.pi))) / (order - 1))


def _log_density(x: Line, sigma: float, means: Line, weights: Line) -> Line:
    total = np.full_like(x, -np.inf)
    for mean, weight in zip(means, weights, strict=True):
        np.logaddexp(total, math.log(weight) - (x - mean) ** 2 / (2 * sigma**2), out=total)
    return total


def _log_sum(logs: Line) -> float:
    """Ln of the sum of exp; math.inf as it is."""
    top = float(logs.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(logs - top).sum()))
