"""What privacy costs: the planted cost is found, told from chance, and is the answer of a page about the curve."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpriv.reports.comparison.analysis import analyse
from fedpriv.reports.comparison.collaboration import value_of_joining
from fedpriv.reports.comparison.cost import beats_naive_from, costs
from fedpriv.reports.comparison.cost_words import cost_answer, cost_headline, cost_table, cost_tiles
from fedpriv.reports.comparison.promises import promises
from fedpriv.reports.comparison.summary import summary
from fedpriv.reports.comparison.sweep import Sweep
from fedpriv.reports.comparison.words import answer, headline
from tests.unit.comparison.simulated import UTILITIES, Builder, clippers, in_memory

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)


def curve(cost, *, units=("reading",), models=("diffusion", "ridge"), noise=0.01, seeds=4, seed=0) -> Builder:
    """`cost(epsilon)`: log error of the private model above the same one without noise."""
    made = Builder("curve", seed=seed)
    made.settings["grid"] = {
        "model.kind": list(models),
        "privacy.epsilon": [
            *EPSILONS,
            {"label": "inf", "set": {"privacy.enabled": False, "federation.rounds": 60}},
        ],
        "privacy.unit": list(units),
    }
    rng = made.rng
    naive = dict(zip(UTILITIES, np.exp(-1.5 + 0.6 * rng.standard_normal(len(UTILITIES))), strict=True))
    for unit in units:
        for model in models:
            for epsilon in (*EPSILONS, math.inf):
                for s in range(1, seeds + 1):
                    level = -0.3 + (0.0 if math.isinf(epsilon) else cost(epsilon))
                    errors = {c: naive[c] * math.exp(level + noise * rng.standard_normal()) for c in UTILITIES}
                    axes = {"model.kind": model, "privacy.epsilon": epsilon, "privacy.unit": unit}
                    promised = None if math.isinf(epsilon) else epsilon
                    made.run(errors, naive=naive, axes=axes, seed=s, epsilon=promised)
    return made


def analysed(made: Builder, path):
    return analyse(in_memory(made, path))


def test_the_planted_cost_is_found(tmp_path):
    found = analysed(curve(lambda e: 0.2 / e), tmp_path)
    every = costs(found)
    assert {(c.contender, c.twin) for c in every} == {("diffusion", "diffusion"), ("ridge", "ridge")}
    for cost in every:
        assert list(cost.points) == list(EPSILONS)
        for epsilon, pair in cost.points.items():
            assert pair.mean == pytest.approx(0.2 / epsilon, abs=0.02)
            assert pair.low < 0.2 / epsilon < pair.high
        # log 1.1 is reached where 0.2 / e = 0.0953
        assert cost.near.within and cost.near.epsilon == pytest.approx(2.1, rel=0.15)
        assert cost.near.least <= cost.near.epsilon <= cost.near.most
        # below 0: 0.2 / e < 0.3
        assert cost.beats is not None and 0.5 < cost.beats.epsilon < 1.0
        assert cost.other == ("federation.rounds 60",)


def test_the_page_about_the_curve_answers_with_it(tmp_path):
    sweep = in_memory(curve(lambda e: 0.2 / e, units=("reading", "day")), tmp_path)
    found, value = analyse(sweep), value_of_joining(sweep)
    lead = headline(found, value)
    assert lead == cost_headline(found)
    assert "than the same model without noise" in lead and "at epsilon 8" in lead and "at epsilon 0.5" in lead
    assert "for one reading" in lead and "for one day" in lead and "contender" not in lead
    text = " ".join(answer(found, value, promises(sweep)))
    for said in (
        "within 10 % of no noise from epsilon about 2.",
        "better than repeating the last day (seasonal naive) from epsilon about 0.",
        "also differ in federation.rounds 60",
        "Between the models: No evidence of a difference",
        "Runs at one epsilon for one unit make the same promise",
    ):
        assert said in text, said
    table = cost_table(found)
    assert table is not None and len(table.grid.rows) == 2 * 2 * len(EPSILONS)
    assert len(cost_tiles(found)) == 4
    made = summary(found, value, promises(sweep))
    assert made["cost_of_privacy"][0]["epsilons"][0]["change"] == pytest.approx(math.expm1(0.4), abs=0.05)


def test_no_cost_is_not_told_from_chance(tmp_path):
    found = analysed(curve(lambda e: 0.0, noise=0.05, seed=3), tmp_path)
    lead = cost_headline(found)
    assert "may be chance" in lead
    assert "at every epsilon that was run, from 0.5 on" in " ".join(cost_answer(found))


def test_chance_alone_is_called_a_cost_as_rarely_as_the_level_says(tmp_path):
    wrong = 0
    for seed in range(200):
        made = curve(lambda e: 0.0, models=("ridge",), noise=0.05, seeds=3, seed=seed)
        pair = costs(analysed(made, tmp_path))[0].points[8.0]
        wrong += not pair.low <= 0 <= pair.high
    # 5 % of 200 with 0.1 % of chance on the upper side: at most 22
    assert wrong <= 22


def test_rules_that_mean_nothing_without_noise_have_one_twin(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",), epsilons=(1.0, 8.0, math.inf))
    found = analysed(made, tmp_path)
    assert {cost.twin for cost in costs(found)} == {"no privacy"}
    alone = analysed(clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",)), tmp_path)
    assert costs(alone) == [] and cost_headline(alone) == "" and cost_table(alone) is None


def test_the_point_from_which_naive_is_beaten_is_that_of_the_curve(tmp_path):
    found = analysed(curve(lambda e: 0.6 / e), tmp_path)
    even = beats_naive_from(found, "", found.best)
    assert even is not None and even.within and even.epsilon == pytest.approx(2.0, rel=0.1)


def test_a_sweep_folder_is_read_the_same(tmp_path):
    path = curve(lambda e: 0.2 / e, models=("ridge",)).write(tmp_path / "s")
    assert cost_headline(analyse(Sweep.open(path))).startswith("With privacy the model has")
