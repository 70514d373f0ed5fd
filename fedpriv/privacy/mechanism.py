"""The Gaussian mechanism of one private step: noise on the sum, then a public divisor.

A `ClippedSum` is sensitive, a `Released` is private by the event that paid for it; whether the noise is in
already is a type, not a comment. Noise follows the bound that clipped; the event is derived from the same
object, so the two cannot drift apart.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from dp_accounting import DpEvent, dp_event
from torch import Tensor

from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.clippers import Clipper, Rule
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.engines.plain import plain_mean
from fedpriv.seeding import KeyedRandom, PrivacyRng

__all__ = ["Amplifier", "Mechanism", "Released", "plain_mean"]


class Amplifier(Protocol):
    """The side of a sampler that a mechanism needs: what its choice of rows is worth."""

    def amplify(self, inner: DpEvent, unit: Any, relation: Any) -> DpEvent:
        """The event of running `inner` on the sampled rows, for `unit` under `relation`."""
        ...


@dataclass(frozen=True)
class Released:
    """Private by `event`; anything may read it.

    Attributes:
        grad: [P] float32, (clipped sum + noise) / denominator.
        event: the DpEvent of this one step.
    """

    grad: Tensor
    event: DpEvent


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Sampler, clipper and noise of one step, and the event that follows from them.

    Statement: for two data sets that differ in one `unit` under `relation`, the grads of a step are as close as
    `step_event()` says. Proof: given the rows drawn, the sum changes by at most `clipper.bound` (removed or zeroed)
    per row that contains the unit; noise N(0, (noise_multiplier * bound)^2) per coordinate on the sum is the
    Gaussian mechanism of that multiplier; the sampler's `amplify` accounts for the drawing of rows. Division by a
    public number and rounding to float32 are post-processing. Sums of float32 round at about 1e-7 of their size;
    engines keep 1e-5 of the bound in hand for each row (`ROUNDING_MARGIN`). Abadi et al. 2016, arXiv:1607.00133.

    Attributes:
        noise_multiplier: standard deviation of the noise over `clipper.bound` (sigma), > 0.
    """

    sampler: Amplifier
    clipper: Clipper
    noise_multiplier: float
    unit: Any
    relation: Any

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise InputError(
                f"noise_multiplier={self.noise_multiplier} is not a finite number above 0; nothing was started."
            )

    @property
    def stddev(self) -> float:
        """Standard deviation of the noise on the sum, per coordinate: public."""
        return self.noise_multiplier * self.clipper.bound

    def clipper_at(self, step: int) -> Clipper:
        """The rule in force at a step of the run: `clipper`, or its place on a public schedule if it has one."""
        return self.clipper.at(step) if isinstance(self.clipper, Rule) else self.clipper

    def step_event(self) -> DpEvent:
        """What one step costs."""
        return self.sampler.amplify(dp_event.GaussianDpEvent(self.noise_multiplier), self.unit, self.relation)

    def release(self, clipped: ClippedSum, *, denominator: float, rng: PrivacyRng) -> Released:
        """Adds the noise and divides. A step whose batch is empty must be released too.

        Args:
            clipped: the sensitive sum of this step.
            denominator: public, such as the expected batch size; never the size of this batch.
            rng: source of the noise; noise is drawn and added in float64.

        Raises:
            InputError: a denominator that is not positive.
            CheckFailed: the sum was clipped to another bound or is not finite; nothing was released.
        """
        if not (math.isfinite(denominator) and denominator > 0):
            raise InputError(f"denominator={denominator} is not a finite number above 0; nothing was released.")
        if clipped.bound != self.clipper.bound:
            raise CheckFailed(
                f"the sum was clipped to {clipped.bound:g}, the mechanism's bound is {self.clipper.bound:g}; "
                "nothing was released."
            )
        total = clipped.total
        # A finite sum of entries means finite entries, at a thirtieth of the cost of looking at each.
        if not (bool(total.sum().isfinite()) or bool(total.isfinite().all())):
            raise CheckFailed("the clipped sum is not finite (a fault of the gradient engine); nothing was released.")
        return Released(_noisy(total, self.stddev, denominator, rng), self.step_event())


def _noisy(total: Tensor, stddev: float, denominator: float, rng: PrivacyRng) -> Tensor:
    """[P] float32 (total + stddev * normals) / denominator, in float64 throughout, rounded at the end.

    A `KeyedRandom` hands its normals out in pieces, which are used up while they are in the cache: the same bits.
    """
    if not isinstance(rng, KeyedRandom) or total.device.type != "cpu":
        noise = torch.from_numpy(rng.standard_normal(total.numel())).to(total.device)  # pyright: ignore
        return noise.mul_(stddev).add_(total).div_(denominator).to(torch.float32)
    sums, out = total.numpy(), np.empty(total.numel(), dtype=np.float32)
    for place, noise in rng.normal_pieces(total.numel()):
        noise *= stddev
        noise += sums[place]
        np.divide(noise, denominator, out=out[place], casting="same_kind")
    return torch.from_numpy(out)
