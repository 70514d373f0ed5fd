"""Random streams: seeded and named in simulation, from the operating system in deployment.

Privacy rests on noise that nobody else can predict (Opacus and Flower draw theirs from global or seeded
generators). A deployed client therefore uses `SystemRandom`; a simulation uses `stream`, so that a run can be
repeated, and its label says "seeded: not a guarantee".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedpriv.normals import BLOCK, Maker, maker, workspace

_ZEROS = memoryview(bytes(1 << 16))  # what is encrypted for the key stream, a piece at a time
_BLOCK_BYTES = 16  # of AES
_MARGIN = 2  # words more than are wanted: the cipher wants room for a block more


class PrivacyRng(Protocol):
    """What mechanisms and samplers may ask of a source of randomness; `numpy.random.Generator` satisfies it."""

    def random(self, size: int) -> NDArray[np.float64]:
        """[size] uniform in [0, 1)."""
        ...

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] standard normal."""
        ...

    def integers(self, low: int, high: int) -> int | np.integer:
        """One integer, uniform in [low, high)."""
        ...


class KeyedRandom:
    """AES-256 in counter mode under a key, which is all that decides the numbers.

    Normals are Box and Muller's, in float64, from 53-bit uniforms (`fedpriv.normals`): the tail reaches 8.65 standard
    deviations. Floating-point attacks (Mironov 2012) are not covered; see docs/privacy.md.

    Args:
        key: 32 bytes.
        fast: normals by the C++ operator, where it can be had; the same bits.
    """

    def __init__(self, key: bytes, *, fast: bool = False) -> None:
        self._algorithm = algorithms.AES(key)
        self._used = 0  # bytes of the key stream
        self._stream = self._at(0)
        self._fast = fast
        self._work: NDArray[np.float64] | None = None  # these two at the first normals
        self._make: Maker | None = None

    def _at(self, place: int) -> Any:
        """The key stream from its byte `place` on; to begin anew costs little."""
        counter = modes.CTR((place // _BLOCK_BYTES).to_bytes(_BLOCK_BYTES, "big"))
        stream = Cipher(self._algorithm, counter).encryptor()
        stream.update(bytes(place % _BLOCK_BYTES))
        return stream

    def _words(self, size: int) -> NDArray[np.uint64]:
        out = np.empty(size + _MARGIN, dtype=np.uint64)
        self._used += 8 * size
        return _filled(self._stream, out)

    def random(self, size: int) -> NDArray[np.float64]:
        """[size] uniform in [0, 1), 53 bits each."""
        return (self._words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] standard normal."""
        out = np.empty(size)
        for place, some in self.normal_pieces(size):
            out[place] = some
        return out

    def normal_pieces(self, size: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """The numbers of `standard_normal(size)` with their places, a piece at a time while it is in the cache.

        A piece may be changed and is overwritten by the next one. The generator has moved on past all of them as soon
        as the first is asked for, whether or not the others are: no word is used twice.
        """
        pairs = (size + 1) // 2  # word i makes the radius of pair i, word pairs + i its angle
        radii, angles = self._stream, self._at(self._used + 8 * pairs)
        self._used += 16 * pairs
        self._stream = self._at(self._used)
        if self._work is None or self._make is None:
            self._work, self._make = workspace(BLOCK + _MARGIN), maker(fast=self._fast)
        for start in range(0, pairs, BLOCK):
            count = min(BLOCK, pairs - start)
            for stream, row in ((radii, self._work[0]), (angles, self._work[1])):
                _filled(stream, row[: count + _MARGIN].view(np.uint64))
            x, y = self._make(self._work[:, :count])
            yield slice(start, start + count), x
            stop = min(pairs + start + count, size)  # of an odd number the last one is left over
            yield slice(pairs + start, stop), y[: stop - pairs - start]

    def integers(self, low: int, high: int) -> int:
        """One integer, exactly uniform in [low, high): words past the last whole multiple are drawn again."""
        span = high - low
        if span <= 0:
            raise ValueError(f"integers(low={low}, high={high}): the range is empty.")
        limit = (1 << 64) - (1 << 64) % span
        while True:
            word = int(self._words(1)[0])
            if word < limit:
                return low + word % span


def _filled(stream: Any, out: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[n + _MARGIN] contiguous -> its first n words, of the key stream."""
    size = len(out) - _MARGIN
    room = memoryview(out.data).cast("B")
    done, need = 0, size * 8
    while done < need:
        done += stream.update_into(_ZEROS[: need - done], room[done:])
    return out[:size]


class SystemRandom(KeyedRandom):
    """Keyed once by the operating system; the key is never written down or derived. What deployed clients use."""

    def __init__(self, *, fast: bool = False) -> None:
        super().__init__(os.urandom(32), fast=fast)


def keyed_stream(root: int, *names: str | int, fast: bool = False) -> KeyedRandom:
    """The deployed generator under a key made of a seed and names: for the noise of simulations, which is much of it.

    Other names give independent streams, as with `stream`.
    """
    return KeyedRandom(_digest(root, names), fast=fast)


def _digest(root: int, names: tuple[str | int, ...]) -> bytes:
    text = "\x1f".join([str(root), *(f"{type(n).__name__}:{n}" for n in names)])
    return hashlib.sha256(text.encode()).digest()


def _entropy(root: int, names: tuple[str | int, ...]) -> list[int]:
    digest = _digest(root, names)
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


def stream(root: int, *names: str | int) -> np.random.Generator:
    """A generator for one named purpose; different names give independent streams. Simulation only.

    Example: `stream(scenario.run.seed, "noise", client, round)`.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_entropy(root, names))))


def torch_generator(rng: PrivacyRng, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from `rng`, for draws that privacy does not rest on (diffusion times and noise)."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(rng.integers(0, 2**62)))
    return generator
