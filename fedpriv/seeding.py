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
from scipy.special import ndtri

_BLOCK = 1 << 20  # bytes of key stream made at a time


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


class SystemRandom:
    """AES-256 in counter mode, keyed once by the operating system; the key is never stored or derived.

    Normals are the inverse distribution function of 53-bit uniforms in (0, 1), in float64: the tail reaches
    8.2 standard deviations. Floating-point attacks (Mironov 2012) are not covered; see docs/privacy.md.
    """

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def _words(self, size: int) -> NDArray[np.uint64]:
        parts: list[bytes] = []
        need = size * 8
        while need > 0:
            n = min(need, _BLOCK)
            parts.append(self._cipher.update(bytes(n)))
            need -= n
        return np.frombuffer(b"".join(parts), dtype=np.uint64)

    def random(self, size: int) -> NDArray[np.float64]:
        """[size] uniform in [0, 1), 53 bits each."""
        return (self._words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] standard normal."""
        return ndtri((self._words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)

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


def _entropy(root: int, names: tuple[str | int, ...]) -> list[int]:
    text = "\x1f".join([str(root), *(f"{type(n).__name__}:{n}" for n in names)])
    digest = hashlib.sha256(text.encode()).digest()
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
