"""The value of joining on simulated results whose gains are known, and contributions by hand."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations

import numpy as np
import pytest

from fedpriv.reports.comparison import write_comparison
from fedpriv.reports.comparison.collaboration import value_of_joining
from fedpriv.reports.comparison.shapley import leave_one_out, shapley
from fedpriv.reports.comparison.sweep import Sweep
from tests.unit.comparison.simulated import UTILITIES, collaboration

GAIN = dict(zip(UTILITIES, (0.3, 0.25, 0.2, 0.15, 0.1, 0.1, -0.2, 0.3), strict=True))


@pytest.fixture(scope="module")
def value(tmp_path_factory):
    made = collaboration(gain=GAIN, noise=0.004, seeds=5)
    return value_of_joining(Sweep.open(made.write(tmp_path_factory.mktemp("c") / "sweep")))


def test_gains_are_those_that_were_planted(value):
    assert value.alternative == ("local", False)
    for at in value.joining:
        for gain in at.clients:
            assert math.log(1 - gain.gain) == pytest.approx(0.2 / at.epsilon - GAIN[gain.client], abs=0.01)
    mean = np.mean(list(GAIN.values()))
    assert math.log(1 - value.joining[-1].gain[0]) == pytest.approx(0.2 / 8 - mean, abs=0.005)


def test_who_gains_and_who_loses(value):
    last = value.joining[-1]
    assert last.of("loses") == ["NYIS-ZONJ"]
    assert set(last.of("gains")) == set(UTILITIES) - {"NYIS-ZONJ"}
    assert set(value.joining[0].of("gains")) == set()


def test_break_even_epsilons(value):
    # the gain crosses 0 at 0.2 / gain; interpolation in log epsilon is rough between 0.5, 2 and 8
    assert value.by_client["BPAT"].epsilon == pytest.approx(0.8, rel=0.4)
    assert value.by_client["BPAT"].least <= value.by_client["BPAT"].epsilon <= value.by_client["BPAT"].most
    assert math.isinf(value.by_client["NYIS-ZONJ"].epsilon)
    assert value.overall.within


def test_against_the_others(value):
    curator = value.price[("centralised", True), 0.5]
    assert curator.mean == pytest.approx(0.2 / 0.5 * (1 - 1 / 3), abs=0.01)
    alone = value.price[("local", True), 0.5]
    assert alone.mean == pytest.approx(-2 * 0.2 / 0.5 - np.mean(list(GAIN.values())), abs=0.01)
    assert value.same_promise[0].gain[0] > 0


def test_the_page_says_so(tmp_path):
    path = collaboration(gain=GAIN, noise=0.004).write(tmp_path / "sweep")
    write_comparison(path)
    found = json.loads((path / "comparison.json").read_text())
    assert found["headline"].startswith("No evidence that joining helps or hurts on average at epsilon 8 (")
    assert found["headline"].endswith("less error than alone, no privacy, which may be chance).")
    said = " ".join(found["answer"])
    assert "clearly lose: NYIS-ZONJ" in said and "going by the averages 7 of 8 have less error" in said
    assert "Going only by the averages, which may be chance, joining would pay" in said
    assert "A break-even epsilon is not established" in said
    assert "No break-even in this range for NYIS-ZONJ" in " ".join(found["answer"])
    assert {p.stem for p in (path / "figures").glob("*.png")} >= {"joining", "joining-epsilon", "settings"}


def test_baselines_that_were_not_trained_well_are_named_before_any_claim(tmp_path):
    """Alone without privacy is made worse than seasonal naive: a gain over it is no gain."""
    made = collaboration(gain=GAIN, noise=0.004)
    for row in made.rows:
        if row["arm"] == "alone-open" and row["model"] == "federated" and row["metric"] == "mse":
            row["value"] *= 1.5
    path = made.write(tmp_path / "sweep")
    write_comparison(path)
    headline = json.loads((path / "comparison.json").read_text())["headline"]
    assert headline.startswith("The gain of joining cannot be judged from these runs: “alone, no privacy” (+")
    assert "more error than repeating the last day (seasonal naive), and more than when trained with noise" in headline
    assert headline.index("cannot be judged") < headline.index("joining pays")
    value = value_of_joining(Sweep.open(path))
    assert [weak.setting for weak in value.weak] == [("local", False)]
    assert value.weak[0].naive == pytest.approx(math.log(1.5) - 0.2, abs=0.01)


def test_sound_baselines_are_not_called_weak(value):
    assert value.weak == ()


def test_alone_is_never_a_name_by_itself(tmp_path):
    """Two settings are trained alone; every table, legend and sentence says which of them it means."""
    path = collaboration(gain=GAIN, noise=0.004).write(tmp_path / "sweep")
    write_comparison(path)
    found = json.loads((path / "comparison.json").read_text())
    assert set(found["contenders"]) == {
        "federated, private",
        "federated, no privacy",
        "alone, private",
        "alone, no privacy",
        "trusted curator, private",
    }
    html = (path / "report.html").read_text()
    body = re.sub(r"<svg.*?</svg>", "", html[html.index("<h1>") : html.index('id="meaning"')], flags=re.DOTALL)
    cells = [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", body, re.DOTALL)]
    assert "alone, private" in cells and "alone" not in cells
    text = " ".join([found["headline"], *found["answer"]])
    assert not re.search(r"\balone\b(?!, (no privacy|private))", text.replace("chance alone", "")), text


def test_a_break_even_without_evidence_is_not_shown_as_one(tmp_path):
    path = collaboration(gain=dict.fromkeys(UTILITIES[:3], 0.03), noise=0.2, seeds=2).write(tmp_path / "sweep")
    write_comparison(path)
    html = (path / "report.html").read_text()
    assert "<b>not established</b>" in html
    text = " ".join(json.loads((path / "comparison.json").read_text())["answer"])
    assert "Going only by the averages, which may be chance" in text and " joining pays" not in text


def test_what_each_setting_asks_to_trust_is_said(tmp_path):
    path = collaboration(gain=GAIN).write(tmp_path / "sweep")
    write_comparison(path)
    html = (path / "report.html").read_text()
    promise = html[html.index('id="promise"') : html.index('id="tuning"')]
    for said in (
        "Simulation with seeded noise, not a guarantee",
        "The curator sees the raw readings of everybody",
        "Nothing is sent",
        "Not promised",
        "All runs of this sweep together",
        "no window that touches one reading had contributed",
    ):
        assert said in promise, said


def test_means_have_one_order_in_table_and_picture(value):
    """Both are geometric: the order of settings by error is that of their errors against seasonal naive."""
    means = {key: np.log(errors).mean() for key, errors in value.errors.items()}
    against = {key: value.against_naive(*key) for key in value.errors}
    assert sorted(means, key=lambda key: means[key]) == sorted(against, key=lambda key: against[key])


CLIENTS = ("a", "b", "c")


def game(worth):
    """Coalition errors such that the value of a coalition is `worth` of it, the same for all of its members."""
    runs = {}
    for size in (1, 2, 3):
        for members in combinations(CLIENTS, size):
            share = worth(frozenset(members)) * len(CLIENTS) / size
            runs[frozenset(members)] = {c: {"1": math.exp(-share), "2": math.exp(-share)} for c in members}
    return runs, {c: {"1": 1.0, "2": 1.0} for c in CLIENTS}


def test_shapley_of_the_glove_game():
    """a has a left glove, b and c a right one each; a pair is worth 1. Textbook values: 2/3, 1/6, 1/6."""
    runs, alone = game(lambda s: float("a" in s and len(s) > 1))
    found = {c.client: c for c in shapley(CLIENTS, runs, alone)}
    assert [found[c].value for c in CLIENTS] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert all(c.exact for c in found.values())


def test_shapley_from_sampled_orders_adds_up_and_needs_whole_orders():
    runs, alone = game(lambda s: float("a" in s and len(s) > 1))
    some = {k: v for k, v in runs.items() if k in map(frozenset, ({"b"}, {"a", "b"}, {"a", "b", "c"}))}
    found = {c.client: c.value for c in shapley(CLIENTS, some, alone)}
    assert found == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.0})  # the one order b, a, c
    assert shapley(CLIENTS, {k: v for k, v in some.items() if len(k) != 1}, alone) == ()
    assert shapley(CLIENTS, {k: v for k, v in some.items() if len(k) != 2}, alone) == ()


def test_leave_one_out_by_hand():
    whole = {c: {"1": 1.0, "2": 2.0} for c in CLIENTS}
    runs = {frozenset(CLIENTS): whole, frozenset("ab"): {c: {"1": 1.1, "2": 2.2} for c in "ab"}}
    (found,) = leave_one_out(CLIENTS, runs)
    assert found.client == "c" and found.value == pytest.approx(math.log(1.1))
