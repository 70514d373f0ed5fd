"""Factors at C = 1 against the table of papers spec B.18, and the peaks of B.4 and B.5."""

import math

import pytest
import torch

from fedpriv.privacy import make_clipper

NORMS = [0.0, 1e-12, 1e-3, 1e-2, 0.1, 0.9, 1.0, 10.0, 1e12]
TABLE = {
    ("flat", ()): [1, 1, 1, 1, 1, 1, 1, 0.1, 1e-12],
    ("auto-s", ()): [100, 100, 90.9091, 50, 9.09091, 1.0989, 0.990099, 0.0999001, 1e-12],
    ("nsgd", ()): [100, 100, 90.9091, 50, 9.09091, 1.0989, 0.990099, 0.0999001, 1e-12],
    ("psac", (("r", 0.1),)): [1, 1, 1.0089809, 1.0880317, 1.6666667, 1, 0.91666667, 0.099901088, 1e-12],
    ("psac", (("r", 0.01),)): [1, 1, 1.0987913, 1.9607843, 5.2380952, 1.0977081, 0.99019608, 0.099990011, 1e-12],
    ("psasc", (("r", 0.1), ("s", 0.5))): [
        1, 1, 1.0094902, 1.0939831, 1.8181818, 1.8181818, 1.6923077, 0.19960474, 2e-12,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), list(TABLE))
def test_table_of_factors(name, options):
    clipper = make_clipper(name, bound=1.0, **dict(options))
    got = clipper.factors(torch.tensor(NORMS, dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(TABLE[name, options], dtype=torch.float64), rtol=5e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "where", "peak"),
    [
        ("psac", {"r": 0.1}, 0.2162, 1.8781),
        ("psac", {"r": 0.01}, 0.09, 5.2632),
        ("psasc", {"r": 0.1, "s": 0.5}, 0.3472, 2.5175),
        ("psasc", {"r": 0.01, "s": 0.5}, 0.1314, 7.3302),
        ("psasc", {"r": 0.1, "s": 2.0}, 0.1236, 1.4400),
    ],
)
def test_peak_of_the_factor(name, options, where, peak):
    x = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    factors = make_clipper(name, bound=1.0, **options).factors(x)
    assert float(factors.max()) == pytest.approx(peak, abs=6e-5)
    assert float(x[factors.argmax()]) == pytest.approx(where, abs=6e-5)


def test_stated_bounds():
    assert make_clipper("psasc", bound=1.0, r=0.1, s=0.5).bound == 2.0
    for name in ("flat", "auto-v", "auto-s", "nsgd", "psac", "global-adapt-v2s"):
        assert make_clipper(name, bound=3.0).bound == 3.0


def test_psasc_over_its_bound_is_psac_with_another_numerator():
    x = torch.logspace(-6, 6, 200, dtype=torch.float64)
    got = make_clipper("psasc", bound=1.0, r=0.1, s=0.5).factors(x) / 2.0
    torch.testing.assert_close(got, 1 / (x + 0.2 / (x + 0.1)))


def test_global_adapt_v2s_jumps_down_at_its_threshold():
    clipper = make_clipper("global-adapt-v2s", bound=1.0, z0=2.0, w=0.5)
    below, above = clipper.factors(torch.tensor([2.0, math.nextafter(2.0, 3.0)], dtype=torch.float64)).tolist()
    assert below == 0.5 and above == pytest.approx(1 / (2 + 0.5 / 2.5))
