"""Laws of J, the number of sampled groups that touch a privacy unit in one step, and the events they give.

A law is an array of probabilities Pr[J = 0], Pr[J = 1], ... With Gaussian noise sigma on a sum of groups of norm at
most 1, a step whose J is independent of the other groups drawn is dominated by sum_j Pr[J=j] N(j, sigma^2) against
N(0, sigma^2) (zero-out, add-remove) or sum_j Pr[J=j] N(-j, sigma^2) (replace-one): condition on the other groups, take
norms (Choquette-Choo et al. 2023, arXiv:2310.15526, Corollary 4.7) and use joint convexity.

Where J does depend on a draw that the other groups share (the phase of a tiling, the choice of a meter), that draw
must be conditioned on first: the rest of the sum may give it away, so averaging the laws instead would promise too
much. `event_of_laws` keeps the two apart.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray
from scipy.special import gammaln

from fedpriv.errors import InputError
from fedpriv.privacy.events import PublicChoiceDpEvent

Law = NDArray[np.float64]
Laws = Sequence[tuple[float, Law]]  # (probability of the shared draw, law of J given it)

_MAX_SUPPORT = 256  # longest law that is kept exactly


def binomial_law(trials: int, prob: float) -> Law:
    """[trials + 1] probabilities of Binomial(trials, prob)."""
    if prob in (0.0, 1.0):
        return np.eye(trials + 1)[trials if prob else 0]
    j = np.arange(trials + 1)
    choose = gammaln(trials + 1) - gammaln(j + 1) - gammaln(trials - j + 1)
    law = np.exp(choose + j * np.log(prob) + (trials - j) * np.log1p(-prob))
    return law / law.sum()


def marginal(laws: Laws) -> Law:
    """The law of J with the shared draw averaged out: what counting sees, not what privacy may use."""
    mixed = np.zeros(max(len(law) for _, law in laws))
    for weight, law in laws:
        mixed[: len(law)] += weight * law
    return mixed / mixed.sum()


def event_of_law(inner: DpEvent, law: Law) -> DpEvent:
    """One step of a Gaussian sum whose unit is touched J times, J independent of all other groups.

    Long laws are replaced by one that stochastically dominates them (mass only moves to larger counts), which
    dominates in privacy by coupling: more touching groups never help.

    Raises:
        InputError: `inner` is not Gaussian.
    """
    if not isinstance(inner, dp_event.GaussianDpEvent):
        raise InputError(f"the inner event of a sampler must be Gaussian, not {type(inner).__name__}.")
    counts = np.flatnonzero(law > 0)
    if counts.tolist() == [0]:
        return dp_event.NoOpDpEvent()
    if counts.tolist() == [1]:
        return inner
    if counts[-1] == 1:
        return dp_event.PoissonSampledDpEvent(float(law[1]), inner)
    counts, probs = _shortened(law)
    return dp_event.MixtureOfGaussiansDpEvent(
        float(inner.noise_multiplier), [float(c) for c in counts], [float(p) for p in probs]
    )


def event_of_laws(inner: DpEvent, laws: Laws) -> DpEvent:
    """As `event_of_law`, when a draw shared with other groups picks which law holds; the draw counts as published."""
    kept = [(weight, law) for weight, law in laws if weight > 0]
    if len(kept) == 1:
        return event_of_law(inner, kept[0][1])
    total = sum(weight for weight, _ in kept)
    return PublicChoiceDpEvent(
        [event_of_law(inner, law) for _, law in kept], [float(weight / total) for weight, _ in kept]
    )


def _shortened(law: Law) -> tuple[NDArray[np.intp], Law]:
    """(counts, probabilities) of a law that dominates `law`, with at most `_MAX_SUPPORT` counts."""
    counts = np.flatnonzero(law > 0)
    probs = law[counts]
    if len(counts) > _MAX_SUPPORT:
        low = int(np.searchsorted(np.cumsum(probs), 1e-14))  # less mass than this moves up to the first kept count
        counts, probs = counts[low:], np.append(probs[: low + 1].sum(), probs[low + 1 :])
        high = len(probs) - int(np.searchsorted(np.cumsum(probs[::-1]), 1e-20))  # and this to the largest count
        if high < len(probs):
            counts = np.append(counts[:high], counts[-1])
            probs = np.append(probs[:high], probs[high:].sum())
    while len(counts) > _MAX_SUPPORT:  # then each neighbouring pair moves to the larger of the two
        odd = len(counts) % 2
        counts = np.append(counts[:odd], counts[odd:].reshape(-1, 2)[:, 1])
        probs = np.append(probs[:odd], probs[odd:].reshape(-1, 2).sum(axis=1))
    return counts, probs / probs.sum()
