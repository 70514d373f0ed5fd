"""Construction of clippers: names, options, ranges, schedule, sensitivity."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from dp_accounting import NeighboringRelation

from fedpriv.errors import InputError
from fedpriv.privacy.clippers import CLIPPERS, make_clipper


def test_registry_holds_the_names_of_the_interface():
    assert list(CLIPPERS) == ["flat", "auto-v", "auto-s", "nsgd", "psac", "psasc", "global-adapt-v2s"]
    assert all(make_clipper(name, bound=1.0).name == name for name in CLIPPERS)


@pytest.mark.parametrize(
    ("name", "bound", "options", "words"),
    [
        ("psca", 1.0, {}, "nearest is 'psac'"),
        ("psac", 1.0, {"gamma": 0.1}, "allows: r"),
        ("flat", 1.0, {"r": 0.1}, "allows: none"),
        ("psac", 1.0, {"step": 3}, "no option 'step'"),
        ("psac", 0.0, {}, r"bound=0 is not in \(0, inf\)"),
        ("psac", float("inf"), {}, "bound=inf"),
        ("psac", 1.0, {"r": 0}, r"r=0 is not in \(0"),
        ("psac", 1.0, {"r": float("nan")}, "r=nan"),
        ("psasc", 1.0, {"s": 1e-4}, r"s=0.0001 is not in \[0.001, inf\)"),
        ("auto-s", 1.0, {"gamma": -1.0}, "gamma=-1"),
        ("auto-s", 1.0, {"gamma": "much"}, "'much' is not a number"),
        ("auto-s", 1.0, {"gamma": True}, "is not a number"),
        ("global-adapt-v2s", 1.0, {"decay": 1.5}, r"decay=1.5 is not in \(0, 1\]"),
        ("global-adapt-v2s", 1.0, {"every": 1.5}, "not a whole number"),
        ("global-adapt-v2s", 1.0, {"every": 0}, "every=0"),
    ],
)
def test_bad_input_says_what_is_wrong(name, bound, options, words):
    with pytest.raises(InputError, match=words):
        make_clipper(name, bound=bound, **options)


def test_sensitivity_doubles_under_replacement():
    clipper = make_clipper("psasc", bound=1.0, s=0.5)
    assert clipper.sensitivity(NeighboringRelation.ADD_OR_REMOVE_ONE) == 2.0
    assert clipper.sensitivity(NeighboringRelation.REPLACE_SPECIAL) == 2.0
    assert clipper.sensitivity(NeighboringRelation.REPLACE_ONE) == 4.0


def test_the_threshold_follows_its_public_schedule():
    clipper = make_clipper("global-adapt-v2s", bound=1.0, z0=8.0, decay=0.5, every=10)
    assert [clipper.at(step).z for step in (0, 9, 10, 25, 10_000)] == [8.0, 8.0, 4.0, 2.0, 1e-12]
    assert make_clipper("flat", bound=1.0).at(7) == make_clipper("flat", bound=1.0)


def test_rules_are_frozen_and_print_plainly():
    clipper = make_clipper("psac", bound=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        clipper.r = 3.0
    assert repr(clipper) == "PsacClipper(l2_clip_norm=1.0, r=0.1)"


def test_zero_and_integer_norms():
    assert make_clipper("auto-v", bound=1.0).factors(torch.tensor([0.0, 2.0])).tolist() == [0.0, 0.5]
    assert make_clipper("flat", bound=1.0).factors(torch.tensor([0, 2])).tolist() == [1.0, 0.5]
    assert make_clipper("flat", bound=1.0).factors(torch.zeros(0)).shape == (0,)


def test_importing_the_package_is_cheap():
    code = "import sys, fedpriv.privacy; assert 'torch' not in sys.modules and 'dp_accounting' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
