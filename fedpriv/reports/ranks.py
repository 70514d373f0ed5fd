"""Ranks of many rules: Friedman, Nemenyi with the critical difference, Wilcoxon with Holm (Demsar, JMLR 7, 2006).

Blocks must be independent of each other. Clients are (nearly); the seeds of one client are not, so they are averaged
first. Several partitions of the same clients are not independent either: test each, or give one block per client.

What rank tests over clients say holds *for the seeds that were run*: luck of a seed that all clients share looks like
a difference of the rules (at three seeds easily ten times the stated level). So they describe, and `paired` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpriv.errors import InputError
from fedpriv.reports.statistics import holm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RankTable:
    """Ranks of A rules over N blocks; rank 1 has the least error.

    Attributes:
        rules: [A].
        ranks: [A, N], ties share their mean rank.
        mean: [A] mean ranks.
        chi2, p: Friedman's statistic, corrected for ties, and its chi-square p-value.
        f, f_p: Iman and Davenport's F, which is less conservative for few blocks; this one decides.
        alpha, critical: level, and the critical difference of mean ranks at it (Nemenyi).
        nemenyi: [A, A] p-values for each pair, adjusted for all pairs.
    """

    rules: tuple[str, ...]
    ranks: Array
    mean: Array
    chi2: float
    p: float
    f: float
    f_p: float
    alpha: float
    critical: float
    nemenyi: Array

    @property
    def blocks(self) -> int:
        """N."""
        return self.ranks.shape[1]

    @property
    def differ(self) -> bool:
        """Whether the rules differ at all, by the F test."""
        return self.f_p < self.alpha

    def separates(self, one: str, other: str) -> bool:
        """Whether Nemenyi's comparison tells two rules apart, after the F test."""
        i, j = self.rules.index(one), self.rules.index(other)
        return self.differ and bool(self.nemenyi[i, j] < self.alpha)

    def groups(self) -> list[tuple[str, ...]]:
        """Maximal sets of rules, best first, whose mean ranks lie within the critical difference of each other."""
        order = np.argsort(self.mean, kind="stable")
        sorted_means = self.mean[order]
        found: list[tuple[int, int]] = []
        for first in range(len(order)):
            last = int(np.searchsorted(sorted_means, sorted_means[first] + self.critical, side="right")) - 1
            if last > first and not (found and found[-1][1] >= last):
                found.append((first, last))
        return [tuple(self.rules[order[i]] for i in range(a, b + 1)) for a, b in found]


def critical_difference(rules: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks: q(alpha, A) sqrt(A (A + 1) / (6 N))."""
    q = stats.studentized_range.isf(alpha, rules, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(rules * (rules + 1) / (6 * blocks)))


def rank_table(rules: Sequence[str], errors: Array, *, alpha: float = 0.05) -> RankTable:
    """Friedman's test and Nemenyi's comparison.

    Args:
        rules: [A] names.
        errors: [A, N], less is better; see `Trials.by_client`.
        alpha: family-wise level.

    Raises:
        InputError: fewer than two rules or blocks, or an error that is not finite.
    """
    count, blocks = errors.shape
    if count < 2 or blocks < 2 or len(rules) != count or not np.isfinite(errors).all():
        raise InputError(
            f"ranks need finite errors of at least 2 rules on at least 2 clients; there are {count} and {blocks}. "
            "Nothing was ranked."
        )
    ranks = stats.rankdata(errors, axis=0)
    mean = ranks.mean(axis=1)
    # sum of squares between rules over that within blocks: Friedman with the correction for ties
    between = blocks * float(((mean - (count + 1) / 2) ** 2).sum())
    within = float(((ranks - (count + 1) / 2) ** 2).sum()) / (blocks * (count - 1))
    chi2 = between / within if within > 0 else 0.0
    rest = blocks * (count - 1) - chi2
    f = (blocks - 1) * chi2 / rest if rest > 1e-9 else float("inf")
    return RankTable(
        rules=tuple(rules),
        ranks=ranks,
        mean=mean,
        chi2=chi2,
        p=float(stats.chi2.sf(chi2, count - 1)),
        f=f,
        f_p=float(stats.f.sf(f, count - 1, (count - 1) * (blocks - 1))),
        alpha=alpha,
        critical=critical_difference(count, blocks, alpha),
        nemenyi=nemenyi(mean, blocks),
    )


def nemenyi(mean_ranks: Array, blocks: int) -> Array:
    """[A, A] p-values of the differences of mean ranks, from the studentised range over A rules."""
    count = len(mean_ranks)
    step = np.sqrt(count * (count + 1) / (6 * blocks))
    q = np.abs(mean_ranks[:, None] - mean_ranks[None]) / step * np.sqrt(2)
    return np.asarray(stats.studentized_range.sf(q, count, np.inf), dtype=np.float64)


@dataclass(frozen=True)
class Wilcoxon:
    """The signed-rank test of a pair; `p_holm` is adjusted for all pairs that were asked for."""

    a: str
    b: str
    statistic: float
    p: float
    p_holm: float


def wilcoxon_holm(rules: Sequence[str], errors: Array, *, against: str = "") -> list[Wilcoxon]:
    """Signed-rank tests of all pairs, or of every rule against one, with Holm's correction.

    Blocks in which a pair ties are divided evenly between both signs (Demsar 2006; Pratt's "zsplit").

    Args:
        rules: [A] names.
        errors: [A, N].
        against: compare with this rule only.
    """
    pairs = [(r, against) for r in rules if r != against] if against else list(combinations(rules, 2))
    table = {rule: errors[i] for i, rule in enumerate(rules)}
    results: list[tuple[float, float]] = []
    for a, b in pairs:
        difference = table[a] - table[b]
        if not difference.any():
            results.append((float("nan"), 1.0))
            continue
        found = stats.wilcoxon(difference, zero_method="zsplit")
        results.append((float(found.statistic), float(found.pvalue)))  # pyright: ignore[reportAttributeAccessIssue]
    adjusted = holm([p for _, p in results])
    return [
        Wilcoxon(a, b, statistic, p, float(q))
        for (a, b), (statistic, p), q in zip(pairs, results, adjusted, strict=True)
    ]
