"""Controllers: the bound of the next step from released, charged statistics of the steps before.

A controller never sees a norm. It states a per-row statistic of bounded norm; the sum of it is released in the same
step as the gradient, as one joint event of the TOTAL noise multiplier (`fedpriv.privacy.joint`), and from the noisy
answer and public constants alone follow the next bound and its other state. Common to all:

* unit: one row of a step's batch; relation: any (a replaced row doubles every part alike);
* sensitivity: the gradient's is the bound in force, fixed before the step from past releases; the statistic's is
  `statistic_bound`;
* event: one Gaussian event of the total sigma per step, amplified by the sampler as ever. No cost of its own;
* denominators are public (the expected batch); an empty batch answers with noise alone;
* norms that are not finite are counted as large; state read from outside is clamped, loops are bounded.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.privacy.clippers import FlatClipper, Rule
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import LEAST, MOST, State, read, scalar

AUTO_NOISE = 3.0
"""sigma_b = 0 means this multiple of the total sigma: the bits then take 1/36 of the budget, sigma grows by 1.4 %."""

MAX_EXPONENT = 5.0
"""Largest change of the log of a bound in one step: noise must not throw it out of range at once."""


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """Public facts of one step that a rule may use.

    Attributes:
        step: 0, 1, ... over the whole run.
        denominator: expected batch size of the client.
        sizes: entries of each trained parameter, in the order of the flat vector.
        sigma: total noise multiplier of the step.
        sigma_gradient: what of it is on the gradient.
    """

    step: int
    denominator: float
    sizes: tuple[int, ...]
    sigma: float
    sigma_gradient: float

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Controller:
    """Base: a controller without a statistic, which changes nothing."""

    steps_total: int = dataclasses.field(default=1, metadata={"fixed": True})  # private steps of the run: public
    KEY: ClassVar[str] = ""
    FLAT_ONLY: ClassVar[bool] = True  # whether the bound that it finds has a meaning for flat clipping only

    @property
    def name(self) -> str:
        """Its key in the registry."""
        return self.KEY

    def start(self, bound: float) -> dict[str, Tensor]:
        """State before the first step; `bound` is C of the scenario."""
        del bound
        return {}

    def clipper(self, base: Rule, state: State, step: int) -> Rule:
        """The rule in force: a function of public state alone."""
        del state, step
        return base

    def noise(self, sigma: float) -> list[tuple[float, int]]:
        """(total noise multiplier, steps) in the order of the run, for the nominal multiplier `sigma`."""
        return [(sigma, self.steps_total)]

    def statistic_noise(self, sigma: float) -> tuple[float, float] | None:
        """(bound of a row's statistic, standard deviation of its noise), or None: no statistic."""
        del sigma
        return None

    def statistic(self, norms: Tensor, clipper: Rule, state: State) -> Tensor:
        """[B] norms before clipping -> [S] float64: sum of the rows' statistics. Sensitive."""
        del clipper, state
        return norms.new_zeros(0)

    def update(self, answer: Tensor, clipper: Rule, state: State, facts: StepFacts) -> dict[str, Tensor]:
        """The state after the noisy answer [S]: post-processing."""
        del answer, clipper, facts
        return dict(state)

    def check(self, clipper: Rule) -> None:
        """Refuses what does not go together.

        Raises:
            InputError: a clipper whose scale is not a threshold on norms; nothing was started.
        """
        if self.KEY and self.FLAT_ONLY and not isinstance(clipper, FlatClipper):
            raise InputError(
                f"controller {self.name!r} finds the threshold of flat clipping, and {clipper.name!r} has none that it "
                "could move (its C only scales what is released, or follows a schedule of its own); use "
                "privacy.clipper=flat with it. Nothing was started."
            )


@dataclass(frozen=True, kw_only=True)
class QuantileController(Controller):
    """Flat clipping at a running estimate of the `gamma` quantile of the norms. Andrew et al., arXiv:1905.03871.

    b_i = 1[x_i <= C] (the UNclipped bit); noisy share b = (sum (b_i - 1/2) + N(0, sigma_b^2)) / m + 1/2 with m the
    expected batch; C <- C exp(-eta (b - gamma)): C falls where too many gradients are unclipped. (With the clipped
    bit in its place the same rule runs away to 0 or to infinity; a widely used framework has that.)

    Proof note: a recentred bit is +-1/2, so a row adds at most 1/2, and sigma_gradient = (sigma^-2 -
    (2 sigma_b)^-2)^(-1/2), which needs sigma < 2 sigma_b. The accountant is told sigma. Without recentring the
    sensitivity would be 1, and dividing by the realised batch would make it depend on private rows.

    Attributes:
        gamma: quantile, in (0, 1).
        eta: step of the logarithm of C.
        sigma_b: standard deviation of the noise on the count; 0: three times the total sigma.
    """

    gamma: float = 0.5
    eta: float = 0.2
    sigma_b: float = 0.0
    KEY: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        in_range(self.name, "gamma", self.gamma, low=0.0, high=1.0)
        in_range(self.name, "eta", self.eta, low=0.0, high=10.0, closed="high")
        in_range(self.name, "sigma_b", self.sigma_b, low=0.0, closed="low")

    def start(self, bound: float) -> dict[str, Tensor]:
        """bound: [1], C of the next step."""
        return {"bound": scalar(bound)}

    def clipper(self, base: Rule, state: State, step: int) -> Rule:
        """Flat at C."""
        return replace(base, l2_clip_norm=read(state["bound"]))

    def statistic_noise(self, sigma: float) -> tuple[float, float] | None:
        """(1/2, sigma_b)."""
        return 0.5, self.sigma_b or AUTO_NOISE * sigma

    def statistic(self, norms: Tensor, clipper: Rule, state: State) -> Tensor:
        """[1]: sum of the recentred bits; a norm that is not a number counts as clipped."""
        del state
        return ((norms <= clipper.l2_clip_norm).to(torch.float64) - 0.5).sum().reshape(1)

    def update(self, answer: Tensor, clipper: Rule, state: State, facts: StepFacts) -> dict[str, Tensor]:
        """C exp(-eta (b - gamma))."""
        share = float(answer[0]) / facts.denominator + 0.5
        return {**state, "bound": scalar(moved(clipper.l2_clip_norm, -self.eta * (share - self.gamma)))}


@dataclass(frozen=True, kw_only=True)
class GlobalAdaptClipper(Rule):
    """C / Z where x <= Z, else C / x. The factor of DPSGD-Global-Adapt, Esipova et al. 2023, arXiv:2206.07737.

    Proof note: x C / Z <= C for x <= Z, and exactly C above. Sensitivity C, whatever the public Z > 0.
    """

    z: float = 1.0
    KEY: ClassVar[str] = "global-adapt"

    def _factors(self, x: Tensor) -> Tensor:
        return torch.where(x <= self.z, self.l2_clip_norm / self.z, self.l2_clip_norm / x.clamp(min=self.z))


@dataclass(frozen=True, kw_only=True)
class GlobalAdaptController(Controller):
    """Scales all gradients alike, C / Z, and follows the largest norms with Z. Esipova et al. 2023, arXiv:2206.07737.

    Noisy share b of norms above tau Z; Z <- Z exp(-eta + b): Z falls slowly, and rises when many norms exceed it.

    Proof note: `GlobalAdaptClipper` has bound C for every Z. The bits 1[x > tau Z] are recentred to +-1/2, so the
    count has sensitivity 1/2 and shares sigma with the gradient as in `QuantileController`; the paper's two events
    (one per query) cost the same or more. A norm that is not a number counts as large.

    Attributes:
        z0: Z of the first step.
        eta: how fast Z falls.
        tau: share of Z at which the bit flips.
        sigma_b: standard deviation of the noise on the count; 0: three times the total sigma.
    """

    z0: float = 50.0
    eta: float = 0.1
    tau: float = 1.0
    sigma_b: float = 0.0
    KEY: ClassVar[str] = "global-adapt"

    def __post_init__(self) -> None:
        in_range(self.name, "z0", self.z0, low=LEAST, high=MOST)
        in_range(self.name, "eta", self.eta, low=0.0, high=1.0)
        in_range(self.name, "tau", self.tau, low=0.0, high=1e6)
        in_range(self.name, "sigma_b", self.sigma_b, low=0.0, closed="low")

    def start(self, bound: float) -> dict[str, Tensor]:
        """z: [1]."""
        del bound
        return {"z": scalar(self.z0)}

    def clipper(self, base: Rule, state: State, step: int) -> Rule:
        """Scaling by C / Z up to Z."""
        del step
        return GlobalAdaptClipper(l2_clip_norm=base.l2_clip_norm, z=read(state["z"]))

    def statistic_noise(self, sigma: float) -> tuple[float, float] | None:
        """(1/2, sigma_b)."""
        return 0.5, self.sigma_b or AUTO_NOISE * sigma

    def statistic(self, norms: Tensor, clipper: Rule, state: State) -> Tensor:
        """[1]: sum of the recentred bits."""
        del clipper
        large = ~(norms <= self.tau * read(state["z"]))
        return (large.to(torch.float64) - 0.5).sum().reshape(1)

    def update(self, answer: Tensor, clipper: Rule, state: State, facts: StepFacts) -> dict[str, Tensor]:
        """Z exp(-eta + b)."""
        share = float(answer[0]) / facts.denominator + 0.5
        return {**state, "z": scalar(moved(read(state["z"]), share - self.eta))}


def moved(value: float, exponent: float) -> float:
    """Value * exp(exponent), the exponent and the result within bounds."""
    exponent = min(max(exponent, -MAX_EXPONENT), MAX_EXPONENT)
    return min(max(value * math.exp(exponent), LEAST), MOST)
