"""What a check answers, and the one interface under test: a whole private step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.engines.base import GradientEngine
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.seeding import PrivacyRng

Rows: TypeAlias = tuple[Examples, Draws]
Step: TypeAlias = Callable[[Rows, PrivacyRng], Tensor]
"""(rows of a batch, source of the noise) -> [P] what leaves: the released gradient."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: what was checked.
        passed: whether it held.
        detail: the numbers behind it, in one line. Of made-up or public rows only, so free to show.
    """

    name: str
    passed: bool
    detail: str


def production_step(engine: GradientEngine, mechanism: Mechanism, *, denominator: float) -> Step:
    """The step as training runs it: clipped sum, noise, public divisor."""

    def step(rows: Rows, rng: PrivacyRng) -> Tensor:
        clipped = engine.clipped_sum(*rows, mechanism.clipper)
        return mechanism.release(clipped, denominator=denominator, rng=rng).grad

    return step
