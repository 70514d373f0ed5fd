"""What comparison statistics conclude on simulated results: 5 % false alarms without a difference, and the planted
winner with one. Seeds are fixed; a count passes if it is not rejected at 1e-3."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedpriv.reports.ranks import rank_table, wilcoxon_holm
from fedpriv.reports.statistics import Trials, paired
from fedpriv.reports.verdicts import verdict

SIGNIFICANCE = 1e-3
TRIALS = 600


def results(rng, *, rules=2, seeds=3, clients=8, gains=None, seed_sd=0.03, client_sd=0.03, rest_sd=0.03) -> Trials:
    """Errors with the structure of real ones: clients of very different difficulty, which all rules share; and for
    each rule effects of the seed, of the client, and of both."""
    hard = np.exp(0.8 * rng.standard_normal(clients))
    shape = (rules, seeds, clients)
    effect = (
        seed_sd * rng.standard_normal((rules, seeds, 1))
        + client_sd * rng.standard_normal((rules, 1, clients))
        + rest_sd * rng.standard_normal(shape)
    )
    if gains is not None:
        effect = effect + np.asarray(gains)[:, None, None]
    names = tuple(f"rule-{k}" for k in range(rules))
    return Trials(names, tuple(map(str, range(seeds))), tuple(f"c{k}" for k in range(clients)), hard * np.exp(effect))


def assert_rate(count: int, trials: int, low: float, high: float) -> None:
    """The count is compatible with some rate in [low, high]."""
    assert stats.binomtest(count, trials, high, alternative="greater").pvalue > SIGNIFICANCE, count / trials
    assert stats.binomtest(count, trials, low, alternative="less").pvalue > SIGNIFICANCE, count / trials


@pytest.mark.parametrize(
    ("seeds", "clients", "seed_sd", "client_sd"),
    [
        (3, 8, 0.03, 0.03),
        (3, 8, 0.0, 0.03),
        (5, 20, 0.03, 0.03),
        (3, 8, 0.06, 0.01),
        (1, 10, 0.0, 0.03),
        (3, 8, 0.0, 0.0),
    ],
)
def test_five_percent_false_alarms(seeds, clients, seed_sd, client_sd):
    rng = np.random.default_rng([seeds, clients, int(100 * seed_sd), 7])
    p_values, outside = [], 0
    for _ in range(TRIALS):
        trials = results(rng, seeds=seeds, clients=clients, seed_sd=seed_sd, client_sd=client_sd)
        found = paired(trials, "rule-0", "rule-1", draws=1000)
        p_values.append(found.p)
        outside += not found.low <= 0 <= found.high
    # the approximation by Satterthwaite is good to a point or two with three seeds; where neither seeds nor clients
    # matter at all it still pays for asking, with fewer false alarms than stated
    low = 0.03 if seed_sd or client_sd else 0.005
    assert_rate(int((np.array(p_values) < 0.05).sum()), TRIALS, low, 0.07)
    assert_rate(outside, TRIALS, low, 0.08)


def test_resampling_cells_alone_would_cry_wolf():
    """Why the two-way error is needed: with shared seeds and clients, S x K cells are not independent."""
    rng = np.random.default_rng(11)
    count = 0
    for _ in range(TRIALS):
        trials = results(rng)
        d = np.log(trials.errors[0] / trials.errors[1]).ravel()
        count += stats.ttest_1samp(d, 0).pvalue < 0.05
    assert count / TRIALS > 0.15


@pytest.mark.parametrize("rules", [2, 4])
def test_no_winner_among_equals(rules):
    rng = np.random.default_rng([13, rules])
    outcomes = [verdict(results(rng, rules=rules)).outcome for _ in range(150)]
    told = sum(outcome != "no-evidence" for outcome in outcomes)
    assert_rate(told, len(outcomes), 0.0 if rules > 2 else 0.03, 0.07)


@pytest.mark.parametrize(("seeds", "least"), [(3, 30), (5, 54)])
def test_the_planted_winner_is_found(seeds, least):
    """Three seeds by themselves are few for six comparisons: the spread between them is known from two numbers."""
    rng = np.random.default_rng(17)
    answers = [verdict(results(rng, rules=4, seeds=seeds, clients=10, gains=[0, -0.3, 0, 0.1])) for _ in range(60)]
    assert all(a.best == "rule-1" for a in answers)
    assert sum(a.outcome == "winner" for a in answers) >= least
    assert all("rule-1" in a.text for a in answers)


def test_the_interval_covers_a_planted_difference():
    rng = np.random.default_rng(19)
    covered = 0
    for _ in range(TRIALS):
        found = paired(results(rng, gains=[-0.1, 0.0]), "rule-0", "rule-1", draws=1000)
        covered += found.low <= -0.1 <= found.high
    assert_rate(TRIALS - covered, TRIALS, 0.03, 0.08)


def test_friedman_and_nemenyi_hold_their_level():
    """For given seeds, that is where seeds do not shift all clients alike."""
    rng, trials = np.random.default_rng(23), 300
    omnibus = family = signed = 0
    for _ in range(trials):
        errors = results(rng, rules=4, clients=12, seed_sd=0.0).by_client
        table = rank_table("abcd", errors)
        omnibus += table.differ
        family += bool((table.nemenyi < 0.05).any())
        signed += any(w.p_holm < 0.05 for w in wilcoxon_holm("abcd", errors))
    assert_rate(omnibus, trials, 0.035, 0.065)
    assert_rate(family, trials, 0.02, 0.06)
    assert_rate(signed, trials, 0.01, 0.06)


def test_rank_tests_take_the_seeds_as_given():
    """Why they do not decide: a shift that all clients of a seed share is a difference to them."""
    rng = np.random.default_rng(29)
    differ = sum(rank_table("abcd", results(rng, rules=4, clients=12).by_client).differ for _ in range(100))
    assert differ > 25
