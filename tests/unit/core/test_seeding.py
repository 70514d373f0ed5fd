"""Random streams: named and repeatable in simulation, unpredictable in deployment."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedpriv.normals import BLOCK, normals_numpy
from fedpriv.seeding import KeyedRandom, SystemRandom, keyed_stream, stream, torch_generator

SIGNIFICANCE = 1e-3


def test_the_same_name_gives_the_same_stream_and_another_name_another():
    first = stream(1, "noise", "a", 3).standard_normal(1000)
    assert np.array_equal(first, stream(1, "noise", "a", 3).standard_normal(1000))
    for other in (stream(2, "noise", "a", 3), stream(1, "task", "a", 3), stream(1, "noise", "a", 4)):
        assert abs(np.corrcoef(first, other.standard_normal(1000))[0, 1]) < 0.15


def test_names_do_not_run_into_each_other():
    draws = [stream(1, *names).random(4) for names in (("ab", "c"), ("a", "bc"), ("abc",), ("1", 1), (1, "1"))]
    assert len({tuple(d) for d in draws}) == len(draws)


def test_keyed_streams_are_named_too_and_stay_apart():
    first = keyed_stream(1, "noise", "a", 3).standard_normal(1000)
    assert np.array_equal(first, keyed_stream(1, "noise", "a", 3, fast=True).standard_normal(1000))
    others = [keyed_stream(2, "noise", "a", 3), keyed_stream(1, "noise", "b", 3), stream(1, "noise", "a", 3)]
    for other in others:
        assert abs(np.corrcoef(first, other.standard_normal(1000))[0, 1]) < 0.15


def test_the_key_stream_is_aes_256_in_counter_mode():
    """Counters from zero, enciphered block by block; the pieces in which numbers are asked for do not show."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(block.update(i.to_bytes(16, "big")) for i in range(70_000))
    source, want = KeyedRandom(key), np.frombuffer(blocks, dtype=np.uint64) >> np.uint64(11)
    for start, size in ((0, 1), (1, 2), (3, 131_072), (131_075, 7), (131_082, 0), (131_082, 20)):
        assert np.array_equal(source.random(size) * 2.0**53, want[start : start + size].astype(np.float64))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 2 * BLOCK - 1, 2 * BLOCK + 3])
def test_pieces_are_the_normals_of_the_words_in_their_order(size, fast):
    key = bytes(range(32))
    source, plain = KeyedRandom(key, fast=fast), KeyedRandom(key)
    assert source.random(1) == plain.random(1)  # from here on within a block of the cipher
    words = (KeyedRandom(key).random(2 * size + 3) * 2.0**53).astype(np.uint64)[1 : 1 + size + size % 2]
    got = np.full(size, np.nan)
    for place, some in source.normal_pieces(size):
        got[place] = some
    assert np.array_equal(got, plain.standard_normal(size)) and not np.isnan(got).any()
    assert (
        np.abs(np.abs(got) - np.abs(normals_numpy(words << np.uint64(11))[:size])).max(initial=0) == 0
    )  # signs: low bits
    assert np.array_equal(source.random(5), plain.random(5))


def test_no_word_is_used_twice_when_pieces_are_left_lying():
    source, whole = KeyedRandom(bytes(32)), KeyedRandom(bytes(32))
    size = 6 * BLOCK
    next(source.normal_pieces(size))
    whole.standard_normal(size)
    assert np.array_equal(source.random(9), whole.random(9))


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
