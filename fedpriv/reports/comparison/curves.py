"""Over epsilon: from which epsilon on something pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BreakEven:
    """From which epsilon on a gain is at least 0.

    Attributes:
        epsilon: where the mean gain crosses 0 for good, interpolated linearly in log epsilon; `low_end` if it is never
            below 0 in the range, infinity if it is below 0 at the largest epsilon.
        least, most: the same of the upper and of the lower end of the gain's interval.
        low_end, high_end: the range of epsilons that was run.
    """

    epsilon: float
    least: float
    most: float
    low_end: float
    high_end: float

    @property
    def within(self) -> bool:
        """Whether the mean gain crosses 0 inside the range."""
        return self.low_end < self.epsilon < math.inf

    def words(self) -> str:
        """`about 3.1 (2 to 5.2)`, `none up to 8`, `pays from the least epsilon that was run, 1`."""
        if math.isinf(self.epsilon):
            return f"none up to {self.high_end:g}"
        if self.epsilon <= self.low_end:
            return f"at or below {self.low_end:g}"
        low = f"below {self.low_end:g}" if self.least <= self.low_end else f"{self.least:.2g}"
        high = f"above {self.high_end:g}" if math.isinf(self.most) else f"{self.most:.2g}"
        return f"about {self.epsilon:.2g} ({low} to {high})"


def break_even(
    epsilons: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> BreakEven:
    """Of gains (more is better) at rising epsilons."""
    return BreakEven(
        epsilon=crossing(epsilons, mean),
        least=crossing(epsilons, high),
        most=crossing(epsilons, low),
        low_end=float(epsilons[0]),
        high_end=float(epsilons[-1]),
    )


def crossing(epsilons: Sequence[float], gains: Sequence[float]) -> float:
    """The least epsilon from which on all gains are at least 0: the first epsilon if none is below, infinity if the
    last is. Linear in log epsilon between two neighbours. A gain that is not known counts as below 0."""
    below = [i for i, gain in enumerate(gains) if not gain >= 0]
    if not below:
        return float(epsilons[0])
    last = below[-1]
    if last == len(gains) - 1:
        return math.inf
    one, two = gains[last], gains[last + 1]
    share = -one / (two - one) if math.isfinite(one) else 1.0
    low, high = math.log(epsilons[last]), math.log(epsilons[last + 1])
    return math.exp(low + share * (high - low))
