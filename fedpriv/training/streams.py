"""The named random streams of one client and round: seeded in simulation, the system's in deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedpriv.seeding import PrivacyRng, SystemRandom, keyed_stream, stream

Mode = Literal["simulation", "deployment"]


@dataclass(frozen=True)
class Streams:
    """Purpose -> its random stream.

    Attributes:
        mode: simulation (repeatable) or deployment.
        seed: `run.seed`; not used in deployment.
        client, round: whose, and of which round (or release).
        fast: normals by the C++ operator: the same bits.
    """

    mode: Mode
    seed: int
    client: str
    round: int
    fast: bool = False

    def __call__(self, purpose: str) -> PrivacyRng:
        """The stream of one purpose; in simulation a repeated call begins it anew."""
        if self.mode == "deployment":
            return SystemRandom(fast=self.fast)
        if purpose == "noise":
            return keyed_stream(self.seed, purpose, self.client, self.round, fast=self.fast)
        return stream(self.seed, purpose, self.client, self.round)
