"""AdaLN-Zero modulation, vanilla and DP-aware.

A block normalises its input, scales and shifts it, applies attention or an MLP, and gates the result (DiT,
arXiv:2212.09748); scale, shift and gate are linear functions of the condition, zero at the start, so that a new block
is the identity. The DP-aware variant (Huang et al., arXiv:2602.22610) bounds the condition, `|c|_2 <= c_max`, and each
modulation coordinate, `|B_M(x)| <= M`. This tames the tails of per-sample gradients; it does not replace clipping and
never lowers the noise.

Two departures from the paper's text. Its literal `v = gamma * LN(x) + beta` with everything zero has no gradient at
all; here gamma is `1 + B(gamma_raw)` (`residual`), or starts at one through its bias (`multiplicative`). And the bounds
are public constants of the scenario, never statistics of private data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedpriv.config import ModelConfig
from fedpriv.errors import InputError
from fedpriv.models.parameters import linear

SOFT_BAND = 0.1  # half width of the smooth corner of `soft`, as a share of the bound
TIGHTNESS = {"loose": 1.0, "medium": 0.9, "tight": 0.75, "too-tight": 0.5}  # factors on the reference (table 13)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Public bounds on condition and modulation; `inf` switches one off (all `inf`: vanilla AdaLN-Zero)."""

    c_max: float = math.inf
    gamma_max: float = math.inf
    beta_max: float = math.inf
    alpha_max: float = math.inf
    operator: str = "tanh"

    @classmethod
    def of(cls, model: ModelConfig) -> Bounds:
        """The bounds that a scenario asks for: of the parts that `model.bounded` names, scaled by `model.tightness`."""
        if model.modulation == "adaln-zero":
            return cls()
        parts: dict[str, float] = {}
        if model.bounded != "modulation":
            parts |= {"c_max": model.c_max}
        if model.bounded != "condition":
            parts |= {"gamma_max": model.gamma_max, "beta_max": model.beta_max, "alpha_max": model.alpha_max}
        return cls(operator=model.bound_operator, **parts).scaled(TIGHTNESS[model.tightness])

    def scaled(self, factor: float) -> Bounds:
        """All bounds times `factor`: the tightness levels of the paper's table 13."""
        return replace(
            self,
            c_max=self.c_max * factor,
            gamma_max=self.gamma_max * factor,
            beta_max=self.beta_max * factor,
            alpha_max=self.alpha_max * factor,
        )


def project(condition: Tensor, c_max: float) -> Tensor:
    """[..., D] -> [..., D]: the nearest point of the ball of radius `c_max`; bit-equal inside it."""
    if math.isinf(c_max):
        return condition
    # The floor keeps the gradient of the norm finite at zero; inside the ball the factor is exactly one.
    norm = condition.square().sum(dim=-1, keepdim=True).clamp(min=1e-30).sqrt()
    return condition * (c_max / norm.clamp(min=c_max))


def bound(x: Tensor, limit: float, operator: str) -> Tensor:
    """B_M(x) with M = `limit`, coordinate-wise: odd, monotone, 1-Lipschitz, slope 1 at 0, |B_M(x)| <= M.

    Operators: `tanh` M tanh(x/M); `hard` clamp; `ste` clamp with the gradient of the identity; `soft` the identity up
    to M - e, saturated from M + e on, and in between the quadratic that joins them smoothly, e = 0.1 M.
    """
    if math.isinf(limit):
        return x
    if operator == "tanh":
        return limit * torch.tanh(x / limit)
    clamped = x.clamp(-limit, limit)
    if operator == "hard":
        return clamped
    if operator == "ste":
        return clamped.detach() + (x - x.detach())  # the second term is zero and carries the gradient
    band = SOFT_BAND * limit
    inside = limit - band
    over = (x.abs() - inside).clamp(0.0, 2.0 * band)  # how far into the corner
    return x.clamp(-inside, inside) + x.sign() * (over - over.square() / (4.0 * band))


def unbound(value: float, limit: float, operator: str) -> float:
    """The x with B_M(x) = `value`, for 0 <= value < M."""
    if math.isinf(limit) or operator in ("hard", "ste"):
        return value
    if operator == "tanh":
        return limit * math.atanh(value / limit)
    band = SOFT_BAND * limit
    inside = limit - band
    if value <= inside:
        return value
    return inside + 2.0 * band * (1.0 - math.sqrt(1.0 - (value - inside) / band))


class Modulation(nn.Module):
    """One projection of the condition to scale, shift and (for blocks) gate; zero-initialised."""

    def __init__(self, width: int, *, gate: bool, bounds: Bounds, gamma_mode: str, generator: torch.Generator) -> None:
        """Args: see `ModelConfig`; `gate` is False for the final layer, which has none.

        Raises:
            InputError: `multiplicative` with a bound on gamma that does not reach the start value 1.
        """
        super().__init__()
        self.bounds, self.residual = bounds, gamma_mode == "residual"
        self.width, self.gate = width, gate
        self.projection = linear(width, (3 if gate else 2) * width, generator=generator, zero=True)
        if not self.residual:
            if bounds.gamma_max <= 1.0:
                raise InputError(
                    f"model.gamma_max={bounds.gamma_max:g} (model.tightness included) with "
                    "model.gamma_mode=multiplicative: it must exceed 1, the start value of the scale. The model was "
                    "not built."
                )
            with torch.no_grad():  # gamma starts at one; at zero the block would get no gradient, ever
                self.projection.bias[:width].fill_(unbound(1.0, bounds.gamma_max, bounds.operator))

    def raw(self, condition: Tensor) -> Tensor:
        """[B, D] -> [B, 3D] (or 2D): scale, shift and gate before their bounds."""
        return self.projection(project(condition, self.bounds.c_max))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, D] -> gamma, beta, alpha, each [B, 1, D]; `gamma` multiplies the normalised input as it is."""
        limits = self.bounds
        raw = self.raw(condition).unsqueeze(1)  # [B, 1, 3D]
        gamma = bound(raw[..., : self.width], limits.gamma_max, limits.operator)
        beta = bound(raw[..., self.width : 2 * self.width], limits.beta_max, limits.operator)
        alpha = bound(raw[..., 2 * self.width :], limits.alpha_max, limits.operator) if self.gate else None
        return (1.0 + gamma if self.residual else gamma), beta, alpha
