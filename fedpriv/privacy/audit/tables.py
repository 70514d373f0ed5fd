"""The family of mechanisms that an audit tests against, and the trade-off curves that its members promise.

A claim is a list of (event, count) under a relation. Its family has two parameters: `scale` multiplies every noise
multiplier, `thin` every expected number of sampled groups; the claim itself is (1, 1). Less scale or more thin means
less privacy, so a bound on the parameters is a bound on epsilon.

The curve of a member: whoever tells "in" (the unit is there) from "out" with false-positive rate a has a
false-negative rate of at least beta(a) (Kairouz et al. 2015; Dong et al. 2019, arXiv:1905.02383). It is the upper
envelope of one line per epsilon and direction, from pessimistic privacy loss distributions, so beta is never too high.
"""

# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from dp_accounting import DpEvent, dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.pld_pmf import PLDPmf
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.privacy.composition import flat_counts, grid_interval
from fedpriv.privacy.events import PublicChoiceDpEvent, decode_event
from fedpriv.privacy.laws import binomial_law
from fedpriv.privacy.mixtures import mixture_pld
from fedpriv.privacy.units import Relation

Array = NDArray[np.float64]

RATIO = 1.005  # neighbouring scales on the grid of curves: costs at most about 0.5 % of epsilon, always downwards
MAX_INDEX = 1400  # scales from 1/1000 to 1000
_LINES = 600  # epsilons per direction
_TINY = 1e-9  # a delta below this adds nothing to a curve that is looked at down to rates of 1e-6


class TradeOff(Protocol):
    """beta: the least false-negative rate at a false-positive rate. Convex, not increasing, beta(a) <= 1 - a."""

    def beta(self, alpha: float) -> float:
        """[0, 1] -> [0, 1]."""
        ...


class Envelope:
    """max(0, the highest of the lines intercept - slope * alpha): a trade-off curve by its tangents.

    Evaluating lines (not interpolating between points) keeps a convex curve from being overstated.
    """

    def __init__(self, intercepts: Array, slopes: Array) -> None:
        order = np.lexsort((intercepts, slopes))[::-1]  # steepest first: they rule at small alpha
        self._lines: list[tuple[float, float]] = []
        self._starts: list[float] = []
        for i in order:
            b, s = float(intercepts[i]), float(slopes[i])
            start = -math.inf
            while self._lines:
                b0, s0 = self._lines[-1]
                start = (b0 - b) / (s0 - s) if s0 > s else (-math.inf if b > b0 else math.inf)
                if start > self._starts[-1]:
                    break
                self._lines.pop()
                self._starts.pop()
                start = -math.inf
            if start < 1.0:
                self._lines.append((b, s))
                self._starts.append(start)

    def beta(self, alpha: float) -> float:
        """See `TradeOff.beta`."""
        b, s = self._lines[bisect.bisect_right(self._starts, alpha) - 1]
        return max(0.0, b - s * alpha)


@dataclass(frozen=True)
class Claim:
    """Events that took place, as the accountant sees them.

    Attributes:
        parts: (canonical text of the event, count), as ledgers hold them.
        relation: neighbouring relation.
        delta: in (0, 1).
    """

    parts: tuple[tuple[str, int], ...]
    relation: Relation
    delta: float

    @classmethod
    def of(cls, parts: Sequence[tuple[DpEvent, int]], relation: Relation, delta: float) -> Claim:
        """From events; compositions are taken apart.

        Raises:
            InputError: an unknown event, or a delta outside (0, 1).
        """
        if not 0 < delta < 1:
            raise InputError(f"delta={delta!r} is not in (0, 1); nothing was audited.")
        return cls(tuple(sorted(flat_counts(parts).items())), relation, delta)

    def events(self, scale: float = 1.0, thin: float = 1.0) -> list[tuple[DpEvent, int]]:
        """The events of a member of the family."""
        return [(member(decode_event(text), scale, thin), count) for text, count in self.parts]

    def epsilon(self, scale: float = 1.0, thin: float = 1.0) -> float:
        """Epsilon of a member at `delta`; 0 without a signal."""
        return 0.0 if thin <= 0 else _epsilon(self, scale, thin)

    def curve(self, index: int) -> Envelope:
        """Beta of the member of scale RATIO ** index, for tests that say "in" or "out"."""
        return _curve(self, index, False)

    def symmetric_curve(self, index: int) -> Envelope:
        """As `curve`, but whichever of the two answers counts as the positive one."""
        return _curve(self, index, True)


def member(event: DpEvent, scale: float, thin: float) -> DpEvent:
    """`event` with `scale` times the noise, and each touching group kept with probability `thin`.

    A thin above 1 that no probability can express (two groups where one was declared, or a contribution above the
    bound) multiplies the contributions instead.

    Raises:
        InputError: an event without Gaussian noise.
    """
    if isinstance(event, dp_event.NoOpDpEvent):
        return event
    if isinstance(event, dp_event.GaussianDpEvent):
        return _sampled(event.noise_multiplier * scale, thin)
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        return _sampled(event.event.noise_multiplier * scale, event.sampling_probability * thin)
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        counts, law = np.asarray(event.sensitivities, dtype=float), np.asarray(event.sampling_probs, dtype=float)
        if thin < 1:
            counts, law = _thinned(counts, law, thin)
        else:
            counts = counts * thin
        return dp_event.MixtureOfGaussiansDpEvent(event.standard_deviation * scale, counts.tolist(), law.tolist())
    if isinstance(event, PublicChoiceDpEvent):
        return PublicChoiceDpEvent([member(e, scale, thin) for e in event.events], list(event.probabilities))
    raise InputError(f"the audit cannot run {type(event).__name__}: only Gaussian noise on sampled sums is known.")


def _sampled(sigma: float, prob: float) -> DpEvent:
    if prob >= 1:
        return dp_event.GaussianDpEvent(sigma / prob)
    return dp_event.PoissonSampledDpEvent(prob, dp_event.GaussianDpEvent(sigma))


def _thinned(counts: Array, law: Array, keep: float) -> tuple[Array, Array]:
    """The law of how many of J are kept, each with probability `keep`."""
    kept = np.zeros(int(counts.max()) + 1)
    for j, weight in zip(counts.astype(int), law, strict=True):
        kept[: j + 1] += weight * binomial_law(int(j), keep)
    return np.arange(len(kept), dtype=float), kept / kept.sum()


@dataclass(frozen=True)
class StepLaw:
    """One step as an attacker models it: y = J + sigma * z with the unit in, J groups of it drawn.

    Attributes:
        sigma: noise over the clipping bound.
        counts: [k] values of J.
        weights: [k] their probabilities.
    """

    sigma: float
    counts: Array
    weights: Array

    @property
    def mean(self) -> float:
        """E[J]."""
        return float(self.counts @ self.weights)

    @property
    def square(self) -> float:
        """E[J^2]."""
        return float(self.counts**2 @ self.weights)

    def log_ratio(self, y: Array, relation: Relation) -> Array:
        """Ln of density of y with the unit over density without it (or with the opposite content)."""
        above = self._log_in(y)
        return above - self._log_in(-y) if relation is Relation.REPLACE_ONE else above

    def _log_in(self, y: Array) -> Array:
        """Ln sum_j w_j exp((j y - j^2 / 2) / sigma^2), up to what both hypotheses share."""
        if len(self.counts) == 1:
            return (self.counts[0] * y - self.counts[0] ** 2 / 2) / self.sigma**2
        total = np.full(y.shape, -np.inf)
        for j, weight in zip(self.counts, self.weights, strict=True):
            total = np.logaddexp(total, math.log(weight) + (j * y - j * j / 2) / self.sigma**2)
        return total


def step_law(event: DpEvent) -> StepLaw:
    """What an event says about one step; a public choice is averaged out, since no tester here sees it.

    Raises:
        InputError: an event without Gaussian noise.
    """
    if isinstance(event, dp_event.GaussianDpEvent):
        return StepLaw(event.noise_multiplier, np.ones(1), np.ones(1))
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        p = event.sampling_probability
        return StepLaw(event.event.noise_multiplier, np.array([0.0, 1.0]), np.array([1 - p, p]))
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        counts, law = np.asarray(event.sensitivities, dtype=float), np.asarray(event.sampling_probs, dtype=float)
        return StepLaw(event.standard_deviation, counts[law > 0], law[law > 0] / law.sum())
    if isinstance(event, PublicChoiceDpEvent):
        mixed: dict[float, float] = {}
        sigma = math.nan
        for each, chance in zip(event.events, event.probabilities, strict=True):
            if isinstance(each, dp_event.NoOpDpEvent):
                mixed[0.0] = mixed.get(0.0, 0.0) + chance
                continue
            law = step_law(each)
            sigma = law.sigma
            for j, weight in zip(law.counts, law.weights, strict=True):
                mixed[float(j)] = mixed.get(float(j), 0.0) + chance * float(weight)
        return StepLaw(sigma, np.array(list(mixed)), np.array(list(mixed.values())))
    raise InputError(f"the audit cannot run {type(event).__name__}: only Gaussian noise on sampled sums is known.")


@lru_cache(maxsize=512)
def _curve(claim: Claim, index: int, symmetric: bool) -> Envelope:
    grid, present, absent = _profile(claim, index)
    if symmetric:
        present = absent = np.maximum(present, absent)
    with np.errstate(over="ignore"):
        rise = np.exp(grid)
    usable = rise < 1e300
    rise, present, absent = rise[usable], present[usable], absent[usable]
    intercepts = np.concatenate([1 - present, (1 - absent) / rise])
    slopes = np.concatenate([rise, 1 / rise])
    return Envelope(intercepts, slopes)


@lru_cache(maxsize=512)
def _profile(claim: Claim, index: int) -> tuple[Array, Array, Array]:
    """Epsilons and the deltas there: of "in" against "out", and of "out" against "in"."""
    present, absent = _divergences(claim, RATIO**index)
    grid = np.linspace(0.0, max(present.negligible(), absent.negligible()), _LINES)
    return grid, present.delta(grid), absent.delta(grid)


@lru_cache(maxsize=4096)
def _epsilon(claim: Claim, scale: float, thin: float) -> float:
    return max(side.epsilon(claim.delta) for side in _divergences(claim, scale, thin))


class _Divergence:
    """delta(epsilon) = infinite + sum over losses l > epsilon of p(l) (1 - e^(epsilon - l)), by running sums."""

    def __init__(self, pmf: PLDPmf) -> None:
        dense = pmf.to_dense_pmf()
        losses = (dense._lower_loss + np.arange(len(dense._probs), dtype=np.float64)) * dense._discretization
        above = losses > 0
        self.losses: Array = losses[above]
        self.infinite = float(dense._infinity_mass)
        probs = np.asarray(dense._probs, dtype=np.float64)[above]
        # From the largest loss down, so that small terms are added to small sums. e^-l may underflow: then delta
        # comes out too large, which is the safe side.
        self.upper: Array = np.append(np.cumsum(probs[::-1])[::-1], 0.0)
        self.lower: Array = np.append(np.cumsum((probs * np.exp(-self.losses))[::-1])[::-1], 0.0)

    def delta(self, epsilon: Array) -> Array:
        """[n] epsilons >= 0 -> [n]."""
        first = np.searchsorted(self.losses, epsilon, side="right")
        with np.errstate(over="ignore", invalid="ignore"):
            lost = np.nan_to_num(np.exp(epsilon) * self.lower[first], nan=0.0)
        return self.infinite + np.maximum(self.upper[first] - lost, 0.0)

    def epsilon(self, delta: float) -> float:
        """The least epsilon >= 0 with this delta, to 1e-9; infinite where certain losses weigh more."""
        if self.infinite > delta:
            return math.inf
        if float(self.delta(np.zeros(1))[0]) <= delta:
            return 0.0
        low, high = 0.0, float(self.losses[-1])
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.delta(np.array([middle]))[0]) > delta else (low, middle)
        return high

    def negligible(self) -> float:
        """An epsilon from which on delta adds nothing to a curve."""
        return min(self.epsilon(_TINY + 2 * self.infinite), 600.0)


def _divergences(claim: Claim, scale: float, thin: float = 1.0) -> tuple[_Divergence, _Divergence]:
    """Of "in" against "out", and of "out" against "in"."""
    total = _distribution(claim, scale, thin)
    return _Divergence(total._pmf_remove), _Divergence(total._pmf_add)


def _distribution(claim: Claim, scale: float, thin: float = 1.0) -> pld.PrivacyLossDistribution:
    """The composed privacy loss of a member, pessimistic and in both directions.

    Composed here from single steps, and not by the accountant: what the accountant reports is audited.
    """
    counts = [(decode_event(text), n) for text, n in sorted(flat_counts(claim.events(scale, thin)).items())]
    if not counts:
        raise InputError("a claim without events cannot be audited.")
    interval = max(grid_interval(text, claim.relation) for text, _ in flat_counts(claim.events(scale, thin)).items())
    total: pld.PrivacyLossDistribution | None = None
    for event, count in counts:
        if isinstance(event, dp_event.GaussianDpEvent):  # exactly one release with less noise
            part = _one_step(
                dp_event.GaussianDpEvent(event.noise_multiplier / math.sqrt(count)), claim.relation, interval
            )
        else:
            part = _one_step(event, claim.relation, interval)
            part = part if count == 1 else part.self_compose(count)
        total = part if total is None else total.compose(part)
    assert total is not None
    return total


def _one_step(event: DpEvent, relation: Relation, interval: float) -> pld.PrivacyLossDistribution:
    if isinstance(event, dp_event.NoOpDpEvent):
        return pld.identity(interval)
    if isinstance(event, PublicChoiceDpEvent):
        mixed, mass = _one_step(event.events[0], relation, interval), event.probabilities[0]
        for each, chance in zip(event.events[1:], event.probabilities[1:], strict=True):
            mixed, mass = (
                _one_step(each, relation, interval).compute_mixture(mixed, chance / (mass + chance)),
                mass + chance,
            )
        return mixed
    law = step_law(event)
    if isinstance(event, dp_event.GaussianDpEvent):
        return pld.from_gaussian_mechanism(
            law.sigma, value_discretization_interval=interval, neighboring_relation=relation.neighboring
        )
    replaced = relation is Relation.REPLACE_ONE
    return mixture_pld(law.sigma, law.counts, law.weights, replace_one=replaced, interval=interval)
