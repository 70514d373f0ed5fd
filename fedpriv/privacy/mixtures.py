"""Privacy loss distributions of Gaussian mixtures whose means pull apart.

P = sum_j w_j N(-j, sigma^2) against Q = sum_j v_j N(+j, sigma^2), all j >= 0. With d/dx ln P(x) =
(E_P[mean | x] - x) / sigma^2 the loss L = ln P/Q has slope (E_P[mean | x] - E_Q[mean | x]) / sigma^2 <= 0, so it is
monotone and its level sets are half-lines:

    zero-out, "remove":  v = (1, 0, ...)      zero-out, "add":  w = (1, 0, ...)      replace-one:  v = w

dp-accounting has the first two; its inversion by recursive bisection takes seconds for twenty components. Here the
loss is inverted by a table and a Newton step on all points at once, and the third is available for k > 1 as well
(Schuchardt et al. 2024 for the pair). The discretisation is dp-accounting's own pessimistic connect-the-dots
(Doroshenko et al. 2022, arXiv:2207.04380).
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import ConnectDotsBounds, MonotonePrivacyLoss, TailPrivacyLossDistribution
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri_exp

Array = NDArray[np.float64]
Side = Literal["remove", "add", "replace"]

_LOG_TAIL = -50.0  # ln of the mass cut from each tail of P; it is charged as a certain loss
_TABLE = 16384  # points of the table that starts the inversion
_CHUNK = 1 << 15  # points evaluated at a time


@dataclass(frozen=True)
class _Mixture:
    """Normal components with one standard deviation."""

    means: Array
    log_weights: Array
    stddev: float

    def log_pdf_and_mean(self, x: Array) -> tuple[Array, Array]:
        """Log density up to the constant that P and Q share, and E[mean | x]; both shaped like x."""
        terms = self.log_weights - 0.5 * ((x[:, None] - self.means) / self.stddev) ** 2
        top = terms.max(axis=1)
        parts = np.exp(terms - top[:, None])
        total = parts.sum(axis=1)
        return top + np.log(total), (parts @ self.means) / total

    def cdf(self, x: Array) -> Array:
        return ndtr((x[:, None] - self.means) / self.stddev) @ np.exp(self.log_weights)

    def log_cdf(self, x: Array) -> Array:
        terms = log_ndtr((x[:, None] - self.means) / self.stddev) + self.log_weights
        top = terms.max(axis=1)
        return top + np.log(np.exp(terms - top[:, None]).sum(axis=1))


class GaussianMixtureLoss(MonotonePrivacyLoss):
    """The loss ln P/Q of one step, for dp-accounting.

    Args:
        stddev: sigma, in units of the clipping bound; > 0.
        counts: [k] the j with positive weight, >= 0.
        weights: [k] Pr[J = j], summing to 1.
        side: which pair (module text).
    """

    def __init__(self, stddev: float, counts: Array, weights: Array, side: Side) -> None:
        super().__init__(is_discrete=False)
        counts, weights = np.asarray(counts, dtype=np.float64), np.asarray(weights, dtype=np.float64)
        if not (stddev > 0 and (counts >= 0).all() and (weights > 0).all() and math.isclose(weights.sum(), 1.0)):
            raise ValueError(f"stddev={stddev}, counts={counts} and weights={weights} are not a mixture.")
        zero = _Mixture(np.zeros(1), np.zeros(1), stddev)
        self._stddev = stddev
        self._upper = zero if side == "add" else _Mixture(-counts, np.log(weights), stddev)
        self._lower = zero if side == "remove" else _Mixture(counts, np.log(weights), stddev)

    def _loss_and_slope(self, x: Array) -> tuple[Array, Array]:
        upper, upper_mean = self._upper.log_pdf_and_mean(x)
        lower, lower_mean = self._lower.log_pdf_and_mean(x)
        return upper - lower, (upper_mean - lower_mean) / self._stddev**2

    def _truncation(self) -> tuple[float, float]:
        """The x with the tail mass of P below, and above."""
        z = float(-ndtri_exp(_LOG_TAIL)) * self._stddev
        low, high = float(self._upper.means.min()) - z, float(self._upper.means.max()) - z
        for _ in range(60):  # the heaviest shift may have next to no weight: find the true quantile
            middle = (low + high) / 2
            below = self._upper.log_cdf(np.array([middle]))[0] < _LOG_TAIL
            low, high = (middle, high) if below else (low, middle)
        return low, float(self._upper.means.max()) + z

    def connect_dots_bounds(self) -> ConnectDotsBounds:
        """The losses at the two truncation points."""
        losses, _ = self._loss_and_slope(np.array(self._truncation()))
        return ConnectDotsBounds(epsilon_upper=float(losses[0]), epsilon_lower=float(losses[1]))

    def get_delta_for_epsilon(self, epsilon: float | Array) -> float | Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """P(x <= x*) - e^epsilon Q(x <= x*) at L(x*) = epsilon.

        Any x* gives a value that the divergence attains, and the error is of second order in x*: an
        error of 1e-8 there costs 1e-16 here.
        """
        epsilons = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
        cuts = self._inverse(epsilons)
        parts = [
            self._upper.cdf(x) - np.exp(e + self._lower.log_cdf(x))
            for x, e in zip(_chunks(cuts), _chunks(epsilons), strict=True)
        ]
        # Never below the two trivial tests "always" and "never": P(R) - e^epsilon Q(R) = 1 - e^epsilon, and 0.
        floor = np.maximum(0.0, -np.expm1(np.minimum(epsilons, 0.0)))
        deltas = np.minimum(np.maximum(np.concatenate(parts), floor), 1.0)
        # Rounding may leave a rise of 1e-16; a running maximum from the right restores the order, upwards.
        deltas = np.maximum.accumulate(deltas[::-1])[::-1]
        return float(deltas[0]) if np.isscalar(epsilon) else deltas

    def _inverse(self, epsilons: Array) -> Array:
        low, high = self._truncation()
        table = np.linspace(low - self._stddev, high + self._stddev, _TABLE)
        losses, _ = self._loss_and_slope(table)
        losses = np.minimum.accumulate(losses)
        cell = np.clip(np.searchsorted(-losses, -epsilons, side="left"), 1, _TABLE - 1)
        left, right = table[cell - 1], table[cell]
        x = np.clip(np.interp(-epsilons, -losses, table), left, right)
        steps: list[Array] = []
        for part, e, a, b in zip(_chunks(x), _chunks(epsilons), _chunks(left), _chunks(right), strict=True):
            value, slope = self._loss_and_slope(part)
            steps.append(np.clip(part - (value - e) / np.minimum(slope, -1e-300), a, b))
        return np.concatenate(steps)

    def privacy_loss(self, x: float) -> float:
        """L(x)."""
        return float(self._loss_and_slope(np.array([x]))[0][0])

    def inverse_privacy_loss(self, privacy_loss: float) -> float:
        """The x with L(x) = privacy_loss, or the nearest truncation point."""
        return float(self._inverse(np.array([privacy_loss]))[0])

    def mu_upper_cdf(self, x: float | Array) -> float | Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """P(X <= x)."""
        values = self._upper.cdf(np.atleast_1d(np.asarray(x, dtype=np.float64)))
        return float(values[0]) if np.isscalar(x) else values

    def mu_lower_log_cdf(self, x: float | Array) -> float | Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The logarithm of Q(X <= x)."""
        values = self._lower.log_cdf(np.atleast_1d(np.asarray(x, dtype=np.float64)))
        return float(values[0]) if np.isscalar(x) else values

    def privacy_loss_tail(self) -> TailPrivacyLossDistribution:
        """The tail below becomes infinite loss, the tail above the smallest loss kept."""
        low, high = self._truncation()
        inside = self._upper.cdf(np.array([low, high]))
        tail = {math.inf: float(inside[0]), self.privacy_loss(high): float(1 - inside[1])}
        return TailPrivacyLossDistribution(low, high, tail)


def _chunks(values: Array) -> list[Array]:
    return [values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK)]


def _pmf(loss: GaussianMixtureLoss, interval: float) -> pld_pmf.PLDPmf:
    bounds = loss.connect_dots_bounds()
    assert bounds.epsilon_lower is not None
    assert bounds.epsilon_upper is not None
    low, high = math.floor(bounds.epsilon_lower / interval), math.ceil(bounds.epsilon_upper / interval)
    deltas = loss.get_delta_for_epsilon(np.arange(low, high + 1, dtype=np.float64) * interval)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)


def mixture_pld(
    stddev: float, counts: Array, weights: Array, *, replace_one: bool, interval: float
) -> PrivacyLossDistribution:
    """The pessimistic privacy loss distribution of one step, in both directions.

    Args:
        stddev: sigma in units of the clipping bound.
        counts: [k] numbers of touching groups j >= 0.
        weights: [k] Pr[J = j].
        replace_one: content changes (means -j against +j) instead of vanishing (-j against 0).
        interval: grid of the losses.
    """
    if replace_one:  # its own mirror image: one direction is both
        return PrivacyLossDistribution(_pmf(GaussianMixtureLoss(stddev, counts, weights, "replace"), interval))
    remove, add = (_pmf(GaussianMixtureLoss(stddev, counts, weights, side), interval) for side in ("remove", "add"))
    return PrivacyLossDistribution(remove, add)


def loss_range(stddev: float, counts: Array, weights: Array, *, replace_one: bool) -> float:
    """Width of the grid that `mixture_pld` needs, in nats."""
    loss = GaussianMixtureLoss(stddev, counts, weights, "replace" if replace_one else "remove")
    bounds = loss.connect_dots_bounds()
    assert bounds.epsilon_lower is not None
    assert bounds.epsilon_upper is not None
    return bounds.epsilon_upper - bounds.epsilon_lower
