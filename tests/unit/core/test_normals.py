"""Normals from words: the right numbers, the right law, and the same bits from C++."""

import shutil
import warnings

import mpmath
import numpy as np
import pytest
from scipy import stats

from fedpriv import native, normals

SIGNIFICANCE = 1e-3
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
CORNERS = [0, 1, 2, 3, 2**11 - 1, 2**11, 2**53, 2**62, 2**63 - 1, 2**63, 2**63 + 2**11, 2**64 - 2**11, 2**64 - 1]


def words(size, seed=0):
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 2**64, size, dtype=np.uint64)


def test_each_pair_is_box_and_muller_in_fifty_digits():
    given = np.concatenate([words(400, 3), np.repeat(np.array(CORNERS, np.uint64), len(CORNERS))])
    other = np.concatenate([words(400, 4), np.tile(np.array(CORNERS, np.uint64), len(CORNERS))])
    got = normals.normals_numpy(np.concatenate([given, other])).reshape(2, -1)
    with mpmath.workdps(50):
        for w, v, x, y in zip(given.tolist(), other.tolist(), *got.tolist(), strict=True):
            u = mpmath.mpf(float((w >> 11) * 2.0**-53 + 2.0**-54))  # as rounded: the last one is 1
            angle = (mpmath.mpf(v >> 11) / 2**53) * mpmath.pi / 2
            length = mpmath.sqrt(-2 * mpmath.log(u))
            signs = (-1 if v & 1 else 1, -1 if v & 2 else 1)
            for value, side, sign in ((x, mpmath.cos(angle), signs[0]), (y, mpmath.sin(angle), signs[1])):
                assert abs(value - sign * length * side) <= 1e-15 * max(length, 1e-300)


def test_normals_are_normal_and_pairs_are_independent():
    got = normals.normals_numpy(words(1_000_000, 5))
    assert stats.kstest(got, "norm").pvalue > SIGNIFICANCE
    assert stats.chi2(len(got)).sf(float((got**2).sum())) > SIGNIFICANCE / 2
    assert stats.chi2(len(got)).cdf(float((got**2).sum())) > SIGNIFICANCE / 2
    x, y = got.reshape(2, -1)
    bound = stats.norm.isf(SIGNIFICANCE / 8) / len(x) ** 0.5
    for a, b in ((x, y), (np.abs(x), np.abs(y)), (x[:-1], x[1:]), (x[:-1], y[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound
    far = int((np.abs(got) > 4).sum())
    assert SIGNIFICANCE / 2 < stats.binom(len(got), 2 * stats.norm.sf(4)).cdf(far) < 1 - SIGNIFICANCE / 2


def test_the_tail_ends_where_the_text_says():
    far = normals.normals_numpy(np.array([0, 2**64 - 2**11], np.uint64))
    assert np.abs(far).max() == pytest.approx(8.6522, abs=1e-4)
    assert np.isfinite(normals.normals_numpy(np.full(2, 2**64 - 1, np.uint64))).all()


@pytest.mark.parametrize("size", [0, 2, 6, 2 * normals.BLOCK, 2 * normals.BLOCK + 2])
def test_blocks_do_not_show(size):
    given = words(size)
    whole = normals.normals_numpy(given).reshape(2, -1)
    pairs = given.reshape(2, -1)
    for i in {0, size // 4, size // 2 - 1} if size else ():
        assert np.array_equal(normals.normals_numpy(pairs[:, i].copy()), whole[:, i])


@needs_compiler
def test_the_operator_gives_the_same_bits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normals.operator() is not None
    corners = np.concatenate(np.meshgrid(np.array(CORNERS, np.uint64), np.array(CORNERS, np.uint64)), axis=None)
    for given in (corners, words(200_000, 7), words(2, 1), words(0)):
        fast = normals.normals(given, fast=True)
        assert np.array_equal(fast.view(np.uint64), normals.normals_numpy(given).view(np.uint64))


@needs_compiler
def test_an_operator_with_other_bits_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_found", {})
    monkeypatch.setattr(normals, "SOURCE", normals.SOURCE.replace("cosine + sine", "sine + cosine * 1.0000001"))
    with pytest.warns(UserWarning, match="differ from NumPy's"):
        assert normals.operator() is None
    given = words(10)
    assert np.array_equal(normals.normals(given, fast=True), normals.normals_numpy(given))


def test_without_a_compiler_numpy_does_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setattr(native, "_found", {})
    given = words(10)
    with pytest.warns(UserWarning, match="using NumPy's"):
        assert np.array_equal(normals.normals(given, fast=True), normals.normals_numpy(given))
