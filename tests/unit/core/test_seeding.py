"""Random streams: named and repeatable in simulation, unpredictable in deployment."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedpriv.seeding import SystemRandom, stream, torch_generator

SIGNIFICANCE = 1e-3


def test_the_same_name_gives_the_same_stream_and_another_name_another():
    first = stream(1, "noise", "a", 3).standard_normal(1000)
    assert np.array_equal(first, stream(1, "noise", "a", 3).standard_normal(1000))
    for other in (stream(2, "noise", "a", 3), stream(1, "task", "a", 3), stream(1, "noise", "a", 4)):
        assert abs(np.corrcoef(first, other.standard_normal(1000))[0, 1]) < 0.15


def test_names_do_not_run_into_each_other():
    draws = [stream(1, *names).random(4) for names in (("ab", "c"), ("a", "bc"), ("abc",), ("1", 1), (1, "1"))]
    assert len({tuple(d) for d in draws}) == len(draws)


def test_two_system_sources_share_nothing():
    a, b = SystemRandom(), SystemRandom()
    assert not np.array_equal(a.random(8), b.random(8))


def test_system_normals_are_standard_normal():
    sample = SystemRandom().standard_normal(200_000)
    assert stats.kstest(sample, "norm").pvalue > SIGNIFICANCE
    assert np.isfinite(sample).all()
    later = SystemRandom().standard_normal(100_000)
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 4.5 / np.sqrt(len(sample))
    assert stats.ks_2samp(sample, later).pvalue > SIGNIFICANCE


def test_system_uniforms_and_integers_are_uniform():
    source = SystemRandom()
    uniform = source.random(100_000)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > SIGNIFICANCE
    counts = np.bincount([source.integers(5, 12) - 5 for _ in range(7000)], minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    with pytest.raises(ValueError, match="range is empty"):
        source.integers(3, 3)


def test_a_torch_generator_follows_its_source():
    def draw(*names: str) -> int:
        return torch_generator(stream(1, *names)).initial_seed()

    assert draw("x") == draw("x") != draw("y")
