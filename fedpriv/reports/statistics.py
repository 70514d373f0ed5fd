"""How sure a comparison is: paired differences with intervals, effect sizes, and who is left behind.

Results are a table of errors (less is better) by rule, seed and client. Two things would come out differently next
time: the random numbers (seeds) and the utilities that happen to take part (clients). They are crossed: every seed has
every client, so seeds x clients numbers are *not* that many independent ones, and an interval that resamples them as if
they were is too narrow. Here the difference of two rules is d[s, k] = mean + seed + client + rest, and

* its standard error comes from the mean squares of the two-way table, (MS_seed + MS_client - MS_rest) / (S K), which is
  unbiased for a new set of seeds *and* clients, with degrees of freedom by Satterthwaite. Three seeds are few, and
  this says so by a wide interval;
* its shape comes from a bootstrap that draws seeds and clients independently (Owen, The pigeonhole bootstrap, Annals of
  Applied Statistics 1, 2007). Used alone that bootstrap counts the rest about three times (McCullagh 2000) and the
  seeds only (S - 1) / S times, so its draws are rescaled to the standard error above, and by t / z (as in Hesterberg's
  expanded percentiles). Percentile rather than BCa: the acceleration of BCa is a jackknife over three seeds: noise.

The p-value is the t test with the same standard error. `significant` needs both it and the interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpriv.data.heterogeneity import gini
from fedpriv.errors import InputError

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
    """

    rules: tuple[str, ...]
    seeds: tuple[str, ...]
    clients: tuple[str, ...]
    errors: Array
    metric: str = "error"

    def __post_init__(self) -> None:
        shape = (len(self.rules), len(self.seeds), len(self.clients))
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

    @property
    def by_client(self) -> Array:
        """[A, K] means over seeds: clients are the independent blocks of rank tests, seeds are not."""
        return self.errors.mean(axis=1)


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
) -> Paired:
    """Compares two rules over seeds and clients; see the module's text.

    Ratios are the default, because clients' errors differ in size and a mean of differences would be a vote of the
    largest ones.

    Raises:
        InputError: ratios of errors that are not positive.
    """
    one, two = trials.of_rule(a), trials.of_rule(b)
    if scale == "ratio" and not (one.min() > 0 and two.min() > 0):
        raise InputError(f"errors of {a} or {b} are not positive, so they have no ratio; compare differences.")
    d = np.log(one / two) if scale == "ratio" else one - two
    mean = float(d.mean())
    error, freedom = two_way_error(d)
    low, high = interval(d, error, freedom, level=level, draws=draws, seed=seed)
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else (1.0 if mean == 0 else 0.0)
    by_client = d.mean(axis=0)
    return Paired(
        a=a,
        b=b,
        scale=scale,
        level=level,
        mean=mean,
        low=low,
        high=high,
        standard_error=error,
        freedom=freedom,
        p=p if np.isfinite(error) else float("nan"),
        d=standardised(by_client),
        cliff=cliffs_delta(one.mean(axis=0), two.mean(axis=0)),
        better=float((by_client < 0).mean()),
    )


def two_way_error(d: Array) -> tuple[float, float]:
    """Standard error of the mean of d [S, K] for new seeds and new clients, and its degrees of freedom.

    With one seed (or client) only the other's variation is known; with one of both the error is NaN.
    """
    seeds, clients = d.shape
    if seeds == 1 or clients == 1:
        flat = d.ravel()
        if len(flat) < 2:
            return float("nan"), float("nan")
        return float(flat.std(ddof=1) / np.sqrt(len(flat))), float(len(flat) - 1)
    mean = d.mean()
    rows, columns = d.mean(axis=1) - mean, d.mean(axis=0) - mean
    rest = d - mean - rows[:, None] - columns[None]
    ms_seed = clients * float((rows**2).sum()) / (seeds - 1)
    ms_client = seeds * float((columns**2).sum()) / (clients - 1)
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (clients - 1))
    total = ms_seed + ms_client - ms_rest
    both = (seeds - 1) * (clients - 1)
    if total <= ms_rest:  # neither seeds nor clients vary more than the rest
        return float(np.sqrt(ms_rest / d.size)), float(both)
    freedom = total**2 / (ms_seed**2 / (seeds - 1) + ms_client**2 / (clients - 1) + ms_rest**2 / both)
    return float(np.sqrt(total / d.size)), float(max(freedom, 1.0))


def interval(d: Array, error: float, freedom: float, *, level: float, draws: int, seed: int) -> tuple[float, float]:
    """Percentiles of the two-way bootstrap of the mean of d [S, K], scaled to `error` and to t with `freedom`."""
    mean = float(d.mean())
    if not np.isfinite(error):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    seeds, clients = d.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    columns = rng.multinomial(clients, np.full(clients, 1 / clients), draws) / clients
    deviations = np.einsum("bs,sk,bk->b", rows, d - mean, columns, optimize=True)
    spread = float(deviations.std())
    if spread <= 1e-12 * max(abs(mean), 1e-300):
        return mean, mean
    tail = (1 - level) / 2
    wide = float(stats.t.isf(tail, freedom) / stats.norm.isf(tail))
    low, high = np.quantile(deviations, [tail, 1 - tail]) * (error / spread * wide)
    return mean + float(low), mean + float(high)


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
