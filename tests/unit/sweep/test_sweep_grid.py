from __future__ import annotations

import pytest

from fedpriv.errors import InputError
from simulations.sweep.coalitions import coalitions
from simulations.sweep.grid import combinations, distinct, plan
from simulations.sweep.resolver import FACTOR
from simulations.sweep.spec import Spec

BASE = {
    "data": {"days": 120},
    "partition": {"clients": 2},
    "federation": {"rounds": 4},
    "model": {"depth": 0},
    "evaluation": {"windows": 4},
}


def make(**parts):
    return Spec.make({"sweep": {"name": "x", **parts.pop("sweep", {})}, "base": BASE, **parts})


def test_every_arm_with_every_point_and_seed_paired():
    spec = make(
        sweep={"seeds": [5, 6]}, grid={"privacy.clipper": ["flat", "psac"]}, arms=[{"name": "a"}, {"name": "b"}]
    )
    points = plan(spec)
    assert [(p.arm, p.axes["privacy.clipper"], p.seed) for p in points] == [
        (arm, rule, seed) for arm in "ab" for rule in ("flat", "psac") for seed in (5, 6)
    ]
    assert {p.scenario.run.seed for p in points} == {5, 6}
    assert points[0].digest == points[4].digest  # arms that change nothing are the same run
    assert len(distinct(points)) == 4
    assert [p.seed for p in distinct(points)] == [5, 5, 6, 6]


def test_without_privacy_what_only_privacy_reads_makes_no_other_run():
    spec = make(
        grid={
            "privacy.epsilon": [1, 2],
            "privacy.clipper": ["flat", "psac"],
            "privacy.unit": ["reading", "day"],
        },
        set={"privacy.enabled": False},
    )
    assert len(plan(spec)) == 8
    assert len(distinct(plan(spec))) == 1


def test_with_privacy_each_is_its_own():
    spec = make(grid={"privacy.epsilon": [1, 2], "privacy.clipper": ["flat", "psac"]})
    points = plan(spec)
    assert len(distinct(points)) == 4
    assert all(p.scenario.privacy.noise_multiplier for p in points)
    assert all(p.scenario.optimizer.learning_rate for p in points)


def test_each_client_alone_has_its_own_data_and_no_others():
    points = plan(make(arms=[{"name": "together"}, {"name": "alone", "each_client": True}]))
    assert [p.client for p in points] == ["", "utility-000", "utility-001"]
    for point in points[1:]:
        assert point.scenario.data.clients == (point.client,)
        assert point.scenario.partition.clients == 1
    with pytest.raises(InputError, match="each_client"):
        plan(make(arms=[{"name": "alone", "each_client": True}], set={"partition.kind": "iid"}))


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order():
    grid = {"privacy.clipper": ["flat", "psac", "auto-s"], "privacy.bound": [1.0, 2.0, 3.0]}
    every = combinations(make(grid=grid))
    one = combinations(make(grid=grid, sweep={"sample": 4, "sample_seed": 1}))
    again = combinations(make(grid=grid, sweep={"sample": 4, "sample_seed": 1}))
    other = combinations(make(grid=grid, sweep={"sample": 4, "sample_seed": 3}))
    assert len(every) == 9 and len(one) == 4
    assert one == again != other
    places = [every.index(point) for point in one]
    assert places == sorted(places)


def test_all_combinations_are_checked_before_any_is_run():
    spec = make(grid={"privacy.clipper": ["flat", "flut", "psac"], "privacy.bound": [1.0, 2.0]})
    with pytest.raises(InputError, match=r"2 of 6 combinations .*privacy.clipper=flut.*flat"):
        plan(spec)
    with pytest.raises(InputError, match="psasc"):
        plan(
            make(grid={"rule": [{"label": "a", "set": {"privacy.clipper": "psasc", "privacy.clipper_options.s": -1}}]})
        )
    with pytest.raises(InputError, match="nobody"):
        plan(make(set={"data.clients": ["nobody"]}))
    with pytest.raises(InputError, match="momentun"):
        plan(make(set={"strategy.options": {"momentun": 0.5}}))


def test_tuned_settings_are_part_of_the_run():
    plain = plan(make(grid={"privacy.clipper": ["flat", "psac"]}))
    tuned = plan(
        make(grid={"privacy.clipper": ["flat", "psac"]}),
        tuned=lambda point: (
            {FACTOR: 0.5} if point.axes["privacy.clipper"] == "flat" else {"privacy.clipper_options.r": 0.2}
        ),
    )
    before, after = plain[0].scenario.optimizer.learning_rate, tuned[0].scenario.optimizer.learning_rate
    assert before and after == pytest.approx(before / 2, rel=1e-5)
    assert tuned[0].tuned == {FACTOR: 0.5}
    assert tuned[1].scenario.privacy.clipper_options == {"r": 0.2}
    assert {p.digest for p in plain}.isdisjoint(p.digest for p in tuned)


THREE = {**BASE, "partition": {"clients": 3}}
NAMES = ("utility-000", "utility-001", "utility-002")


def of_three(**arm):
    return plan(Spec.make({"sweep": {"name": "x"}, "base": THREE, "arms": [{"name": "a", **arm}]}))


def test_leave_one_out_runs_all_the_others():
    points = of_three(leave_one_out=True)
    assert [p.client for p in points] == [f"without {name}" for name in NAMES]
    assert [set(NAMES) - set(p.scenario.data.clients) for p in points] == [{name} for name in NAMES]
    assert {p.scenario.partition.clients for p in points} == {2}


def test_enough_orders_of_joining_need_every_coalition():
    points = of_three(coalitions=6)
    assert [p.scenario.data.clients for p in points] == [
        *((name,) for name in NAMES), (NAMES[0], NAMES[1]), (NAMES[0], NAMES[2]), (NAMES[1], NAMES[2]),
    ]  # fmt: skip


def test_sampled_orders_are_whole_and_repeatable():
    names = tuple("abcdef")
    found = [frozenset(c) for c in coalitions(names, 5, seed=3)]
    assert found == [frozenset(c) for c in coalitions(names, 5, seed=3)] and len(set(found)) == len(found)
    assert [frozenset(c) for c in coalitions(names, 5, seed=4)] != found
    # every coalition is on the way from one client to all: it has a part and a whole that differ by one
    for chosen in found:
        assert len(chosen) == 1 or any(len(chosen - part) == 1 and part < chosen for part in found)
        assert len(chosen) == 5 or any(len(more - chosen) == 1 and chosen < more for more in found)


def test_parts_of_the_clients_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        of_three(each_client=True, leave_one_out=True)
    with pytest.raises(InputError, match="at least 3 clients"):
        plan(make(arms=[{"name": "a", "leave_one_out": True}]))
    with pytest.raises(InputError, match="need 3 to 14 clients; there are 2"):
        plan(make(arms=[{"name": "a", "coalitions": 2}]))
