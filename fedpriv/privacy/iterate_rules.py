"""Gradient rules that take a row's gradient at more than one point: perturbed, extrapolated, or at past iterates.

Every point is public, or a function of the same row alone, so the combination of a row's gradients is a function of
that row; it is clipped as one vector. Two or more passes over the rows, by an engine with per-row gradients.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Rule
from fedpriv.privacy.controllers import StepFacts
from fedpriv.privacy.engines.base import row_norms
from fedpriv.privacy.gradient_rules import (
    Asked,
    Batch,
    ErrorFeedbackRule,
    GradientRule,
    GroupWiseRule,
    SparsifyRule,
    clip_rows,
)
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import State, read, scalar

Need = Literal["sum", "groups", "rows"]


@dataclass(frozen=True, kw_only=True)
class BamRule(GradientRule):
    """Bias-aware minimisation: mixes in the gradient a little uphill, each row its own way. arXiv:2308.12018.

    (1 - alpha) g_i(theta) + alpha g_i(theta + r g_i / |g_i|), then clipped. A row without gradient is not moved.

    Proof note: the point that row i is taken at depends on row i and theta only, so the mixture does; after clipping
    its norm is at most `clipper.bound`. Sensitivity and event are those of the clipper. alpha = 0 or r = 0 is the
    clipper alone.

    Attributes:
        r: length of the step uphill, in parameter units.
        alpha: share of the gradient there.
    """

    r: float = 0.05
    alpha: float = 0.8
    KEY: ClassVar[str] = "bam"
    NEEDS: ClassVar[Need] = "rows"

    def __post_init__(self) -> None:
        in_range(self.name, "r", self.r, low=0.0, high=1e6, closed="low")
        in_range(self.name, "alpha", self.alpha, low=0.0, high=1.0, closed="low,high")

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""

        def rows(examples: Examples, draws: Draws) -> Tensor:
            here = batch.engine.per_row(examples, draws)
            if self.alpha == 0 or self.r == 0:
                return here
            norms = row_norms(here)[:, None]
            uphill = torch.where(norms > 0, here.to(torch.float64) / norms.clamp(min=1e-300), 0.0)
            there = batch.engine.per_row(examples, draws, batch.params + (self.r * uphill).to(here.dtype))
            return (1 - self.alpha) * here + self.alpha * there

        return Asked(clip_rows(batch, rows))


@dataclass(frozen=True, kw_only=True)
class DiskRule(GradientRule):
    """DiSK, a simplified Kalman filter: extrapolated gradients in, a running mean out. arXiv:2410.03883.

    With c = (1 - kappa) / (kappa gamma) a row contributes, clipped,
        c g_i(theta + gamma (theta - theta_before)) + (1 - c) g_i(theta),
    and what is applied is g_t = (1 - kappa) g_{t-1} + kappa (released). kappa = 1 is the clipper alone.

    Proof note: theta and the iterate before it are public (released, or averages of what was), so a row's mixture is
    a function of that row; clipped to `clipper.bound`. The running mean is post-processing. The published code
    rescales its noise multiplier; here noise and event are those of the bound.

    Attributes:
        kappa: weight of the new gradient.
        gamma: how far ahead the second point lies, in units of the last step.
    """

    kappa: float = 0.7
    gamma: float = 0.5
    KEY: ClassVar[str] = "disk"
    NEEDS: ClassVar[Need] = "rows"

    def __post_init__(self) -> None:
        in_range(self.name, "kappa", self.kappa, low=0.0, high=1.0, closed="high")
        in_range(self.name, "gamma", self.gamma, low=0.0, high=1e3)

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Seen [1]; previous, mean [P]."""
        return {"seen": scalar(0.0), "previous": torch.zeros(num_parameters), "mean": torch.zeros(num_parameters)}

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""
        share = (1 - self.kappa) / (self.kappa * self.gamma)
        ahead = batch.params + self.gamma * (batch.params - batch.state["previous"])
        alone = share == 0 or not _seen(batch.state)

        def rows(examples: Examples, draws: Draws) -> Tensor:
            here = batch.engine.per_row(examples, draws)
            if alone:
                return here
            return share * batch.engine.per_row(examples, draws, ahead) + (1 - share) * here

        return Asked(clip_rows(batch, rows))

    def after(
        self, grad: Tensor, answers: Sequence[Tensor], params: Tensor, clipper: Rule, state: State, facts: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The running mean; the first gradient is taken as it is."""
        mean = torch.lerp(state["mean"], grad, self.kappa) if _seen(state) else grad
        if self.kappa == 1:
            mean = grad
        return mean, {"seen": scalar(1.0), "previous": params.clone(), "mean": mean.clone()}


@dataclass(frozen=True, kw_only=True)
class InnerMomentumRule(GradientRule):
    """Momentum inside every row, over its own gradients at past public iterates. After arXiv:2411.03059.

    v_i = sum_k gamma^k g_i(theta_{t-k}) / sum_k gamma^k over the last `steps` iterates (fewer at the beginning),
    then clipped. DP-PSASC names such a momentum; its exact form could not be recovered, this one is by analogy.

    Proof note: past iterates are public, and only row i's own gradients enter v_i (recomputed now, nothing is kept of
    rows), so its clipped contribution is a function of row i with norm at most `clipper.bound`. Batch momentum before
    clipping, or a kept history of raw gradients, would have no such bound. gamma = 0 or steps = 1 is the clipper.

    Attributes:
        gamma: weight of each older iterate relative to the next.
        steps: K0, iterates in all; as many passes over the rows.
    """

    gamma: float = 0.5
    steps: int = 3
    KEY: ClassVar[str] = "inner-momentum"
    NEEDS: ClassVar[Need] = "rows"

    def __post_init__(self) -> None:
        in_range(self.name, "gamma", self.gamma, low=0.0, high=1.0, closed="low,high")
        in_range(self.name, "steps", self.steps, low=1, high=32, closed="low,high")

    @property
    def _kept(self) -> int:
        return self.steps - 1 if self.gamma > 0 else 0

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Known [1], number of past iterates so far; past [(steps - 1) P], newest first."""
        if not self._kept:
            return {}
        return {"known": scalar(0.0), "past": torch.zeros(self._kept * num_parameters)}

    def _past(self, state: State) -> list[Tensor]:
        if not self._kept:
            return []
        known = round(read(state["known"], 0.0, float(self._kept)))
        return list(state["past"].view(self._kept, -1)[:known])

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""
        past = self._past(batch.state)
        weights = [self.gamma**k for k in range(len(past) + 1)]

        def rows(examples: Examples, draws: Draws) -> Tensor:
            total = batch.engine.per_row(examples, draws)
            for weight, params in zip(weights[1:], past, strict=True):
                total = total.add(batch.engine.per_row(examples, draws, params), alpha=weight)
            return total / sum(weights) if past else total

        return Asked(clip_rows(batch, rows))

    def after(
        self, grad: Tensor, answers: Sequence[Tensor], params: Tensor, clipper: Rule, state: State, facts: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Remembers where this gradient was taken."""
        if not self._kept:
            return grad, {}
        kept = torch.cat([params, state["past"]])[: self._kept * params.numel()]
        known = min(round(read(state["known"], 0.0, float(self._kept))) + 1, self._kept)
        return grad, {"known": scalar(known), "past": kept}


def _seen(state: State) -> bool:
    return read(state["seen"], 0.0, 1.0) > 0.5


GRADIENT_RULES: Final[Mapping[str, type[GradientRule]]] = {
    kind.KEY: kind for kind in (BamRule, SparsifyRule, DiskRule, ErrorFeedbackRule, GroupWiseRule, InnerMomentumRule)
}
