"""What a comparison says about simulated results whose truth is known."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from fedpriv.errors import InputError
from fedpriv.reports.comparison import write_comparison
from fedpriv.reports.comparison.analysis import analyse
from fedpriv.reports.comparison.collaboration import value_of_joining
from fedpriv.reports.comparison.curves import break_even, crossing
from fedpriv.reports.comparison.doubts import unscored_words, weak_references
from fedpriv.reports.comparison.sweep import Sweep
from fedpriv.reports.comparison.tables import places
from fedpriv.reports.comparison.words import answer, headline
from tests.unit.comparison.simulated import UTILITIES, Builder, clippers, collaboration


def test_the_planted_winner_is_named_everywhere(clipper_sweep):
    found = json.loads((clipper_sweep / "comparison.json").read_text())
    assert found["outcome"] == "winner" and found["best"] == "psac"
    assert found["contenders"][-1] == "nsgd"
    assert found["headline"].startswith("psac is the best of 4:")
    assert {cell["best"] for cell in found["cells"]} == {"psac"}
    assert len(found["cells"]) == 4 and len(found["not_done"]) == 2
    # what was planted: exp(-0.15) against flat, up to effects of client and seed
    pair = next(p for p in found["overall"]["pairs"] if (p["a"], p["b"]) == ("psac", "flat"))
    assert pair["low"] < -0.15 < pair["high"] and pair["p_holm"] < 0.05


def test_the_size_of_a_sure_difference_is_said_in_words(tmp_path):
    for gain, words in (
        (-0.0001, "more than chance, but of no consequence (0.01 % less error"),
        (-0.01, "reliably but only slightly better"),
        (-0.08, "reliably better"),
        (-0.4, "much better"),
    ):
        made = clippers(gains={"flat": 0.0, "psac": gain}, noise=min(0.001, -gain / 10), seeds=4)
        path = made.write(tmp_path / str(gain))
        found = analyse(Sweep.open(path))
        assert found.overall is not None and found.overall.outcome == "winner"
        assert words in headline(found, None)


def test_a_rank_test_that_does_not_separate_the_first_two_is_not_said_to_agree(tmp_path):
    """Three clients are too few for Nemenyi's comparison of three rules, however steady the difference."""
    made = clippers(
        gains={"flat": 0.0, "psac": -0.1, "auto-s": -0.2}, wheres=("natural",), clients=UTILITIES[:3], noise=0.001
    )
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall is not None and found.overall.outcome == "winner" and found.overall.ranks is not None
    assert not found.overall.ranks.separates("auto-s", "psac")
    assert "does not tell auto-s from psac" in found.overall.text and "agrees" not in found.overall.text
    assert "does not separate auto-s from psac" in " ".join(answer(found, None, ()))


def test_who_loses_is_named_with_the_epsilon(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",), noise=0.001)
    for row in made.rows:
        if row["client"] == "TVA" and row["model"] == "federated" and row["privacy.epsilon"] == 1.0:
            row["value"] *= 1.5
    said = " ".join(answer(analyse(Sweep.open(made.write(tmp_path / "s"))), None, ()))
    assert re.search(r"Not every client gains\..*at epsilon 1 TVA \(\+\d+\.\d %\)\.", said)


def test_other_numbers_of_clients_are_told_apart(tmp_path):
    """Partitions with 8 and 6 scored clients: none adds to the other, and each counts the same."""
    made = clippers(gains={"flat": 0.0, "psac": -0.1})
    gone = {"client-001", "client-002"}
    made.rows = [row for row in made.rows if row["client"] not in gone]
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall is not None and "6 or 8 clients" in found.overall.text
    assert found.overall_trials is not None and found.overall_trials.parts == (8, 6)
    cells = {where: np.log(cell.trials.errors).mean(axis=(1, 2)) for (where, _), cell in found.cells.items()}
    means = np.mean([np.log(c.trials.errors).mean(axis=(1, 2)) for c in found.cells.values()], axis=0)
    assert found.overall_trials.means() == pytest.approx(means) and len(cells) == 2


def test_a_seed_that_one_rule_lacks_is_lost_to_all_and_said(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": 0.0}, wheres=("natural",), epsilons=(8.0,))
    lost = next(run for run in made.runs if run["axes"]["privacy.clipper"] == "psac" and run["seed"] == 2)
    for row in made.rows:
        if row["run"] == lost["run"] and row["client"] == "TVA":
            row["value"] = math.nan
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall_trials is not None and found.overall_trials.seeds == ("1", "3")
    assert any("psac has none at seed 2" in note for note in found.notes)


def test_a_rule_without_any_result_is_left_out_and_said(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": 0.0, "nsgd": 0.1})
    for row in made.rows:
        if row["privacy.clipper"] == "nsgd" and row["privacy.epsilon"] == 1.0:
            row["value"] = math.inf
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall_trials is not None and set(found.overall_trials.rules) == {"flat", "psac"}
    assert any("nsgd has no finite result at all" in note for note in found.notes)
    assert any("Not in every cell" in note and "nsgd" in note for note in found.notes)


def test_runs_without_privacy_are_a_reference_not_a_contender(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",), epsilons=(1.0, 8.0, math.inf))
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.epsilons == (1.0, 8.0)
    assert found.overall is not None and {p for pair in found.overall.pairs for p in (pair.a, pair.b)} == {
        "flat",
        "psac",
    }
    assert found.cells["", None].trials.rules == ("no privacy",)


def test_an_identical_run_counts_once(tmp_path):
    """All epsilons of an arm without privacy are one run, on as many lines as were asked for."""
    made = Builder("free", arms=[{"name": "private"}, {"name": "open", "set": {"privacy.enabled": False}}])
    naive = dict.fromkeys(UTILITIES, 1.0)
    rng = np.random.default_rng(0)
    for seed in (1, 2, 3):
        for epsilon in (1.0, 8.0):
            errors = {c: float(rng.uniform(0.8, 0.9)) for c in UTILITIES}
            made.run(errors, naive=naive, axes={"privacy.epsilon": epsilon}, seed=seed, arm="private", epsilon=epsilon)
        name = made.run({c: 0.7 for c in UTILITIES}, naive=naive, axes={"privacy.epsilon": 1.0}, seed=seed, arm="open")
        made.runs.append({**made.runs[-1], "run": name, "axes": {"privacy.epsilon": 8.0}})
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.cells["", None].trials.errors.shape == (1, 3, 8)


def test_an_unfinished_or_foreign_folder_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        write_comparison(tmp_path / "none")
    with pytest.raises(InputError, match=r"no sweep\.toml"):
        write_comparison(tmp_path)
    made = Builder("clippers")
    made.run({}, naive={}, axes={"privacy.clipper": "flat"}, seed=1, status="failed", error="x")
    with pytest.raises(InputError, match="nothing to compare yet"):
        write_comparison(made.write(tmp_path / "s"))
    (tmp_path / "s" / "runs.json").write_text("{")
    with pytest.raises(InputError, match=r"runs\.json cannot be read as JSON"):
        write_comparison(tmp_path / "s")
    (tmp_path / "s" / "sweep.toml").write_text("[sweep")
    with pytest.raises(InputError, match=r"sweep\.toml cannot be read"):
        write_comparison(tmp_path / "s")


def test_partitions_of_the_same_clients_do_not_count_as_more_clients(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": 0.0}, wheres=("natural", "iid", "dirichlet 0.1"), epsilons=(8.0,))
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall_trials is not None and found.overall_trials.parts == (8, 8, 8)
    assert "8 clients" in (found.overall.text if found.overall else "")
    one = found.overall.pairs[0] if found.overall else None
    single = analyse(Sweep.open(clippers(gains={"flat": 0.0, "psac": 0.0}, epsilons=(8.0,)).write(tmp_path / "one")))
    assert one is not None and single.overall is not None and one.freedom < 3 * 7


def test_break_even():
    # by hand: from -0.1 at 1 to +0.1 at 4 in the middle of the logs, 2
    assert crossing([1, 4], [-0.1, 0.1]) == pytest.approx(2.0)
    assert crossing([1, 4, 16], [-0.3, -0.1, 0.1]) == pytest.approx(8.0)
    assert crossing([1, 4, 16], [0.1, -0.1, 0.1]) == pytest.approx(8.0)  # for good
    assert crossing([1, 4], [0.1, 0.0]) == 1
    assert crossing([1, 4], [0.1, -0.1]) == math.inf
    assert crossing([1, 4], [math.nan, 0.1]) == pytest.approx(4.0)
    even = break_even([1, 4], [-0.1, 0.1], [-0.3, -0.1], [0.1, 0.3])
    assert even.words() == "about 2 (below 1 to above 4)" and even.within
    assert break_even([1, 4], [-0.1, -0.1], [-1, -1], [1, 1]).words() == "none up to 4"
    assert break_even([1, 4], [0.1, 0.1], [0, 0], [1, 1]).words() == "at or below 1"


def test_report_writes_the_page_of_a_sweep(clipper_sweep, capsys):
    from fedpriv.cli import main

    (clipper_sweep / "report.html").unlink()
    assert main(["report", str(clipper_sweep), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "psac"
    assert (clipper_sweep / "report.html").exists()


def test_a_client_without_a_score_is_named(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": 0.0}, wheres=("natural",), epsilons=(8.0,))
    for row in made.rows:
        if row["client"] == "TVA":
            row.update(model="ledger", split="privacy", metric="epsilon")
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.sweep.unscored == {"": ["TVA"]}
    assert unscored_words(found).startswith("1 client has no score: TVA.")
    assert found.overall_trials is not None and len(found.overall_trials.clients) == 7


def test_alone_without_privacy_is_not_called_badly_trained_because_everybody_together_is_better(tmp_path):
    made = collaboration(gain=dict.fromkeys(UTILITIES, 0.3), noise=0.001)
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    cell = next(cell for (_, epsilon), cell in found.cells.items() if epsilon == 8.0)
    means = {rule: cell.trials.of_rule(rule).mean() for rule in cell.trials.rules}
    assert means["federated, private"] < means["alone, private"], "more data, less error"
    assert weak_references(found) == []


def test_a_reference_without_privacy_that_is_no_good_is_said(tmp_path):
    made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=("natural",), epsilons=(8.0, math.inf))
    path = made.write(tmp_path / "s")
    assert weak_references(analyse(Sweep.open(path))) == []
    for row in made.rows:
        if row["model"] == "federated" and math.isinf(row["privacy.epsilon"]):
            row["value"] *= 1.5
    path = made.write(tmp_path / "s")
    (said,) = weak_references(analyse(Sweep.open(path)))
    assert "no privacy has more error than repeating the last day" in said and "against psac at epsilon 8" in said
    write_comparison(path)
    assert "no good reference" in (path / "report.html").read_text()
    assert json.loads((path / "comparison.json").read_text())["weak_references"] == [said]


def test_rules_that_are_one_and_winners_by_a_hair_are_said(tmp_path):
    made = clippers(gains={"a": -0.1003, "b": -0.1, "flat": 0.0}, epsilons=(8.0,), noise=0.00003, seeds=4)
    for row in made.rows:  # a twin of flat
        if row["privacy.clipper"] == "flat":
            made.rows = [*made.rows, {**row, "privacy.clipper": "nsgd", "run": f"{row['run']}t"}]
    made.runs += [
        {**run, "run": f"{run['run']}t", "axes": {**run["axes"], "privacy.clipper": "nsgd"}}
        for run in made.runs
        if run["axes"]["privacy.clipper"] == "flat"
    ]
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    assert found.overall is not None and found.overall.outcome == "winner"
    assert headline(found, None).startswith(
        "a and b are the best of 4 and less than 0.5 % apart: as far as the error goes,"
    )
    assert any(note.startswith("flat and nsgd gave the very same numbers") for note in found.notes)
    # four rules, one of them twice: three comparisons in all
    assert "adjusted for 3 comparisons" in found.overall.text


def test_a_combination_says_whether_it_shows_a_winner(clipper_sweep, tmp_path):
    found = analyse(Sweep.open(clipper_sweep))
    table = places(found)
    assert table is not None
    column = [head.text for head in table.grid.heads].index("verdict")
    said = {row[column].text for row in table.grid.rows}
    assert said <= {"wins", "better than 1 of 3", "better than 2 of 3"} and said
    equal = analyse(Sweep.open(clippers(gains={"a": 0.0, "b": 0.0, "c": 0.0}, seed=3).write(tmp_path / "s")))
    table = places(equal)
    assert table is not None and {row[column].text for row in table.grid.rows} == {"no evidence"}


def test_a_trusted_curator_is_neither_beaten_nor_a_winner_of_a_combination(tmp_path):
    made = collaboration(gain=dict.fromkeys(UTILITIES, 0.0), epsilons=(0.5, 8.0), noise=0.001, seeds=6)
    found = analyse(Sweep.open(made.write(tmp_path / "s")))
    cell = next(cell for (_, epsilon), cell in found.cells.items() if epsilon == 0.5)
    assert cell.best == "trusted curator, private", "it has less error than the federation, by a planted 0.27"
    table = places(found)
    assert table is not None and "left out" in table.text
    names = [head.text for head in table.grid.heads]
    row = next(row for row in table.grid.rows if row[names.index("epsilon")].text == "0.5")
    said = [row[names.index(name)].text for name in ("least error", "verdict", "not told from it")]
    assert said == ["federated, private", "wins", "none: it wins"]
    assert "curator" not in " ".join(cell.text for row in table.grid.rows for cell in row)


def test_fitted_baselines_without_epsilon_are_those_of_runs_without_noise(tmp_path):
    made = collaboration(gain=dict.fromkeys(UTILITIES, 0.0))
    whole = {run["run"]: run for run in made.runs}
    for row in [row for row in made.rows if row["model"] == "last-value"]:
        run = whole[row["run"]]
        value = 0.01 if run["arm"] == "federated-open" else 5.0
        made.rows.append({**row, "model": "ridge", "value": value})
    value = value_of_joining(Sweep.open(made.write(tmp_path / "s")))
    assert value is not None
    assert value.errors["ridge", None] == pytest.approx(0.01)
