"""When one event is covered by another: the test behind every contract.

Known are Gaussian sums and zCDP; where nothing is known the answer is no.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math

import numpy as np
from dp_accounting import DpEvent, dp_event

from fedpriv.privacy.events import PublicChoiceDpEvent, ScheduledDpEvent
from fedpriv.privacy.laws import Law


def dominates(upper: DpEvent, lower: DpEvent) -> bool:
    """Whether every release of `lower` could be made from one of `upper`; False where that is not known.

    Known are Gaussian sums: more noise is post-processing, and a law of touching groups that is smaller in the
    stochastic order is dominated by coupling.
    """
    if isinstance(lower, dp_event.NoOpDpEvent):
        return True
    if isinstance(lower, dp_event.ZCDpEvent) and isinstance(upper, dp_event.ZCDpEvent):
        return lower.rho <= upper.rho and lower.xi <= upper.xi
    above, below = _normal_form(upper), _normal_form(lower)
    if above is None or below is None or len(above) != len(below):
        return False
    return all(
        math.isclose(w_up, w_low, abs_tol=1e-12) and s_low >= s_up and _stochastically_below(law_low, law_up)
        for (w_up, s_up, law_up), (w_low, s_low, law_low) in zip(above, below, strict=True)
    )


def noise_of(event: DpEvent) -> float:
    """The least noise multiplier within a Gaussian event; infinite where nothing is released, 0 where unknown."""
    if isinstance(event, dp_event.NoOpDpEvent):
        return math.inf
    if isinstance(event, ScheduledDpEvent):
        return min(noise_of(each) for each in event.events)
    if isinstance(event, dp_event.ZCDpEvent):
        return 1 / math.sqrt(2 * event.rho) if event.rho and not event.xi else 0.0  # of the unit it is stated for
    parts = _normal_form(event)
    return min((sigma for _, sigma, _ in parts), default=math.inf) if parts is not None else 0.0


def _normal_form(event: DpEvent) -> list[tuple[float, float, Law]] | None:
    """(chance, sigma, law of touching groups) of each public choice, or None for other kinds of events."""
    if isinstance(event, PublicChoiceDpEvent):
        parts: list[tuple[float, float, Law]] = []
        for chance, inner in zip(event.probabilities, event.events, strict=True):
            one = _normal_form(inner)
            if one is None or len(one) != 1:
                return None
            parts.append((chance, one[0][1], one[0][2]))
        return parts
    if isinstance(event, dp_event.NoOpDpEvent):
        return [(1.0, math.inf, np.ones(1))]
    if isinstance(event, dp_event.GaussianDpEvent):
        return [(1.0, event.noise_multiplier, np.array([0.0, 1.0]))]
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        p = event.sampling_probability
        return [(1.0, event.event.noise_multiplier, np.array([1 - p, p]))]
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        counts = [int(c) for c in event.sensitivities]
        if counts != list(event.sensitivities):
            return None
        law = np.zeros(max(counts) + 1)
        for count, prob in zip(counts, event.sampling_probs, strict=True):
            law[count] += prob
        return [(1.0, event.standard_deviation, law)]
    return None


def _stochastically_below(low: Law, high: Law) -> bool:
    size = max(len(low), len(high))
    tails = [np.cumsum(np.pad(law, (0, size - len(law)))[::-1])[::-1] for law in (low, high)]
    return bool((tails[0] <= tails[1] + 1e-12).all())
