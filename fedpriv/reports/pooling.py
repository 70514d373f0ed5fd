"""How much seeds (and clients) matter in one cell, learnt from all cells of a sweep together.

A cell (one partition at one epsilon) with three seeds knows the spread between seeds from three numbers, and a t test
with two degrees of freedom finds nothing small. Other cells ran the same rules, and their spread tells something about
this one once three things are allowed for:

* *cells differ in scale* (a partition with few readings per client is noisier for every rule), and *pairs of rules
  differ in scale* (two rules that do nearly the same differ by little). The model is a product, variance of pair p in
  cell c = pair[p] scale[c], fitted as a gamma model with logarithmic link after the cell means were removed;
* *the same seed is the same luck in every cell*, in part: cells are not independent. Their intraclass correlation is
  estimated (Shrout and Fleiss 1979, case 1), its upper limit at 90 % is taken, and C cells count as
  C / (1 + (C - 1) rho^2) of them, which is what the variance of a mean of correlated variances comes to (Box 1954);
* *the model may be wrong for one pair in one cell* (a rule that diverges there). Where the cell's own variance is
  larger than the model's beyond what F allows, the cell's own stands, with its own degrees of freedom.

A cell has its own degrees of freedom and those that the others lend it, 1 / f = 1 / f_pair + 1 / f_scale: relative
variances of a product add up. The pair is known from the other cells, the scale of the cell from as many other rules as
vary independently of each other. With two rules, one cell, or rules that all do the same nothing is lent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpriv.reports.chance import Spread
from fedpriv.reports.statistics import Trials

Array = NDArray[np.float64]
Pair = tuple[str, str]

_LIMIT = 0.9  # of the intraclass correlation
_MISFIT = 0.95  # quantile of F beyond which a cell's own variance stands
_ITERATIONS = 20
_TINY = 1e-24  # a variance of log errors below this is rounding: two rules that gave the same


@dataclass(frozen=True)
class Fit:
    """What cells with the same rules and seeds say together about one source of chance.

    Attributes:
        spreads: (cell, pair) -> variance between the seeds' (or clients') means of a paired difference.
        freedom: of those that follow the model. over_all: of their mean over cells.
        rho: upper limit of the correlation of two cells.
    """

    spreads: Mapping[tuple[str, Pair], Spread]
    freedom: float
    over_all: float
    rho: float

    def of(self, cell: str, a: str, b: str) -> Spread | None:
        """Of one cell; None where it stands by itself."""
        found = self.spreads.get((cell, (a, b))) or self.spreads.get((cell, (b, a)))
        return found if found is not None and found.freedom == self.freedom else None

    def mean(self, weights: Mapping[str, float], a: str, b: str) -> Spread | None:
        """Of a weighted mean over cells; None where one of them is not in the fit."""
        found = [self.spreads.get((cell, (a, b))) or self.spreads.get((cell, (b, a))) for cell in weights]
        if not found or any(one is None for one in found):
            return None
        deviations = np.array(list(weights.values())) * np.sqrt([one.variance for one in found if one is not None])
        alone, together = float((deviations**2).sum()), float(deviations.sum() ** 2)
        return Spread(alone + self.rho * (together - alone), self.over_all)


@dataclass(frozen=True)
class Pooled:
    """What all cells of a sweep say together; `seeds` and `clients` have a fit for each group of comparable cells."""

    seeds: tuple[Fit, ...] = ()
    clients: tuple[Fit, ...] = ()

    def of(self, cell: str, a: str, b: str) -> tuple[Spread | None, Spread | None]:
        """(between seeds, between clients) of a pair of rules in one cell."""
        return _first(fit.of(cell, a, b) for fit in self.seeds), _first(fit.of(cell, a, b) for fit in self.clients)

    def mean(self, weights: Mapping[str, float], a: str, b: str) -> tuple[Spread | None, None]:
        """Between seeds, of a weighted mean over cells. Of clients nothing is known that would allow for dependence."""
        return _first(fit.mean(weights, a, b) for fit in self.seeds), None


def _first(found: Iterable[Spread | None]) -> Spread | None:
    return next((one for one in found if one is not None), None)


def pool(tables: Mapping[str, Trials]) -> Pooled:
    """From tables with the same rules and seeds (others are left alone); clients only where there are as many."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name, table in tables.items():
        if table.errors.min() > 0:
            groups.setdefault((tuple(sorted(table.rules)), table.seeds), []).append(name)
    seeds: list[Fit | None] = []
    clients: list[Fit | None] = []
    for (rules, _), names in groups.items():
        logs = {name: np.log(np.stack([tables[name].of_rule(rule) for rule in rules])) for name in names}  # [A, S, K]
        seeds.append(_fit(rules, {name: log.mean(axis=2) for name, log in logs.items()}))
        for count in dict.fromkeys(log.shape[2] for log in logs.values()):
            same = {name: log.mean(axis=1) for name, log in logs.items() if log.shape[2] == count}
            clients.append(_fit(rules, same))
    return Pooled(tuple(fit for fit in seeds if fit), tuple(fit for fit in clients if fit))


def _fit(rules: tuple[str, ...], means: Mapping[str, Array]) -> Fit | None:
    """From means [A, n] of every cell, n seeds (or clients); None where there is nothing to learn."""
    names, count = list(means), len(rules)
    n = next(iter(means.values())).shape[1]
    if len(names) < 2 or count < 3 or n < 2:
        return None
    values = np.array(list(means.values()))  # [C, A, n]
    pairs = list(combinations(range(count), 2))
    own = np.stack([(values[:, i] - values[:, j]).var(axis=1, ddof=1) for i, j in pairs], axis=1)  # [C, P]
    live = (own > _TINY).all(axis=0)
    if live.sum() < 2:
        return None
    fitted, scale = _product(own[:, live])
    effects = values - values.mean(axis=2, keepdims=True)
    effects = (effects - effects.mean(axis=1, keepdims=True)) / np.sqrt(scale)[:, None, None]
    rho = shared_luck(effects)
    others = (n - 1) * (len(names) - 1) / (1 + (len(names) - 2) * rho**2)
    rules_apart = (n - 1) * max(independent(effects) - 1, 0.0)
    lent = others * rules_apart / (others + rules_apart) if rules_apart else 0.0
    freedom = n - 1 + lent
    over_all = (n - 1) * len(names) / (1 + (len(names) - 1) * rho**2)
    limit = stats.f.ppf(_MISFIT, n - 1, freedom)
    found: dict[tuple[str, Pair], Spread] = {}
    for p, pair in enumerate(np.flatnonzero(live)):
        i, j = pairs[pair]
        for c, name in enumerate(names):
            fits = own[c, pair] <= limit * fitted[c, p]
            spread = Spread(float(fitted[c, p]), freedom) if fits else Spread(float(own[c, pair]), float(n - 1))
            found[name, (rules[i], rules[j])] = spread
    return Fit(found, freedom, over_all, rho)


def _product(own: NDArray[Any]) -> tuple[Array, Array]:
    """(fitted [C, P], scale [C]) of variances [C, P] as a product; the maximum of the gamma likelihood."""
    scale = np.ones(len(own))
    pair = own.mean(axis=0)
    for _ in range(_ITERATIONS):
        scale = (own / pair).mean(axis=1)
        pair = (own / scale[:, None]).mean(axis=0)
    return scale[:, None] * pair, scale


def shared_luck(effects: Array) -> float:
    """Upper limit of the intraclass correlation over cells of effects [C, A, n], which sum to 0 over rules and n."""
    cells, count, n = effects.shape
    between = (count - 1) * (n - 1)
    within = between * (cells - 1)
    common = effects.mean(axis=0)
    above = cells * float((common**2).sum()) / between
    below = float(((effects - common) ** 2).sum()) / within
    if below <= 0:
        return 1.0
    ratio = above / below / float(stats.f.ppf(1 - _LIMIT, between, within))
    return float(np.clip((ratio - 1) / (ratio + cells - 1), 0.0, 1.0))


def independent(effects: Array) -> float:
    """How many of A rules vary independently: (sum of eigenvalues)^2 / sum of squares, of their correlations."""
    flat = effects.transpose(1, 0, 2).reshape(effects.shape[1], -1)
    norms = np.sqrt((flat**2).sum(axis=1))
    kept = flat[norms > 0] / norms[norms > 0, None]
    correlations = kept @ kept.T
    return float(len(kept) ** 2 / (correlations**2).sum())
