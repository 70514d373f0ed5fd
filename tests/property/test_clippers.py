"""Every rule: 0 <= factor, and norm * factor <= bound, whatever the norm and the options."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.privacy.clippers import CLIPPERS, make_clipper

HARD = [0.0, 1e-300, 1e-45, 1e-30, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 3.0, 1e3, 1e6, 1e12, 1e20, 1e30, 1e38, 1e300]
sizes = st.floats(1e-3, 1e3)
OPTIONS = {
    "flat": st.fixed_dictionaries({}),
    "auto-v": st.fixed_dictionaries({}),
    "auto-s": st.fixed_dictionaries({"gamma": sizes}),
    "nsgd": st.fixed_dictionaries({"r": sizes}),
    "psac": st.fixed_dictionaries({"r": sizes}),
    "psasc": st.fixed_dictionaries({"r": sizes, "s": sizes}),
    "global-adapt-v2s": st.fixed_dictionaries(
        {"z0": sizes, "decay": st.floats(0.1, 1.0), "every": st.integers(1, 10), "w": sizes}
    ),
}


def test_every_rule_is_covered():
    assert set(OPTIONS) == set(CLIPPERS)


@pytest.mark.parametrize("name", list(CLIPPERS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_contribution_never_exceeds_the_bound(name, data):
    clipper = make_clipper(name, bound=data.draw(sizes), **data.draw(OPTIONS[name]))
    clipper = clipper.at(data.draw(st.integers(0, 10_000)))
    drawn = data.draw(st.lists(st.floats(0, 1e308), max_size=20))
    norms = torch.tensor(HARD + drawn, dtype=torch.float64)
    factors = clipper.factors(norms)
    assert factors.dtype == torch.float64 and factors.isfinite().all() and (factors >= 0).all()
    assert (norms * factors <= clipper.bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CLIPPERS))
def test_the_list_of_the_specification(name, dtype):
    clipper = make_clipper(name, bound=0.7)
    norms = torch.tensor([0.0, *(10.0**e for e in range(-12, 31)), math.nan, math.inf, -math.inf, -1.0], dtype=dtype)
    factors = clipper.factors(norms)
    assert (factors[-4:] == 0).all()
    assert (norms[:-4].double() * factors[:-4] <= clipper.bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", list(CLIPPERS))
@given(norms=st.lists(st.floats(0, 1e30), min_size=1, max_size=8), index=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_a_factor_depends_on_its_own_norm_only(name, norms, index):
    clipper, x = make_clipper(name, bound=1.0), torch.tensor(norms, dtype=torch.float64)
    i = index % len(norms)
    assert clipper.factors(x)[i] == clipper.factors(x[i : i + 1])[0]
