"""Standard errors and intervals of a mean over seeds and clients.

Two things would come out differently next time: the random numbers (seeds) and the utilities that happen to take part
(clients). They are crossed: every seed has every client, so seeds x clients numbers are *not* that many independent
ones, and an interval that resamples them as if they were is too narrow. Here the difference of two rules is
d[s, k] = mean + seed + client + rest, and

* its standard error comes from the mean squares of the two-way table, (MS_seed + MS_client - MS_rest) / (S K), which is
  unbiased for a new set of seeds *and* clients, with degrees of freedom by Satterthwaite. Three seeds are few, and
  this says so by a wide interval;
* its shape comes from a bootstrap that draws seeds and clients independently (Owen, The pigeonhole bootstrap, Annals of
  Applied Statistics 1, 2007). Used alone that bootstrap counts the rest about three times (McCullagh 2000) and the
  seeds only (S - 1) / S times, so its draws are rescaled to the standard error above, and by t / z (as in Hesterberg's
  expanded percentiles). Percentile rather than BCa: the acceleration of BCa is a jackknife over three seeds: noise.

Where the same data were dealt out to clients in several ways (*parts*: partitions), the clients of one part are not
independent of those of another, and nobody knows how much they depend on each other. The standard deviation of a mean
is then at most the mean of the standard deviations, whatever the dependence; that bound is taken. So four partitions of
eight utilities are eight utilities, not thirty-two. Seeds are the same in all parts and are averaged over first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


_FAR_OUT = 0.05


@dataclass(frozen=True)
class Spread:
    """Variance between the means of seeds (or clients) of a paired difference, and its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Chance:
    """Standard error of a mean, with what a t test needs.

    Attributes:
        error: NaN where nothing is known about chance.
        freedom: of the whole, by Satterthwaite.
        parts: (variance, degrees of freedom) of its sources.
    """

    error: float
    freedom: float
    parts: tuple[tuple[float, float], ...] = ()

    def p(self, mean: float) -> float:
        """Two-sided p-value of "the mean is 0".

        Satterthwaite's approximation is good to a point or two at 5 %, and up to ten times too sure of itself far out,
        where a source with two degrees of freedom came out small by luck. Below 5 % the sources' own t distributions
        are averaged (as Cochran and Cox 1950 do), weighted by the squares of their shares: those decide there.
        """
        if not np.isfinite(self.error):
            return float("nan")
        if self.error == 0:
            return 1.0 if mean == 0 else 0.0
        t = abs(mean) / self.error
        p = float(2 * stats.t.sf(t, self.freedom))
        if p >= _FAR_OUT or not self.parts:
            return p
        total = sum(share**2 for share, _ in self.parts)
        if not total:
            return p
        mixed = sum(share**2 * float(2 * stats.t.sf(t, freedom)) for share, freedom in self.parts) / total
        return max(p, min(mixed, _FAR_OUT))


def split(values: Array, parts: Sequence[int]) -> list[Array]:
    """Along the last axis, clients."""
    return np.split(values, np.cumsum(parts)[:-1], axis=-1) if len(parts) > 1 else [values]


def two_way_error(d: Array, by_seed: Spread | None = None, by_client: Spread | None = None) -> Chance:
    """Of the mean of d [S, K], for new seeds and new clients.

    With one seed (or client) only the other's variation is known; with one of both the error is NaN.

    Args:
        d: paired differences.
        by_seed, by_client: variance of the means per seed and per client from elsewhere; None: from d itself.
    """
    seeds, clients = d.shape
    if seeds == 1 or clients == 1:
        flat = d.ravel()
        if len(flat) < 2:
            return Chance(float("nan"), float("nan"))
        return Chance(float(flat.std(ddof=1) / np.sqrt(len(flat))), float(len(flat) - 1))
    rows = by_seed or Spread(float(d.mean(axis=1).var(ddof=1)), seeds - 1)
    columns = by_client or Spread(float(d.mean(axis=0).var(ddof=1)), clients - 1)
    rest = Spread(_rest(d) / d.size, (seeds - 1) * (clients - 1))
    return _together(
        Spread(rows.variance / seeds, rows.freedom), Spread(columns.variance / clients, columns.freedom), rest
    )


def _together(by_seed: Spread, by_client: Spread, rest: Spread) -> Chance:
    """From the variances of the mean by each source; the rest is in both of the others."""
    total = by_seed.variance + by_client.variance - rest.variance
    sources = tuple((one.variance, one.freedom) for one in (by_seed, by_client))
    if total <= rest.variance:  # neither seeds nor clients vary more than the rest
        return Chance(float(np.sqrt(rest.variance)), rest.freedom, sources)
    squares = sum(one.variance**2 / one.freedom for one in (by_seed, by_client, rest))
    return Chance(float(np.sqrt(total)), float(max(total**2 / squares, 1.0)), sources)


def _rest(d: Array) -> float:
    """Mean square of d [S, K] after both means are removed."""
    rest = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0, keepdims=True) + d.mean()
    return float((rest**2).sum()) / ((d.shape[0] - 1) * (d.shape[1] - 1))


def parts_error(parts: Sequence[Array], by_seed: Spread | None = None) -> Chance:
    """As `two_way_error`, of the mean over parts [S, K_w] of their means; clients may depend on each other at will."""
    seeds = len(parts[0])
    each = np.mean([part.mean(axis=1) for part in parts], axis=0)  # [S]
    rows = by_seed or (Spread(float(each.var(ddof=1)), seeds - 1) if seeds > 1 else None)
    clients = min(part.shape[1] for part in parts) - 1
    if clients < 1:  # between clients nothing is known somewhere
        return (
            Chance(float("nan"), float("nan"))
            if rows is None
            else Chance(float(np.sqrt(rows.variance / seeds)), rows.freedom)
        )
    bound = float(np.mean([part.mean(axis=0).std(ddof=1) / np.sqrt(part.shape[1]) for part in parts])) ** 2
    if rows is None:
        return Chance(float(np.sqrt(bound)), float(clients))
    rest = sum(_rest(part) / part.size for part in parts) / len(parts) ** 2 if seeds > 1 else 0.0
    both = sum((seeds - 1) * (part.shape[1] - 1) for part in parts)
    return _together(Spread(rows.variance / seeds, rows.freedom), Spread(bound, clients), Spread(rest, both))


def interval(
    parts: Sequence[Array], error: float, freedom: float, *, level: float, draws: int, seed: int
) -> tuple[float, float]:
    """Percentiles of the two-way bootstrap of the mean over parts [S, K_w], scaled to `error` and t with `freedom`.

    All parts have the same draw of seeds. Clients are drawn by their place in the order of their differences, the same
    places in every part: as dependent as they can be.
    """
    mean = float(np.mean([part.mean() for part in parts]))
    if not np.isfinite(error):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    seeds = len(parts[0])
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    deviations = np.zeros(draws)
    if len(parts) == 1:
        clients = parts[0].shape[1]
        columns = [rng.multinomial(clients, np.full(clients, 1 / clients), draws) / clients]
    else:
        places = rng.random((draws, max(part.shape[1] for part in parts)))
        columns = [_drawn(part, places) for part in parts]
    for part, weights in zip(parts, columns, strict=True):
        deviations += np.einsum("bs,sk,bk->b", rows, part - part.mean(), weights, optimize=True) / len(parts)
    spread = float(deviations.std())
    if spread <= 1e-12 * max(abs(mean), 1e-300):
        return mean, mean
    tail = (1 - level) / 2
    wide = float(stats.t.isf(tail, freedom) / stats.norm.isf(tail))
    low, high = np.quantile(deviations, [tail, 1 - tail]) * (error / spread * wide)
    return mean + float(low), mean + float(high)


def _drawn(part: Array, places: Array) -> Array:
    """[B, K] weights of clients drawn at `places` in [0, 1) of the order of their mean differences."""
    clients = part.shape[1]
    order = np.argsort(part.mean(axis=0), kind="stable")
    chosen = order[(places[:, :clients] * clients).astype(int)]  # [B, K]
    return (chosen[:, :, None] == np.arange(clients)).mean(axis=1)
