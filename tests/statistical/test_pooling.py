"""Single cells with three seeds, helped by the others: no winner among equals beyond 5 %, and planted ones are found.

Seeds are fixed; a count passes if it is not rejected at 1e-3.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedpriv.reports.chance import Chance, parts_error, two_way_error
from fedpriv.reports.pooling import Pooled, independent, pool, shared_luck
from fedpriv.reports.statistics import Trials, holm, paired
from fedpriv.reports.verdicts import verdicts

SIGNIFICANCE = 1e-3


def cells(
    rng, *, rules=4, seeds=3, clients=8, scale=(1, 1, 1, 1), shared=0.0, same_clients=False, gains=None, sds=None
):
    """Log errors with effects of seed, client and both, larger in some cells and for some rules; `shared` of the
    variance between seeds is the same luck in all cells."""
    sds = np.ones(rules) if sds is None else np.asarray(sds, dtype=float)
    luck, fixed = rng.standard_normal((rules, seeds)), rng.standard_normal((rules, clients))
    found = {}
    for c, size in enumerate(scale):
        by_seed = np.sqrt(shared) * luck + np.sqrt(1 - shared) * rng.standard_normal((rules, seeds))
        by_client = fixed if same_clients else rng.standard_normal((rules, clients))
        rest = rng.standard_normal((rules, seeds, clients))
        effects = 0.03 * by_seed[:, :, None] + 0.01 * by_client[:, None] + 0.02 * rest
        logs = size * sds[:, None, None] * effects
        if gains is not None:
            logs = logs + np.asarray(gains)[:, None, None]
        names = [tuple(f"{kind}{k}" for k in range(n)) for kind, n in (("r", rules), ("s", seeds), ("k", clients))]
        found[f"c{c}"] = Trials(names[0], names[1], names[2], np.exp(logs))
    return found


def assert_at_most(count: int, trials: int, rate: float) -> None:
    assert stats.binomtest(count, trials, rate, alternative="greater").pvalue > SIGNIFICANCE, count / trials


def told_apart(tables, *, pooled=True) -> bool:
    """Whether a pair in some cell has an adjusted p below 5 %; verdicts ask for an interval without 0 as well."""
    together = pool(tables) if pooled else Pooled()
    p_values = []
    for name, trials in tables.items():
        for a, b in combinations(trials.rules, 2):
            d = np.log(trials.of_rule(a) / trials.of_rule(b))
            p_values.append(two_way_error(d, *together.of(name, a, b)).p(float(d.mean())))
    return bool(holm(p_values).min() < 0.05)


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"shared": 0.6},
        {"shared": 1.0},
        {"scale": (1, 1, 0.5, 3), "shared": 0.3},
        {"rules": 8, "sds": (1, 0.1, 0.3, 1, 1, 2, 1, 1), "scale": (1, 1, 1, 3)},
        {"same_clients": True, "scale": (3, 3, 2, 2, 1, 1), "shared": 0.5},
        {"rules": 2, "scale": (1, 1, 1, 4)},
    ],
    ids=str,
)
def test_equal_rules_have_a_winner_somewhere_in_five_percent_of_sweeps_at_most(structure):
    """A sweep is wrong if one pair in one cell is told apart."""
    rng = np.random.default_rng(41)
    trials = 250
    wrong = sum(told_apart(cells(rng, **structure)) for _ in range(trials))
    assert_at_most(wrong, trials, 0.05)


def test_planted_winners_are_found_in_single_cells():
    rng = np.random.default_rng(43)
    found = alone = 0
    for _ in range(12):
        tables = cells(rng, rules=5, clients=8, gains=[0, -0.25, 0, 0.05, 0.1], shared=0.2)
        by = verdicts(tables, pooled=pool(tables).of)
        assert {v.best for v in by.values()} == {"r1"}
        found += sum(v.outcome == "winner" for v in by.values())
        alone += sum(v.outcome == "winner" for v in verdicts(tables).values())
    assert found >= 30 and alone <= 10, (found, alone)  # of 48: three seeds by themselves find next to nothing


def test_the_spread_of_a_cell_is_known_better_together():
    """Cells of one scale and luck of their own: the pooled variance is nearer the truth than the cell's own."""
    rng = np.random.default_rng(47)
    own, together, freedom = [], [], []
    for _ in range(60):
        tables = cells(rng, rules=6, scale=(1, 2, 1, 2), clients=6)
        fit = pool(tables).seeds[0]
        d = np.log(tables["c0"].of_rule("r0") / tables["c0"].of_rule("r1")).mean(axis=1)
        spread = fit.spreads["c0", ("r0", "r1")]
        own.append(np.log(d.var(ddof=1)))
        together.append(np.log(spread.variance))
        freedom.append(fit.freedom)
    assert np.std(together) < 0.7 * np.std(own)
    assert min(freedom) >= 2 and np.median(freedom) > 3


def test_shared_luck_and_independent_rules_are_measured():
    rng = np.random.default_rng(53)
    values = rng.standard_normal((6, 5, 4))
    values -= values.mean(axis=1, keepdims=True)
    values -= values.mean(axis=2, keepdims=True)
    assert shared_luck(values) < 0.4
    assert shared_luck(np.repeat(values[:1], 6, axis=0)) == 1.0
    twice = np.concatenate([values[:, :1], values[:, :1], -values[:, :1]], axis=1)
    assert independent(twice) == pytest.approx(1.0)
    assert 3 < independent(values) <= 4.01


def test_clients_of_several_dealings_are_no_repeats():
    """Eight utilities dealt out four times: without a difference, 5 % false alarms; as 32 clients there are more."""
    rng, trials, wrong, naive = np.random.default_rng(59), 400, 0, 0
    for _ in range(trials):
        fixed = rng.standard_normal((2, 1, 8))  # the same utilities lie behind every dealing
        parts = [0.03 * fixed + 0.005 * rng.standard_normal((2, 3, 8)) for _ in range(4)]
        errors = np.exp(np.concatenate(parts, axis=2))
        one = Trials(("a", "b"), ("1", "2", "3"), tuple(map(str, range(32))), errors)
        wrong += paired(replace(one, parts=(8,) * 4), "a", "b", draws=200).p < 0.05
        naive += paired(one, "a", "b", draws=200).p < 0.05
    assert_at_most(wrong, trials, 0.05)
    assert naive / trials > 0.2


def test_parts_by_hand():
    """Two parts with means 1 and 3 of clients that differ by 2: deviations add up as if they were one."""
    parts = [np.array([[0.0, 2.0], [0.0, 2.0]]), np.array([[2.0, 4.0], [2.0, 4.0]])]
    found = parts_error(parts)
    assert found.error == pytest.approx(np.sqrt(2) / np.sqrt(2))  # sd of (0, 2) / sqrt 2, the mean of two such
    assert found.freedom == 1
    assert two_way_error(np.concatenate(parts, axis=1)).error < found.error * 0.95


def test_far_out_a_source_with_two_degrees_of_freedom_is_not_forgotten():
    """By hand: a third of the variance from seeds, two thirds from clients, so weights 1 and 4."""
    chance = Chance(1.0, 8.0, ((1.0, 2.0), (2.0, 20.0)))
    mixture = (2 * stats.t.sf(8.0, 2) + 4 * 2 * stats.t.sf(8.0, 20)) / 5
    assert chance.p(8.0) == pytest.approx(mixture) and mixture > 10 * stats.t.sf(8.0, 8)
    assert chance.p(2.0) == pytest.approx(2 * stats.t.sf(2.0, 8))
    assert chance.p(8.0) < chance.p(7.0) < chance.p(3.0) and Chance(0.0, 1.0).p(0.0) == 1.0


def test_the_rate_holds_far_out():
    """Seeds matter most and there are three of them: 1 in 500 comes out as 1 in 500 to 1 in 200, not as 1 in 100."""
    rng, trials = np.random.default_rng(61), 12_000
    found = []
    for _ in range(trials):
        d = rng.standard_normal((3, 1)) + 0.15 * rng.standard_normal((1, 8)) + 0.3 * rng.standard_normal((3, 8))
        found.append(two_way_error(d).p(float(d.mean())))
    assert_at_most(int((np.array(found) < 0.002).sum()), trials, 0.005)
    assert_at_most(int((np.array(found) < 0.05).sum()), trials, 0.055)
