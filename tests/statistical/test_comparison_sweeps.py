"""The answer of whole sweeps: no winner among equals beyond 5 %, and the planted winner where there is one."""

from __future__ import annotations

import pytest
from scipy import stats

from fedpriv.reports.comparison.analysis import analyse
from tests.unit.comparison.simulated import clippers, in_memory

SIGNIFICANCE = 1e-3
CLIENTS = tuple(f"u{k}" for k in range(6))


@pytest.mark.slow
def test_equal_rules_have_a_winner_in_five_percent_of_sweeps_at_most(tmp_path):
    """Over two partitions and two epsilons; one rule that differs from another anywhere is a false alarm."""
    trials, overall, cells = 120, 0, 0
    for seed in range(trials):
        made = clippers(gains={"a": 0.0, "b": 0.0, "c": 0.0}, clients=CLIENTS, seed=seed)
        found = analyse(in_memory(made, tmp_path))
        assert found.overall is not None
        overall += found.overall.outcome != "no-evidence"
        cells += any(cell.verdict and cell.verdict.outcome != "no-evidence" for cell in found.cells.values())
    for count in (overall, cells):
        assert stats.binomtest(count, trials, 0.05, alternative="greater").pvalue > SIGNIFICANCE, count


def test_the_planted_winner_wins(tmp_path):
    won = 0
    for seed in range(20):
        made = clippers(gains={"a": 0.0, "b": -0.15, "c": 0.02, "d": 0.05}, clients=CLIENTS, seed=1000 + seed)
        found = analyse(in_memory(made, tmp_path))
        assert found.best == "b" and {cell.best for cell in found.cells.values()} == {"b"}
        won += found.overall is not None and found.overall.outcome == "winner"
    assert won >= 17
