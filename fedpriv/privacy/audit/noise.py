"""D2, noise: the released gradients of batches that contribute nothing are the noise itself.

Tested for the size that the mechanism states, as a whole and for each parameter block, for its distribution, and for
correlation between rounds and between clients: noise drawn twice from one seed can be subtracted.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fedpriv.privacy.audit.result import CheckResult, Rows, Step
from fedpriv.seeding import PrivacyRng

SIGNIFICANCE = 1e-3  # of each check as a whole, over all its parts
CORRELATION = 6.0  # in units of 1 / sqrt(P)


def check_noise(
    step: Step,
    *,
    rng_for: Callable[[int, int], PrivacyRng],
    stddev: float,
    blocks: Mapping[str, slice],
    silent: Sequence[Rows],
    rounds: int = 3,
    clients: int = 2,
) -> list[CheckResult]:
    """Releases of `silent` batches for several clients and rounds, against what the mechanism states.

    Args:
        rng_for: (client, round) -> the source of noise that the program gives that client in that round.
        stddev: of each coordinate of the release: noise_multiplier * bound / denominator.
        blocks: parts of the vector, by parameter.
        silent: batches without any gradient, such as an empty one and one of windows without targets.
    """
    draws: dict[tuple[int, int, int], NDArray[np.float64]] = {}
    for client in range(clients):
        for round_ in range(rounds):
            rng = rng_for(client, round_)
            for i, batch in enumerate(silent):  # several steps of one round share its source
                draws[client, round_, i] = step(batch, rng).to(torch.float64).numpy() / stddev
    return [_size(draws), _blocks(draws, blocks), _distribution(draws), *_correlations(draws)]


def _chi2_pvalue(x: NDArray[np.float64]) -> float:
    """Two-sided p-value of sum x^2 under x ~ N(0, 1)."""
    total, n = float((x * x).sum()), x.size
    return min(1.0, 2 * min(float(stats.chi2.cdf(total, n)), float(stats.chi2.sf(total, n))))


def _size(draws: Mapping[tuple[int, int, int], NDArray[np.float64]]) -> CheckResult:
    worst, detail = 1.0, ""
    for key, x in draws.items():
        p = _chi2_pvalue(x)
        if p <= worst:
            worst, detail = p, f"{float(x.std()):.4f} times the stated size (client, round, batch = {key}; p = {p:.2g})"
    return CheckResult("noise: size", worst * len(draws) >= SIGNIFICANCE, detail)


def _blocks(draws: Mapping[tuple[int, int, int], NDArray[np.float64]], blocks: Mapping[str, slice]) -> CheckResult:
    worst, detail = 1.0, "no blocks"
    for name, part in blocks.items():
        p = min((_chi2_pvalue(x[part]) for x in draws.values()), default=1.0)
        if p <= worst:
            worst, detail = p, f"least likely block {name} (p = {p:.2g})"
    return CheckResult("noise: each parameter", worst * len(draws) * max(len(blocks), 1) >= SIGNIFICANCE, detail)


def _distribution(draws: Mapping[tuple[int, int, int], NDArray[np.float64]]) -> CheckResult:
    pooled = np.concatenate(list(draws.values()))  # sound releases are independent, so together they say more
    pvalues = [float(stats.kstest(x, "norm").pvalue) for x in (pooled, *draws.values())]
    passed = min(pvalues) * len(pvalues) >= SIGNIFICANCE
    return CheckResult("noise: normal", passed, f"least Kolmogorov-Smirnov p = {min(pvalues):.2g} of {len(pvalues)}")


def _correlations(draws: Mapping[tuple[int, int, int], NDArray[np.float64]]) -> list[CheckResult]:
    kinds = {"steps of one round": [0.0], "rounds": [0.0], "clients": [0.0], "neighbouring coordinates": [0.0]}
    for (a, x), (b, y) in combinations(draws.items(), 2):
        kind = "clients" if a[0] != b[0] else "rounds" if a[1] != b[1] else "steps of one round"
        kinds[kind].append(_correlation(x, y))
    for x in draws.values():
        kinds["neighbouring coordinates"].append(_correlation(x[1:], x[:-1]))
    limit = CORRELATION / math.sqrt(next(iter(draws.values())).size)
    return [
        CheckResult(f"noise: unrelated {kind}", max(found) < limit, f"largest {max(found):.4f}, limit {limit:.4f}")
        for kind, found in kinds.items()
    ]


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return abs(float((x * y).sum())) / scale if scale > 0 else 1.0
