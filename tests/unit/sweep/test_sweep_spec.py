from __future__ import annotations

import math
import re
import tomllib

import pytest

from fedpriv.errors import InputError
from simulations.sweep import studies
from simulations.sweep.spec import Spec


def make(**parts):
    return Spec.make({"sweep": {"name": "x"}, **parts})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"sweep": {"name": "x", "sedes": 3}}, "'sweep.sedes', the nearest known one is 'seeds'"),
        ({"girds": {}}, "'girds', the nearest known one is 'grid'"),
        ({"arms": [{"name": "a", "each": True}]}, "nearest known one is 'each_client'"),
        ({"grid": {"privacy.cliper": ["flat"]}}, "'privacy.clipper'"),
        ({"grid": {"privacy": {"clipper": "flat"}}}, "is not a list"),
        ({"grid": {"privacy.clipper": ["flat", "flat"]}}, "twice"),
        ({"grid": {"rule": [{"label": "a", "sets": {}}]}}, "label = ..., set ="),
        ({"set": {"privacy.epsilonn": 3}}, "'privacy.epsilon'"),
        ({"grid": {"run.seed": [1, 2]}}, "seeds are in [sweep]"),
        ({"set": {"run.out": "there"}}, "run.out cannot be set"),
        ({"set": {"privacy.epsilon": 3}, "grid": {"privacy.epsilon": [1, 2]}}, "varied by the axis privacy.epsilon"),
        (
            {"arms": [{"name": "a", "set": {"privacy.enabled": False}}], "grid": {"privacy.epsilon": [1, math.inf]}},
            "arm",
        ),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms"),
        ({"sweep": {"name": "x", "seeds": [1, 1]}}, "twice"),
        ({"sweep": {"name": "x", "seeds": 0}}, "number of seeds"),
        ({"sweep": {"name": "a/b"}}, "sweep.name"),
        ({"sweep": {"name": "x", "base": "eia-8"}, "base": {"data": {"days": 100}}}, "keep one"),
        ({"tuning": {"set": {"privacy.bond": 1}}}, "'privacy.bound'"),
    ],
)
def test_what_is_not_valid_is_named(parts, said):
    with pytest.raises(InputError, match=r".") as caught:
        make(**{**parts, "sweep": parts.get("sweep", {"name": "x"})})
    assert said in str(caught.value)


def test_axes_take_plain_values_labels_and_infinite_epsilon():
    spec = make(
        grid={
            "privacy": {"epsilon": [1, math.inf]},
            "partition.kind": ["iid", {"label": "uneven", "set": {"partition": {"kind": "dirichlet", "alpha": 0.1}}}],
        }
    )
    epsilon, kind = spec.axes
    assert [point.set for point in epsilon.values] == [{"privacy.epsilon": 1}, {"privacy.enabled": False}]
    assert [point.label for point in epsilon.values] == [1, math.inf]
    assert [point.label for point in kind.values] == ["iid", "uneven"]
    assert kind.values[1].set == {"partition.kind": "dirichlet", "partition.alpha": 0.1}


def test_seeds_by_number_list_and_word():
    assert make(sweep={"name": "x", "seeds": 3}).sweep.seeds == (1, 2, 3)
    assert make(sweep={"name": "x", "seeds": [7, 9]}).sweep.seeds == (7, 9)
    assert make().override({"sweep.seeds": "4,5"}).sweep.seeds == (4, 5)


def test_overrides_reach_the_sweep_the_grid_and_the_scenario():
    spec = make(grid={"privacy.epsilon": [1, 2]}).override(
        {"grid.privacy.epsilon": "4,inf", "federation.rounds": 9, "sweep.sample": 1}
    )
    assert [point.label for point in spec.axes[0].values] == [4, math.inf]
    assert spec.scenario().federation.rounds == 9
    assert spec.sweep.sample == 1
    with pytest.raises(InputError, match=r"--set grid\.privacy\.epsilon"):
        spec.override({"privacy.epsilon": 3})


def test_the_complete_sweep_is_itself_and_needs_nothing_else(tmp_path):
    (tmp_path / "mine.toml").write_text('[run]\nname = "mine"\n[federation]\nrounds = 7\n')
    (tmp_path / "sweep.toml").write_text(
        '[sweep]\nname = "x"\nbase = "mine.toml"\n[set]\n"privacy.bound" = 2.0\n'
        '[grid]\n"privacy.epsilon" = [1, inf]\n[[arms]]\nname = "a"\n[quick]\nseeds = 1\n'
    )
    complete = Spec.from_toml(tmp_path / "sweep.toml").complete()
    again = Spec.make(tomllib.loads(complete.to_toml()))
    assert again == complete == again.complete()
    assert again.scenario().federation.rounds == 7
    assert again.scenario().privacy.bound == 2.0
    assert again.sweep.base == "" and not again.set


def test_quick_replaces_what_it_names():
    spec = make(
        sweep={"name": "x", "seeds": 3},
        grid={"privacy.epsilon": [1, 2], "privacy.clipper": ["flat", "psac"]},
        arms=[{"name": "a"}, {"name": "b"}],
        quick={"seeds": 1, "set": {"federation.rounds": 5}, "grid": {"privacy.epsilon": [2]}, "arms": ["b"]},
    ).quicker()
    assert spec.sweep.name == "x-quick"
    assert spec.sweep.seeds == (1,)
    assert [[point.label for point in axis.values] for axis in spec.axes] == [[2], ["flat", "psac"]]
    assert [arm.name for arm in spec.arms] == ["b"]
    with pytest.raises(InputError, match=r"no section \[quick\]"):
        make().quicker()


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_valid_and_has_a_quick_version(name):
    spec = studies.load(name)
    assert spec.sweep.name == name
    assert f"x {len(spec.sweep.seeds)} seed" in studies.describe(name), "counted from the grid"
    assert spec.quicker().sweep.name == f"{name}-quick"
    # what a study says of itself stands on the page of its short version too, and of one with other seeds or epsilons
    counted = r"\b(\d+|one|two|three|four|five|six|seven|eight) (paired )?(seed|epsilon|rule|partition)s?\b|epsilon \d"
    assert not re.search(counted, spec.sweep.about.replace("epsilon 10000", ""), re.IGNORECASE)


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="clippers-noniid"):
        studies.load("clipper-noniid")
