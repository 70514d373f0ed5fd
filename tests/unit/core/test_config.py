"""The scenario: one schema in three shapes, and errors that teach."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpriv.config import Scenario, known_keys, parse_assignments
from fedpriv.errors import InputError

ROOT = Path(__file__).parents[3]


def test_flat_and_nested_and_toml_describe_the_same_scenario(tmp_path):
    scenario = Scenario().override(
        {
            "privacy.clipper": "psasc",
            "privacy.clipper_options": {"r": 0.1, "s": 0.5},
            "data.clients": ["a b", "c,d"],
            "privacy.noise_multiplier": 4.5,
        }
    )
    assert Scenario.from_flat(scenario.flat()) == scenario
    assert Scenario().override(scenario.nested()) == scenario
    path = tmp_path / "scenario.toml"
    path.write_text(scenario.to_toml(), encoding="utf-8")
    assert Scenario.from_toml(path) == scenario


def test_flat_values_are_scalars_as_flower_needs_them():
    assert all(isinstance(v, str | int | float | bool) for v in Scenario().flat().values())


def test_pyproject_holds_the_complete_default_scenario():
    """Flower accepts an override only for a key that is already there."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    flat: dict[str, object] = {}
    for section, keys in config.items():
        for key, value in keys.items():
            flat[f"{section}.{key}"] = value
    assert flat == Scenario().flat()


@pytest.mark.parametrize("path", sorted((ROOT / "simulations" / "scenarios").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_scenario_is_valid_and_carries_its_file_name(path):
    assert Scenario.from_toml(path).run.name == path.stem


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"'privacy\.epsilom'.*'privacy\.epsilon'.*Nothing was started"):
        Scenario().override({"privacy.epsilom": 1})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy.epsilon": 0}, "greater than 0"),
        ({"privacy.epsilon": -1.0}, "privacy.epsilon=-1.0"),
        ({"privacy.delta": 1}, "less than 1"),
        ({"privacy.delta": 2.5}, "less than 1"),
        ({"privacy.noise_multiplier": 0}, "not positive"),
        ({"optimizer.learning_rate": -0.1}, "not positive"),
        ({"privacy.epsilon": float("nan")}, "finite"),
        ({"task.context": "many"}, "valid integer"),
        ({"model.patch": 7}, "does not divide the window"),
        ({"model.width": 65}, "not a multiple of heads"),
        ({"data.train_fraction": 0.9}, "leaves no test part"),
        ({"data.source": "csv"}, "needs data.path"),
        ({"data.scaling": "bounds", "data.low": 2.0}, "is not below"),
        ({"privacy.clipper_options": "{r: 1}"}, "not valid JSON"),
    ],
)
def test_a_value_out_of_range_is_named(changes, says):
    with pytest.raises(InputError, match=says) as caught:
        Scenario().override(changes)
    assert "othing was started" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_or_damaged_scenario_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Scenario.from_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[privacy\nepsilon = 1", encoding="utf-8")
    with pytest.raises(InputError, match="not valid TOML"):
        Scenario.from_toml(bad)


def test_digest_ignores_place_and_machine_and_nothing_else():
    base = Scenario()
    for key, value in {
        "run.out": "x",
        "run.engine": "ray",
        "run.workers": 7,
        "run.name": "other",
        "run.device": "cuda",
        "run.ray_address": "auto",
        "run.num_gpus": 0.5,
        "data.dir": "y",
        "federation.deadline": 1.0,
    }.items():
        assert base.override({key: value}).digest() == base.digest(), key
    for key, value in {"run.seed": 2, "privacy.epsilon": 7.0, "data.seed": 3, "model.skip_rank": 4}.items():
        assert base.override({key: value}).digest() != base.digest(), key


def test_assignments_are_typed_and_checked():
    words = ["privacy.epsilon=4", "privacy.enabled=false", "run.name=a=b", "optimizer.learning_rate=1e-3"]
    assert parse_assignments(words) == {
        "privacy.epsilon": 4,
        "privacy.enabled": False,
        "run.name": "a=b",
        "optimizer.learning_rate": 1e-3,
    }
    with pytest.raises(InputError, match="not KEY=VALUE"):
        parse_assignments(["privacy.epsilon"])


def test_tables_take_a_third_level():
    scenario = Scenario().override({"privacy.clipper_options.r": 0.1, "privacy.clipper_options": "s=0.5"})
    assert scenario.privacy.clipper_options == {"s": 0.5}  # a whole table replaces, a third level adds
    assert scenario.override({"privacy.clipper_options.r": 0.2}).privacy.clipper_options == {"s": 0.5, "r": 0.2}


@given(st.sampled_from(known_keys()), st.text(alphabet="abcdefghij", min_size=1, max_size=3))
def test_a_misspelt_key_is_never_swallowed(key, extra):
    with pytest.raises(InputError, match="unknown scenario key"):
        Scenario().override({key + "_" + extra: 1})


def test_own_files_are_taken_whole_unless_a_number_is_given():
    assert Scenario().override({"data.source": "csv", "data.path": "x.csv"}).partition.clients == 0
    assert (
        Scenario().override({"data": {"source": "csv", "path": "x.csv"}, "partition.clients": 3}).partition.clients == 3
    )
    three = Scenario().override({"data.source": "csv", "data.path": "x.csv", "partition.clients": 3})
    assert three.override({"data.source": "csv"}).partition.clients == 3
    assert Scenario.from_flat(three.flat()) == three
