"""How unlike the clients of each partition are, and partitions that are one under several names."""

from __future__ import annotations

import json

import pytest

from fedpriv.reports.comparison.analysis import analyse
from fedpriv.reports.comparison.divisions import division_table, same_divisions
from fedpriv.reports.comparison.sweep import Sweep
from tests.unit.comparison.simulated import UTILITIES, clippers


def card(kind: str, held: list[list[str]], *, fill: float = 1.0, gini: float = 0.0) -> dict:
    clients = {f"client-{k:03d}": {"units": len(s), "series": s, "fill": fill} for k, s in enumerate(held)}
    return {
        "partition": {"kind": kind, "clients": clients},
        "summary": {"scale_ratio_max_min": 5.1, "quantity_gini": gini, "missing_max": 0.25, "correlation_median": None},
    }


def found(path, cards: dict[str, dict]):
    made = clippers(gains={"flat": 0.0, "psac": -0.1}, wheres=tuple(cards), epsilons=(8.0,), seeds=2)
    folder = made.write(path / "s")
    sweep = Sweep.open(folder)
    for run in sweep.done:
        (sweep.folder(run) / "heterogeneity.json").write_text(json.dumps(cards[sweep.where(run)]))
    return analyse(Sweep.open(folder))


WHOLE = [[name] for name in UTILITIES]


def test_one_series_for_each_client_is_one_division_however_it_is_called(tmp_path):
    every = found(
        tmp_path,
        {
            "natural": card("natural", WHOLE),
            "iid": card("iid", WHOLE[::-1]),
            "quantity": card("quantity", [WHOLE[0] + WHOLE[1], *WHOLE[2:]]),
        },
    )
    (said,) = same_divisions(every)
    assert said.startswith("natural and iid are the same division under other names") and "quantity" not in said


@pytest.mark.parametrize("fill", [1.0, 0.125])
def test_blocks_and_other_holdings_are_different_divisions(tmp_path, fill):
    everything = [list(UTILITIES) for _ in UTILITIES]
    dealt = card("iid", everything, fill=fill) if fill < 1 else card("iid", [WHOLE[0] + WHOLE[1], *WHOLE[2:], ["DUK"]])
    every = found(tmp_path, {"natural": card("natural", WHOLE), "iid": dealt})
    assert same_divisions(every) == []


def test_the_table_has_a_row_for_each_partition(tmp_path):
    everything = [list(UTILITIES) for _ in UTILITIES]
    every = found(tmp_path, {"natural": card("natural", WHOLE), "iid": card("iid", everything, fill=0.125, gini=0.01)})
    table = division_table(every)
    assert table is not None
    rows = [[cell.text for cell in row] for row in table.grid.rows]
    assert [row[:3] for row in rows] == [["natural", "8", "1"], ["iid", "8", "8"]]
    assert "25 %" in rows[0] and "–" in rows[0]
    same = card("natural", WHOLE)
    assert division_table(found(tmp_path / "one", {"natural": same, "iid": same})) is None
