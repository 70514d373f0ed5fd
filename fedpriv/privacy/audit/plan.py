"""What to look at, decided before the scores are seen: thresholds and numbers of guesses.

A threshold chosen on the scores themselves would have to be paid for. Here ideal scores are simulated from the claim
alone, with random numbers of their own, and each bound gets the threshold or the guesses that serve it best on those.
The best that a correct program can be expected to show comes out beside, and tells too few canaries from a fault.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedpriv.privacy.audit import bounds
from fedpriv.privacy.audit.bounds import Rates
from fedpriv.privacy.audit.tables import RATIO, Claim, StepLaw, step_law
from fedpriv.privacy.events import decode_event
from fedpriv.privacy.units import Relation

Array = NDArray[np.float64]

_DRAWS = 3_000_000  # normals simulated per hypothesis
_SEED = 2_305_08846  # of the simulated scores: any constant; the experiment's own randomness is another
_RATES = np.geomspace(2e-4, 0.5, 24)
_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Plan:
    """Fixed before the experiment.

    Attributes:
        t3_threshold, cp_threshold: scores from which the tests say "in".
        steinke_guesses, fdp_guesses: (highest scores guessed "in", lowest guessed "out").
        expected_t3: epsilon that T3 shows if all is as claimed and the errors are as expected.
        lowest: where searches for a too small noise end.
    """

    t3_threshold: float
    cp_threshold: float
    steinke_guesses: tuple[int, int]
    fdp_guesses: tuple[int, int]
    expected_t3: float
    lowest: int


@lru_cache(maxsize=128)
def make_plan(claim: Claim, canaries: int, significance: float) -> Plan:
    """The plan for `canaries` of which about half are in.

    Raises:
        InputError: an event without Gaussian noise.
    """
    laws = [(step_law(decode_event(text)), count) for text, count in claim.parts]
    drift = math.sqrt(sum(count * (float(law.counts.max()) / law.sigma) ** 2 for law, count in laws))
    lowest = bounds.lowest_index(drift)
    present, absent = _ideal(laws, claim.relation)
    choices = _thresholds(present, absent, canaries / 2)
    limits = [(threshold, seen.limits(significance)) for threshold, seen in choices]

    def margins(index: int) -> list[float]:
        curve = claim.curve(index)
        return [curve.beta(alpha) - beta for _, (alpha, beta) in limits]

    index = bounds.first_rejected(lambda i: max(margins(i)) > 0, lowest)
    t3 = limits[int(np.argmax(margins(index if index is not None else 0)))][0]
    cp = max(choices, key=lambda c: bounds.clopper_pearson_bound(c[1], delta=claim.delta, significance=significance))
    steinke, fdp = _guesses(claim, canaries, significance, present, absent, lowest)
    expected = 0.0 if index is None else claim.epsilon(RATIO**index)
    return Plan(t3, cp[0], steinke, fdp, expected, lowest)


def _ideal(laws: Sequence[tuple[StepLaw, int]], relation: Relation) -> tuple[Array, Array]:
    """Simulated scores ([n] with the unit in, [n] without) of a program that does what it claims."""
    steps = sum(count for _, count in laws)
    size = int(np.clip(_DRAWS // max(steps, 1), 1000, 20_000))
    rng = np.random.Generator(np.random.PCG64(_SEED))
    present, absent = np.zeros(size), np.zeros(size)
    for law, count in laws:
        for _ in range(count):
            drawn = rng.choice(law.counts, size=size, p=law.weights) if len(law.counts) > 1 else law.counts[0]
            present += law.log_ratio(drawn + law.sigma * rng.standard_normal(size), relation)
            away = 0.0
            if relation is Relation.REPLACE_ONE:
                away = -(rng.choice(law.counts, size=size, p=law.weights) if len(law.counts) > 1 else law.counts[0])
            absent += law.log_ratio(away + law.sigma * rng.standard_normal(size), relation)
    return np.sort(present), np.sort(absent)


def _thresholds(present: Array, absent: Array, trials: float) -> list[tuple[float, Rates]]:
    """Thresholds at simulated quantiles, with the errors to expect of `trials` canaries on each side."""
    cuts = np.unique(np.concatenate([np.quantile(absent, 1 - _RATES), np.quantile(present, _RATES)]))
    found: list[tuple[float, Rates]] = []
    for cut in cuts:
        alpha = (len(absent) - np.searchsorted(absent, cut) + 0.5) / (len(absent) + 1)
        beta = (np.searchsorted(present, cut) + 0.5) / (len(present) + 1)
        found.append((float(cut), Rates(trials * float(alpha), trials, trials * float(beta), trials)))
    return found


def _guesses(
    claim: Claim, canaries: int, significance: float, present: Array, absent: Array, lowest: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The numbers of guesses that serve Steinke's and the f-DP bound best, each (in, out)."""
    truth = np.concatenate([np.zeros(len(absent), dtype=bool), np.ones(len(present), dtype=bool)])
    truth = truth[np.argsort(np.concatenate([absent, present]), kind="stable")]
    choices: list[tuple[int, int, int]] = []  # guesses in, out, and how many of them will be right
    for share in _SHARES:
        top = int(share * len(truth))
        right_in, right_out = float(truth[len(truth) - top :].mean()), 1 - float(truth[:top].mean())
        n = int(share * canaries)
        choices += [(n, 0, int(n * right_in)), (0, n, int(n * right_out)), (n, n, int(n * (right_in + right_out)))]
    choices = [c for c in choices if c[0] + c[1] > 0] or [(1, 0, 1)]

    def steinke(choice: tuple[int, int, int]) -> float:
        top, bottom, right = choice
        return bounds.steinke_bound(
            canaries, top + bottom, right, delta=claim.delta, significance=significance, tolerance=0.03
        )

    def refuting(index: int) -> list[tuple[int, int, int]]:
        curve = claim.symmetric_curve(index)
        return [c for c in choices if bounds.fdp_refutes(curve, canaries, c[0] + c[1], c[2], significance)]

    best = max(choices, key=steinke)
    index = bounds.first_rejected(lambda i: bool(refuting(i)), lowest)
    fdp = refuting(index)[0] if index is not None else best
    return best[:2], fdp[:2]
