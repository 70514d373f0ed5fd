"""Lower bounds on epsilon from what a canary attacker got right. Each takes a significance: its chance to be too high.

    t3       family inversion: the least private member of the claim's family whose trade-off curve still allows the
             observed error rates. Canaries count as independent trials.
    t2       parametric: noise from the canaries left out, contribution from the mean of those put in; same family.
    fdp      one run, valid for any dependence between canaries if the claim's curve holds (arXiv:2410.22235).
    steinke  one run, (epsilon, delta) only, no assumption on the mechanism (arXiv:2305.08846).
    clopper-pearson  from one pair of error rates, as for two runs; canaries count as independent trials.
    gdp      a Gaussian curve fitted to the same rates: a diagnostic, not a bound for subsampled mechanisms.

Thresholds and numbers of guesses must be fixed before the scores are seen (`fedpriv.privacy.audit.plan`).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from fedpriv.errors import InputError
from fedpriv.privacy.audit.tables import MAX_INDEX, RATIO, Claim, TradeOff
from fedpriv.privacy.units import Relation

Array = NDArray[np.float64]

EPSILON_MAX: Final = 100.0  # searches end here


@dataclass(frozen=True)
class Rates:
    """Errors at one threshold, and their Clopper-Pearson upper limits, both hold at once with 1 - significance."""

    false_positives: float
    absent: float
    false_negatives: float
    present: float

    def limits(self, significance: float) -> tuple[float, float]:
        """(upper limit of the false-positive rate, of the false-negative rate)."""
        half = significance / 2
        return (
            clopper_pearson_upper(self.false_positives, self.absent, half),
            clopper_pearson_upper(self.false_negatives, self.present, half),
        )


def rates(scores: Array, inserted: NDArray[np.bool_], threshold: float) -> Rates:
    """Errors of the test that says "in" from `threshold` on."""
    said = scores >= threshold
    return Rates(
        float((said & ~inserted).sum()),
        float((~inserted).sum()),
        float((~said & inserted).sum()),
        float(inserted.sum()),
    )


def clopper_pearson_upper(count: float, trials: float, significance: float) -> float:
    """Exact upper limit of a binomial rate; 1 without trials. Real-valued counts interpolate (for plans)."""
    if trials <= 0 or count >= trials:
        return 1.0
    return float(special.betaincinv(count + 1, trials - count, 1 - significance))


def check_significance(significance: float) -> None:
    """Refuses anything outside (0, 1)."""
    if not 0 < significance < 1:
        raise InputError(f"significance={significance!r} is not in (0, 1); nothing was audited.")


# ---- inversion of a family ------------------------------------------------------------------------


def lowest_index(drift: float) -> int:
    """The least private member that a search looks at; `drift` is sqrt(sum over steps of (largest J / sigma)^2).

    Below it the distributions get so wide that they cost gigabytes, and nobody needs to know by how many hundreds an
    epsilon is missed.
    """
    least = max(1 / 4, min(1.0, drift / 30))
    return math.ceil(math.log(least) / math.log(RATIO))


def first_rejected(rejects: Callable[[int], bool], lowest: int) -> int | None:
    """The smallest index that is rejected, if rejection is monotone; None if none up to the largest is.

    More noise than the true member has must sooner or later contradict what was observed, so every index from the
    answer on is too private, and the true scale lies below it.
    """
    lowest, step = min(lowest, 0), 8
    if rejects(0):
        low, high = -step, 0
        while low > lowest and rejects(low):
            step *= 2
            low, high = low - step, low
        if low <= lowest:
            if rejects(lowest):
                return lowest
            low = lowest
    else:
        low, high = 0, step
        while not rejects(min(high, MAX_INDEX)):
            if high >= MAX_INDEX:
                return None
            step *= 2
            low, high = high, high + step
        high = min(high, MAX_INDEX)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rejects(middle) else (middle, high)
    return high


def t3_bound(claim: Claim, seen: Rates, significance: float, *, lowest: int) -> float:
    """Epsilon of the first member whose curve forbids the observed rates (spec of `first_rejected`); 0 if none."""
    check_significance(significance)
    alpha, beta = seen.limits(significance)
    index = first_rejected(lambda i: claim.curve(i).beta(alpha) > beta, lowest)
    return 0.0 if index is None else claim.epsilon(RATIO**index)


# ---- parametric -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """Confidence limits of the family's two parameters.

    Attributes:
        scale: upper limit of the noise over the claimed noise.
        thin: lower limit of the expected contribution over the claimed one.
    """

    scale: float
    thin: float


def fit(
    inserted: NDArray[np.bool_],
    totals: Array,
    squares: Array,
    *,
    steps: int,
    expected: float,
    expected_square: float,
    relation: Relation,
    significance: float,
) -> Parameters:
    """Both limits hold at once with 1 - significance.

    Absent canaries are pure noise, so the sum of their squares over the claimed variance is scale^2 * chi^2(n * steps):
    so sharp that it gets a tenth of the significance. The mean of the totals is normal to high accuracy, and absent
    canaries add nothing to it. Under replace-one they have content, too: half the difference of the means counts, and
    E[J^2] (at the lower limit of J) is taken out of the squares.
    """
    check_significance(significance)
    present, absent = totals[inserted], totals[~inserted]
    if min(len(present), len(absent)) < 2 or expected <= 0:
        return Parameters(math.inf, 0.0)
    center, spread = float(present.mean()), float(present.var(ddof=1)) / len(present)
    if relation is Relation.REPLACE_ONE:
        center = (center - float(absent.mean())) / 2
        spread = (spread + float(absent.var(ddof=1)) / len(absent)) / 4
    thin = max(0.0, (center - float(stats.norm.isf(0.9 * significance)) * math.sqrt(spread)) / expected)
    freedom = len(absent) * steps
    variance = float(squares[~inserted].sum()) / float(stats.chi2.ppf(0.1 * significance, freedom))
    if relation is Relation.REPLACE_ONE:
        variance -= min(thin, 1.0) * expected_square / steps
    return Parameters(math.sqrt(max(variance, 0.0)), thin)


def t2_bound(claim: Claim, found: Parameters, *, lowest: int) -> float:
    """Epsilon of the member at the limits; 0 where they show no signal."""
    if found.thin <= 0 or not math.isfinite(found.scale):
        return 0.0
    scale = max(found.scale, RATIO**lowest * max(1.0, found.thin))
    return claim.epsilon(scale, found.thin)


# ---- one run --------------------------------------------------------------------------------------


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Chance under (epsilon, delta)-DP of at least `correct` right guesses out of `guesses`, others abstained.

    Steinke et al. 2023, Theorem 5.2: f(v) + 2 m delta max_i (f(v - i) - f(v)) / i with f the binomial tail.
    """
    rate = float(special.expit(epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, rate))
    if delta == 0 or correct == 0:
        return tail
    i = np.arange(1, correct + 1)
    rise = (stats.binom.sf(correct - i - 1, guesses, rate) - tail) / i
    return min(1.0, tail + 2 * canaries * delta * float(rise.max()))


def steinke_bound(
    canaries: int, guesses: int, correct: int, *, delta: float, significance: float, tolerance: float = 1e-4
) -> float:
    """The largest epsilon that the guesses refute; 0 if they refute none."""
    check_significance(significance)

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) <= significance

    if guesses == 0 or not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < EPSILON_MAX:
        low, high = high, 2 * high
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def fdp_refutes(curve: TradeOff, canaries: int, guesses: int, correct: int, significance: float) -> bool:
    """Whether `correct` right guesses out of `guesses` refute a (symmetric) trade-off curve.

    Mahloujifar et al. 2024, Algorithm 3: from the assumption that so many right guesses have probability
    `significance`, the probabilities of fewer are bounded from below through the curve; they must not add up to more
    than the guesses that were made.
    """
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        more = max(wrong, curve.beta(1.0 - right))
        if more == wrong:
            break
        right, wrong = min(1.0, right + i / (guesses - i) * (more - wrong)), more
    return right + wrong > guesses / canaries


def fdp_bound(claim: Claim, canaries: int, guesses: int, correct: int, *, significance: float, lowest: int) -> float:
    """Epsilon of the first member of the family that the guesses refute; 0 if none."""
    check_significance(significance)
    if guesses == 0:
        return 0.0
    index = first_rejected(
        lambda i: fdp_refutes(claim.symmetric_curve(i), canaries, guesses, correct, significance), lowest
    )
    return 0.0 if index is None else claim.epsilon(RATIO**index)


# ---- plain rates ----------------------------------------------------------------------------------


def clopper_pearson_bound(seen: Rates, *, delta: float, significance: float) -> float:
    """ln((1 - beta - delta) / alpha), or with the roles exchanged, at the upper limits of both error rates."""
    check_significance(significance)
    alpha, beta = seen.limits(significance)
    found = [math.log((1 - b - delta) / a) for a, b in ((alpha, beta), (beta, alpha)) if a > 0 and 1 - b > delta]
    return max(0.0, *found) if found else 0.0


def gdp_fit(seen: Rates, *, delta: float, significance: float) -> float:
    """Epsilon at `delta` of the Gaussian mechanism whose curve passes through the limits of the rates."""
    check_significance(significance)
    alpha, beta = seen.limits(significance)
    mu = float(special.ndtri(1 - alpha) - special.ndtri(beta))
    return gaussian_epsilon(mu, delta) if mu > 0 else 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of one Gaussian release with sensitivity mu and unit noise. Balle & Wang 2018, arXiv:1805.06530."""

    def excess(epsilon: float) -> float:
        far = math.exp(epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu)))
        return float(special.ndtr(mu / 2 - epsilon / mu)) - far - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-9))  # pyright: ignore[reportArgumentType]
