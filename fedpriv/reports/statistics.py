"""How sure a comparison is: paired differences with intervals, effect sizes, and who is left behind.

Results are a table of errors (less is better) by rule, seed and client. Standard errors and intervals are made in
`fedpriv.reports.chance`; the p-value is the t test with that standard error. `significant` needs both p and interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpriv.data.heterogeneity import gini
from fedpriv.errors import InputError
from fedpriv.reports.chance import Spread, interval, parts_error, split, two_way_error

Array = NDArray[np.float64]
Scale = Literal["ratio", "difference"]

BOOTSTRAP = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Trials:
    """Errors of rules that were run with the same seeds on the same clients.

    Attributes:
        rules, seeds, clients: names of the axes.
        errors: [A, S, K] less is better, finite.
        metric: for texts.
        parts: numbers of clients, adding up to K, where the same data were dealt out to clients in several ways; each
            way counts the same, and none adds clients to those of another. Empty: one.
    """

    rules: tuple[str, ...]
    seeds: tuple[str, ...]
    clients: tuple[str, ...]
    errors: Array
    metric: str = "error"
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.rules), len(self.seeds), len(self.clients))
        if self.parts and sum(self.parts) != shape[2]:
            raise InputError(f"parts of {self.parts} clients are not {shape[2]} clients; nothing was compared.")
        if self.errors.shape != shape or not np.isfinite(self.errors).all() or 0 in shape:
            raise InputError(
                f"a comparison needs a finite error of every rule, seed and client; the table is {self.errors.shape} "
                f"for {shape[0]} rules, {shape[1]} seeds and {shape[2]} clients. Nothing was compared."
            )

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], *, metric: str = "error") -> Trials:
        """From rows with `rule`, `seed`, `client` and `value`.

        Seeds that some rule lacks (a failed run) are left out for all rules, so that pairs stay pairs.

        Raises:
            InputError: two values for one cell, or no seed that all rules and clients have.
        """
        cells: dict[tuple[str, str, str], float] = {}
        for row in rows:
            key = (str(row["rule"]), str(row["seed"]), str(row["client"]))
            if key in cells and cells[key] != float(row["value"]):
                raise InputError(f"two values for rule, seed, client = {', '.join(key)}; nothing was compared.")
            cells[key] = float(row["value"])
        rules, every, clients = (list(dict.fromkeys(key[i] for key in cells)) for i in range(3))
        table = np.array([[[cells.get((r, s, c), np.nan) for c in clients] for s in every] for r in rules])
        if not cells:
            raise InputError("there are no results to compare.")
        whole: NDArray[np.bool_] = np.asarray(np.isfinite(table).all(axis=(0, 2)))
        if not whole.any():
            raise InputError("no seed has a finite result of every rule on every client; nothing was compared.")
        seeds = tuple(s for s, keep in zip(every, whole, strict=True) if keep)
        return cls(tuple(rules), seeds, tuple(clients), table[:, whole], metric)

    def of_rule(self, rule: str) -> Array:
        """[S, K] errors of one rule."""
        return self.errors[self.rules.index(rule)]

    def means(self, scale: Scale = "ratio") -> Array:
        """[A] mean error, every part counting the same: of logarithms for `ratio`."""
        values = np.log(np.maximum(self.errors, 1e-300)) if scale == "ratio" else self.errors
        return np.mean([part.mean(axis=(1, 2)) for part in split(values, self.parts)], axis=0)

    @property
    def by_client(self) -> Array:
        """[A, N] means over seeds: clients are the independent blocks of rank tests, seeds are not.

        Clients of several parts hold the same data, so they are no blocks of their own: means over parts by position
        where these are of one size, else those of the first part.
        """
        found = [part.mean(axis=1) for part in split(self.errors, self.parts)]
        if len({part.shape for part in found}) > 1:
            return found[0]
        return np.exp(np.mean(np.log(np.maximum(found, 1e-300)), axis=0)) if len(found) > 1 else found[0]


@dataclass(frozen=True)
class Paired:
    """Rule `a` against rule `b`; negative: `a` has less error.

    Attributes:
        scale: `ratio`: log(a / b), averaged, shown as a relative change; `difference`: a - b.
        mean, low, high: on that scale (log for `ratio`), with the interval at `level`.
        standard_error, freedom, p: of the t test.
        d: paired standardised difference with Hedges' correction, over clients (seeds averaged).
        cliff: Cliff's delta of the clients' errors, in [-1, 1].
        better: share of clients on which `a` has less error.
    """

    a: str
    b: str
    scale: Scale
    level: float
    mean: float
    low: float
    high: float
    standard_error: float
    freedom: float
    p: float
    d: float
    cliff: float
    better: float

    @property
    def change(self) -> tuple[float, float, float]:
        """(mean, low, high) as a share for `ratio` (-0.04: 4 % less error), else as they are."""
        values = (self.mean, self.low, self.high)
        return tuple(np.expm1(values).tolist()) if self.scale == "ratio" else values  # pyright: ignore[reportReturnType]

    def significant(self, adjusted: float) -> bool:
        """Whether the (adjusted) p-value and the interval both speak against "no difference"."""
        return adjusted < 1 - self.level and not self.low <= 0.0 <= self.high


def paired(
    trials: Trials,
    a: str,
    b: str,
    *,
    scale: Scale = "ratio",
    level: float = LEVEL,
    draws: int = BOOTSTRAP,
    seed: int = 0,
    spreads: tuple[Spread | None, Spread | None] = (None, None),
) -> Paired:
    """Compares two rules over seeds and clients.

    `spreads`, between seeds and between clients, take the place of the table's own: see `fedpriv.reports.pooling`.

    Ratios are the default, because clients' errors differ in size and a mean of differences would be a vote of the
    largest ones.

    Raises:
        InputError: ratios of errors that are not positive.
    """
    one, two = trials.of_rule(a), trials.of_rule(b)
    if scale == "ratio" and not (one.min() > 0 and two.min() > 0):
        raise InputError(f"errors of {a} or {b} are not positive, so they have no ratio; compare differences.")
    d = np.log(one / two) if scale == "ratio" else one - two
    parts = split(d, trials.parts)
    mean = float(np.mean([part.mean() for part in parts]))
    chance = parts_error(parts, spreads[0]) if len(parts) > 1 else two_way_error(d, *spreads)
    low, high = interval(parts, chance.error, chance.freedom, level=level, draws=draws, seed=seed)
    by_client = d.mean(axis=0)
    return Paired(
        a=a,
        b=b,
        scale=scale,
        level=level,
        mean=mean,
        low=low,
        high=high,
        standard_error=chance.error,
        freedom=chance.freedom,
        p=chance.p(mean),
        d=standardised(by_client),
        cliff=cliffs_delta(one.mean(axis=0), two.mean(axis=0)),
        better=float((by_client < 0).mean()),
    )


def standardised(differences: Array) -> float:
    """Mean over standard deviation of paired differences [n], with Hedges' correction; 0 for n < 2 or all zero."""
    count = len(differences)
    if count < 2:
        return 0.0
    deviation, mean = float(differences.std(ddof=1)), float(differences.mean())
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        return float(np.sign(mean) * np.inf) if mean else 0.0
    return (1 - 3 / (4 * (count - 1) - 1)) * mean / deviation


def cliffs_delta(one: Array, two: Array) -> float:
    """P(one > two) - P(one < two) over all pairs: -1 if every value of `one` is below every value of `two`."""
    return float(np.sign(one[:, None] - two[None]).mean())


def cliff_word(delta: float) -> str:
    """Negligible, small, medium or large (Romano et al. 2006)."""
    size = abs(delta)
    return next(
        (w for limit, w in ((0.147, "negligible"), (0.33, "small"), (0.474, "medium")) if size < limit), "large"
    )


def holm(p: Sequence[float] | Array) -> Array:
    """Holm's step-down adjusted p-values, in the order given. NaN counts as 1."""
    values = np.nan_to_num(np.asarray(p, dtype=np.float64), nan=1.0)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


@dataclass(frozen=True)
class Fairness:
    """Who is left behind by a rule; over clients, errors averaged over seeds.

    Attributes:
        mean, median, p90, worst: of the clients' errors. worst_client: whose that is.
        gini: of the errors (they are not negative; gains can be, and then a Gini coefficient means nothing).
        gain_variance, gain_worst, losers: of 1 - error / baseline error: variance, least, and the share of clients
            with a gain below 0. NaN without a baseline. gain_worst_client: who has the least gain; empty without one.
    """

    rule: str
    mean: float
    median: float
    p90: float
    worst: float
    worst_client: str
    gini: float
    gain_variance: float
    gain_worst: float
    losers: float
    gain_worst_client: str = ""


def fairness(trials: Trials, rule: str, *, baseline: str = "") -> Fairness:
    """The measures of one rule; gains are against `baseline`, another rule (a naive forecast, training alone)."""
    errors = trials.of_rule(rule).mean(axis=0)
    gains = 1 - errors / trials.of_rule(baseline).mean(axis=0) if baseline else np.full(len(errors), np.nan)
    return Fairness(
        rule=rule,
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        p90=float(np.quantile(errors, 0.9)),
        worst=float(errors.max()),
        worst_client=trials.clients[int(errors.argmax())],
        gini=gini(errors) if errors.min() >= 0 else float("nan"),
        gain_variance=float(gains.var(ddof=1)) if len(gains) > 1 else float("nan"),
        gain_worst=float(gains.min()),
        losers=float((gains < 0).mean()) if baseline else float("nan"),
        gain_worst_client=trials.clients[int(gains.argmin())] if baseline else "",
    )
