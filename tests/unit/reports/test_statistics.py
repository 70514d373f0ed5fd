"""Numbers of comparisons that can be checked by hand, and the words that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpriv.data.heterogeneity import gini
from fedpriv.errors import InputError
from fedpriv.reports.atomic import plain
from fedpriv.reports.chance import two_way_error
from fedpriv.reports.critical import critical_difference_diagram
from fedpriv.reports.drawing import LIGHT, STAND_IN, svg
from fedpriv.reports.ranks import rank_table
from fedpriv.reports.statistics import (
    Trials,
    cliff_word,
    cliffs_delta,
    fairness,
    holm,
    paired,
    standardised,
)
from fedpriv.reports.verdicts import verdict


def trials(errors, metric="MSE") -> Trials:
    table = np.asarray(errors, dtype=float)
    a, s, k = table.shape
    return Trials(
        tuple("abcdefgh"[:a]), tuple(map(str, range(s))), tuple(f"client-{i}" for i in range(k)), table, metric
    )


def noisy(gains, *, seeds=4, clients=9, noise=0.01) -> Trials:
    rng = np.random.default_rng(5)
    hard = np.linspace(1, 30, clients)
    shape = (len(gains), seeds, clients)
    return trials(hard * np.exp(np.array(gains)[:, None, None] + noise * rng.standard_normal(shape)))


def test_rows_become_a_table_and_incomplete_seeds_go():
    rows = [
        {"rule": r, "seed": s, "client": c, "value": 10 * i + s}
        for i, (r, s, c) in enumerate((r, s, c) for r in "ab" for s in (1, 2, 3) for c in "xy")
    ]
    whole = Trials.of(rows)
    assert whole.errors.shape == (2, 3, 2) and whole.seeds == ("1", "2", "3")
    assert Trials.of([r for r in rows if (r["rule"], r["seed"], r["client"]) != ("b", 2, "x")]).seeds == ("1", "3")
    with pytest.raises(InputError, match="two values"):
        Trials.of([*rows, {**rows[0], "value": -1}])
    with pytest.raises(InputError, match="no seed has a finite result"):
        Trials.of([r for r in rows if not (r["rule"] == "b" and r["client"] == "x")])
    with pytest.raises(InputError, match="no results"):
        Trials.of([])


def test_ratios_are_geometric_and_antisymmetric():
    table = trials([[[1.0, 20.0], [1.0, 20.0]], [[2.0, 10.0], [2.0, 10.0]]])
    assert paired(table, "a", "b").mean == pytest.approx(0)  # half and double cancel, whatever the clients' sizes
    assert paired(table, "a", "b", scale="difference").mean == pytest.approx(4.5)
    one, two = (paired(noisy([0, 0.1]), *pair) for pair in ("ab", "ba"))
    assert one.mean == pytest.approx(-two.mean) and one.p == pytest.approx(two.p)
    assert one.low < one.mean < one.high and one.change[0] == pytest.approx(np.exp(-0.1) - 1, abs=0.01)


def test_errors_without_a_ratio_are_refused():
    with pytest.raises(InputError, match="not positive"):
        paired(trials(np.zeros((2, 2, 2))), "a", "b")
    with pytest.raises(InputError, match="finite error of every rule"):
        trials([[[1.0, np.nan]], [[1.0, 1.0]]])


def test_two_way_error_by_hand():
    d = np.array([[1.0, 2.0, 6.0], [3.0, 6.0, 6.0]])
    # means 4; seeds 3, 5; clients 2, 4, 6: MS 6, 8 and (0 1 -1; 0 ... )
    rest = d - 4 - np.array([[-1], [1]]) - np.array([[-2, 0, 2]])
    ms_rest = (rest**2).sum() / 2
    assert two_way_error(d).error == pytest.approx(np.sqrt((6 + 8 - ms_rest) / 6))
    assert two_way_error(d[:1]).error == pytest.approx(d[0].std(ddof=1) / np.sqrt(3))
    assert np.isnan(two_way_error(d[:1, :1]).error)


def test_effect_sizes():
    assert cliffs_delta(np.array([1.0, 2]), np.array([3.0, 4])) == -1
    assert cliffs_delta(np.array([1.0, 2]), np.array([1.0, 2])) == 0
    assert [cliff_word(d) for d in (0.1, -0.2, 0.4, -0.9)] == ["negligible", "small", "medium", "large"]
    d = np.array([1.0, 2.0, 3.0])
    assert standardised(d) == pytest.approx(2.0 * (1 - 3 / 7))
    assert standardised(np.array([0.0, 0.0])) == 0 and standardised(np.array([1.0])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_bounded(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-15).all()
    assert adjusted.min() == pytest.approx(min(1, min(p) * len(p)))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_gini_is_in_range(amounts):
    assert -1e-9 <= gini(amounts) <= 1
    assert gini([3.0] * 5) == pytest.approx(0) and gini([0, 0, 0, 1]) == pytest.approx(0.75)


def test_fairness_names_the_worst_client():
    table = trials([[[1.0, 4.0]], [[2.0, 2.0]]])
    found = fairness(table, "a", baseline="b")
    assert found.worst_client == "client-1" and found.worst == 4 and found.losers == 0.5
    assert found.gain_worst == -1 and found.gain_variance == pytest.approx(1.125)
    assert found.p90 == pytest.approx(3.7) and found.gini == pytest.approx(0.3)
    assert np.isnan(fairness(table, "a").losers)


def test_verdict_names_the_winner_with_numbers():
    answer = verdict(noisy([0.2, 0.0, 0.3]))
    assert answer.outcome == "winner" and answer.best == "b" and answer.not_worse == ("b",)
    assert answer.text.startswith("b wins: 17.9 % less MSE than a")
    assert "4 seeds and 9 clients" in answer.text and "3 comparisons" in answer.text
    stored = plain(answer.to_dict())
    assert isinstance(stored, dict) and stored["outcome"] == "winner" and len(stored["pairs"]) == 3


def test_verdict_says_when_there_is_no_evidence():
    answer = verdict(noisy([0.0, 0.0, 0.0], noise=0.1))
    assert answer.outcome == "no-evidence" and answer.not_worse == tuple(
        rule
        for _, rule in sorted((float(np.log(noisy([0.0, 0.0, 0.0], noise=0.1).of_rule(r)).mean()), r) for r in "abc")
    )
    assert (
        answer.text.startswith("No evidence of a difference between") and "not proof that they are equal" in answer.text
    )


def test_verdict_of_two_that_tie_before_a_third():
    answer = verdict(noisy([0.0, 0.0, 0.5], noise=0.03))
    assert answer.outcome == "tie" and set(answer.not_worse) == {"a", "b"}
    assert "no evidence that it differs from" in answer.text and "It is better than c: 39." in answer.text


def test_verdict_without_repetition_cannot_tell():
    assert verdict(trials([[[1.0]], [[2.0]]])).outcome == "cannot-tell"
    assert verdict(trials([[[1.0, 2.0]]])).outcome == "cannot-tell"
    one_seed = verdict(noisy([0.0, 0.3], seeds=1))
    assert one_seed.outcome == "winner" and "With one seed, how much results vary between seeds" in one_seed.text


def test_identical_rules_do_not_differ():
    answer = verdict(trials(np.ones((2, 3, 4))))
    assert answer.outcome == "no-evidence" and answer.pairs[0].p == 1


def test_groups_are_maximal_and_within_the_critical_difference():
    rng = np.random.default_rng(2)
    errors = rng.random((6, 8)) + 0.15 * np.arange(6)[:, None]
    table = rank_table("abcdef", errors)
    rank = dict(zip(table.rules, table.mean, strict=True))
    for group in table.groups():
        assert max(rank[r] for r in group) - min(rank[r] for r in group) <= table.critical
    for a in table.groups():
        assert not any(set(a) < set(b) for b in table.groups())
    for a in "abcdef":
        for b in "abcdef":
            joined = any({a, b} <= set(group) for group in table.groups())
            assert a == b or joined == (abs(rank[a] - rank[b]) <= table.critical)


@pytest.mark.parametrize("differ", [True, False])
def test_the_critical_difference_diagram(differ):
    rng = np.random.default_rng(4)
    errors = rng.random((5, 9)) + (0.4 * np.arange(5)[:, None] if differ else 0)
    table = rank_table(("psac", "auto-s", "flat", "a $ rule", "r" * 40), errors)
    assert table.differ == differ
    figure = critical_difference_diagram(table)(LIGHT)
    words = " ".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title])
    assert ("no evidence of a difference" in words) != differ
    drawn = svg(critical_difference_diagram(table), "cd", "ranks")
    assert "var(--fig-" in drawn and STAND_IN.text not in drawn
    with pytest.raises(InputError, match="at least 2 rules"):
        rank_table("a", errors[:1])
