"""Public schedules of the bound and the noise over a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedpriv.privacy.clippers import Rule
from fedpriv.privacy.controllers import Controller
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import LEAST, State


@dataclass(frozen=True, kw_only=True)
class DynamicController(Controller):
    """Bound and noise multiplier fall over the run: C_t = C rho_C^t, sigma_t = sigma_0 rho_sigma^t. arXiv:2111.00173.

    Proof note: C_t and sigma_t are functions of the step alone, so a step is the Gaussian mechanism of multiplier
    sigma_t on a sum of sensitivity `clipper.bound` at C_t. The event of a run is the composition of these DIFFERENT
    events (`ScheduledDpEvent`): sigma_0 is found by composing them as they are. The paper's central limit formula is
    no upper bound (7.41 for 8.08 in one of its settings) and is not used. With both ends 1 the run is flat clipping.
    The schedule is a staircase of `stages` equal stages, so that long runs compose few distinct events.

    Attributes:
        c_final: C at the end of the run over C at its start (rho_C^T).
        sigma_final: the same of the noise multiplier (rho_sigma^T).
        stages: steps of the staircase.
    """

    c_final: float = 0.5
    sigma_final: float = 0.8
    stages: int = 20
    KEY: ClassVar[str] = "dynamic"
    FLAT_ONLY: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(self.name, "c_final", self.c_final, low=1e-6, high=1e6, closed="low,high")
        in_range(self.name, "sigma_final", self.sigma_final, low=1e-3, high=1e3, closed="low,high")
        in_range(self.name, "stages", self.stages, low=1, high=1000, closed="low,high")

    def clipper(self, base: Rule, state: State, step: int) -> Rule:
        """The base rule at C_t."""
        del state
        if self.c_final == 1.0:
            return base
        return replace(base, l2_clip_norm=max(base.l2_clip_norm * self.c_final ** self._place(step), LEAST))

    def noise(self, sigma: float) -> list[tuple[float, int]]:
        """(sigma_t, steps) of each stage; one entry where the noise does not change."""
        total = self.steps_total
        if self.sigma_final == 1.0:
            return [(sigma, total)]
        edges = self._edges()
        pairs = zip(edges, [*edges[1:], total], strict=True)
        return [(sigma * self.sigma_final ** (first / total), stop - first) for first, stop in pairs]

    def _edges(self) -> list[int]:
        """First step of every stage."""
        count = min(self.stages, self.steps_total)
        return [-(-k * self.steps_total // count) for k in range(count)]

    def _place(self, step: int) -> float:
        """Share of the run at which the stage of `step` begins."""
        return max((e for e in self._edges() if e <= step), default=0) / self.steps_total
