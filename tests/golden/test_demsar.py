"""Rank statistics against the worked example of Demsar (JMLR 7, 2006) and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedpriv.reports.ranks import critical_difference, nemenyi, rank_table, wilcoxon_holm
from fedpriv.reports.statistics import holm

RULES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
# table 6: areas under the curve on 14 data sets (more is better)
AUC = np.array([
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749],  # printed 0.975; the paper ranks it third
    [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def test_the_example_of_demsar():
    table = rank_table(RULES, -AUC.T)
    np.testing.assert_allclose(table.mean, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    # the paper computes chi-square and F without the correction for ties; with it they are a little larger
    ranks, blocks, count = table.mean, 14, 4
    plain = 12 * blocks / (count * (count + 1)) * ((ranks**2).sum() - count * (count + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    assert (blocks - 1) * plain / (blocks * (count - 1) - plain) == pytest.approx(3.69, abs=0.01)
    assert plain < table.chi2 < 1.12 * plain and table.differ
    assert critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=0.01)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=0.01)
    # at 0.10 "C4.5 performs significantly worse than C4.5+m and C4.5+m+cf"
    lax = rank_table(RULES, -AUC.T, alpha=0.10)
    assert lax.groups() == [("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5")]
    # "the post-hoc test is not powerful enough" at 0.05: differences of 1.143 and 1.179 stay below 1.25
    assert table.groups() == [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]


@pytest.mark.parametrize(
    ("alpha", "published"),
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_critical_values_of_nemenyi(alpha, published):
    """Table 5(a): q for 2 to 10 classifiers."""
    for count, q in zip(range(2, 11), published, strict=True):
        unit = np.sqrt(count * (count + 1) / 6)  # one block
        assert critical_difference(count, 1, alpha) / unit == pytest.approx(q, abs=1.5e-3)


def test_the_signed_rank_example():
    """Table 2: C4.5 against C4.5+m, the smaller sum of ranks is 12."""
    (found,) = wilcoxon_holm(RULES[:2], -AUC.T[:2])
    assert found.statistic == 12 and 0.005 < found.p < 0.02 and found.p_holm == found.p


def test_friedman_is_scipys():
    rng = np.random.default_rng(3)
    errors = np.round(rng.random((5, 20)), 1)  # with ties
    table = rank_table("abcde", errors)
    want = stats.friedmanchisquare(*errors)
    assert table.chi2 == pytest.approx(want.statistic) and table.p == pytest.approx(want.pvalue)


def test_nemenyi_and_its_critical_difference_agree():
    gap = critical_difference(4, 14, 0.05)
    p = nemenyi(np.array([1.0, 1.0 + gap]), 14)  # of two rules ...
    assert p[0, 0] == pytest.approx(1.0)
    four = nemenyi(np.array([1.0, 1.0 + gap, 2.0, 3.0]), 14)  # ... and among four
    assert four[0, 1] == pytest.approx(0.05, abs=1e-4) and p[0, 1] < 0.05


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([float("nan"), 0.01]).tolist() == [1.0, 0.02]
