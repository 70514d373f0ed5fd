"""Exact samples of the discrete Gaussian: integers with probability proportional to exp(-x^2 / (2 S)).

The rejection sampler of Canonne, Kamath and Steinke (2020, arXiv:2004.00010, algorithms 1 to 3), on arrays. Its coins
are Bernoulli(exp(-g)) for numbers g that are exact functions of integers. Each coin compares a uniform number, drawn
bit by bit, with exp(-g): 53 bits and floating point decide all but about one coin in 1e13, because the error of the
floating-point value is far below `MARGIN`; an undecided coin draws more bits and is decided in decimal arithmetic of
as many digits as it takes. So no rounding error enters the distribution, and the whole randomness is that of `rng`.

Cost: about 14 uniform numbers per sample; see docs/privacy.md for times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.seeding import PrivacyRng

BITS: Final = 53  # of `PrivacyRng.random`: its numbers are whole multiples of 2^-53
MARGIN: Final = 2.0**-44  # more than exp(-g) in float64 can be wrong by here (2^-48, see `_coins`)
MAX_DEVIATION: Final = 1 << 36  # samples beyond 40 of these are never met, and squares stay exact enough
_BATCH: Final = 1 << 18  # samples worked on at a time: the arrays stay in the cache

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def discrete_gaussian(variance: int, size: int, rng: PrivacyRng) -> Ints:
    """[size] int64 exact samples of the discrete Gaussian with parameter sigma^2 = `variance`, whole and >= 1.

    Args:
        variance: the parameter S; the variance of the samples is at most S, and nearly S from S = 1 on.
        size: how many.
        rng: the only source of randomness.

    Raises:
        InputError: a variance that is not a whole number in range.
    """
    if type(variance) is not int or not 1 <= variance <= MAX_DEVIATION**2:
        raise InputError(f"variance={variance!r} of discrete noise is not a whole number in [1, 2^72]; none was drawn.")
    scale = math.isqrt(variance) + 1  # t of algorithm 3
    center, double = variance / scale, 2.0 * variance
    exact = Fraction(variance, scale)

    def closeness(value: int) -> Fraction:
        return (abs(value) - exact) ** 2 / (2 * variance)

    parts: list[Ints] = []
    missing = size
    while missing > 0:
        laplace = _discrete_laplace(scale, min(int(missing * 1.4) + 64, _BATCH), rng)
        away = np.abs(laplace).astype(np.float64) - center
        kept = laplace[_coins(away * away / double, lambda i, y=laplace: closeness(int(y[i])), rng)]
        parts.append(kept[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _discrete_laplace(scale: int, tries: int, rng: PrivacyRng) -> Ints:
    """Samples with probability proportional to exp(-|x| / scale): as many as `tries` trials give (algorithm 2)."""
    low = _uniform_below(scale, tries, rng)
    low = low[_coins(low / scale, lambda i, u=low: Fraction(int(u[i]), scale), rng)]
    high = np.zeros(len(low), dtype=np.int64)
    running = np.arange(len(low))
    while len(running):  # each: successes of Bernoulli(1/e) before the first failure
        running = running[_coins(np.ones(len(running)), lambda _: Fraction(1), rng)]
        high[running] += 1
    value = low + scale * high
    negative = rng.random(len(value)) < 0.5
    value = np.where(negative, -value, value)
    return value[~(negative & (value == 0))]  # zero has one sign only


def _uniform_below(bound: int, size: int, rng: PrivacyRng) -> Ints:
    """[size] exactly uniform integers in [0, bound), bound <= 2^40: numbers past the last whole multiple go again."""
    limit = (1 << BITS) - (1 << BITS) % bound
    found = _words(size, rng)
    while len(again := np.flatnonzero(found >= limit)):
        found[again] = _words(len(again), rng)
    return found % bound


def _words(size: int, rng: PrivacyRng) -> Ints:
    return (rng.random(size) * 2.0**BITS).astype(np.int64)  # exact: 53 bits


def _coins(rates: Floats, exactly: Callable[[int], Fraction], rng: PrivacyRng) -> Bools:
    """[n] bool, true with probability exp(-g_i) exactly.

    Args:
        rates: [n] g_i in float64. For all uses here its error times exp(-g) is below 2^-49, and exp adds 2^-51.
        exactly: i -> g_i without error, for coins that 53 bits leave open.
        rng: source of the bits.
    """
    likely = np.exp(-rates)
    uniform = rng.random(len(rates))  # the number drawn is in [uniform, uniform + 2^-53)
    heads = uniform < likely
    for i in np.flatnonzero(np.abs(uniform - likely) <= MARGIN).tolist():
        heads[i] = _decide(int(uniform[i] * 2.0**BITS), exactly(i), rng)
    return heads


def _decide(word: int, rate: Fraction, rng: PrivacyRng) -> bool:
    """Whether a uniform number that begins with the 53 bits `word` is below exp(-rate)."""
    if rate == 0:
        return True
    bits = BITS
    while True:
        word, bits = (word << BITS) | int(_words(1, rng)[0]), bits + BITS
        digits = int(bits * 0.302) + 30 + len(str(rate.numerator // rate.denominator))
        context = Context(prec=digits, rounding=ROUND_HALF_EVEN, Emin=-(10**9), Emax=10**9)
        power = context.divide(Decimal(-rate.numerator), Decimal(rate.denominator))
        value = Fraction(context.exp(power))
        slack = Fraction(1, 10 ** (digits - 15 - len(str(rate.numerator // rate.denominator))))
        if Fraction(word + 1, 1 << bits) <= value - slack:
            return True
        if Fraction(word, 1 << bits) >= value + slack:
            return False
