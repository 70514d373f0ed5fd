"""Random streams: seeded and named in simulation, from the operating system in deployment.

Privacy rests on noise that nobody else can predict (Opacus and Flower draw theirs from global or seeded
generators). A deployed client therefore uses `SystemRandom`; a simulation uses `stream`, so that a run can be
repeated, and its label says "seeded: not a guarantee".
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedpriv.normals import normals

_ZEROS = memoryview(bytes(1 << 16))  # what is encrypted for the key stream, a piece at a time


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
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._fast = fast

    def _words(self, size: int) -> NDArray[np.uint64]:
        out = np.empty(size + 2, dtype=np.uint64)  # the cipher wants room for a block more
        room = memoryview(out.data).cast("B")
        done, need = 0, size * 8
        while done < need:
            done += self._cipher.update_into(_ZEROS[: need - done], room[done:])
        return out[:size]

    def random(self, size: int) -> NDArray[np.float64]:
        """[size] uniform in [0, 1), 53 bits each."""
        return (self._words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] standard normal."""
        return normals(self._words(size + size % 2), fast=self._fast)[:size]

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


class SystemRandom(KeyedRandom):
    """Keyed once by the operating system; the key is never stored or derived. What deployed clients use."""

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
