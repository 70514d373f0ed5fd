"""Hardened mode: rows on an integer grid, an exact sum, discrete Gaussian noise. No rounding error touches the claim.

The default path adds floating-point noise to a floating-point sum; attacks on last digits (Mironov 2012) are outside
its claim. Here, with g = `GRID` cells per bound C and P parameters:

1. every row's gradient is computed ALONE (in a batch, the kernels' rounding of a row depends on its neighbours),
   clipped to C (1 - sqrt(P) / (2 g)) and rounded to the grid of cell C / g, which moves it by at most
   C sqrt(P) / (2 g): its norm is at most g cells. That is then CHECKED in integers; a row that fails is left out, which
   is a function of that row alone.
2. The rows are added in int64, exactly.
3. Exact discrete Gaussian noise of parameter S >= (sigma g)^2 is added to each coordinate.
4. Scaling to floating point is post-processing.

Proof note. A unit in one row moves the integer sum by a vector of integers of norm at most g (zero-out), and the
discrete Gaussian with parameter S on integer vectors is g^2 / (2 S) <= 1 / (2 sigma^2) zCDP (Canonne, Kamath, Steinke
2020, arXiv:2004.00010, theorem 4 and its multivariate form, theorem 14). Touching J rows costs J^2 times that,
replacing the unit four times.

What is claimed with Poisson sampling: NOTHING. No amplification theorem for the multivariate discrete Gaussian is used
here, so each step is charged as if every row were in it (`Sampler.amplify`); conditioning on the coins and joint
convexity make that valid. Sampling at a rate below 1 then only loses signal: use privacy.sampling_prob = 1 with it.
Composition is that of zCDP, converted at the best order.

Not covered: how long a row takes, and non-deterministic kernels (one thread on a CPU is deterministic).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import torch
from dp_accounting import DpEvent, dp_event
from torch import Tensor

from fedpriv.errors import CheckFailed, InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper
from fedpriv.privacy.discrete_gaussian import discrete_gaussian
from fedpriv.privacy.engines.base import ClippedSum, RowEngine, row_factors, row_norms
from fedpriv.privacy.mechanism import Mechanism, Released
from fedpriv.seeding import PrivacyRng

GRID: Final = 1 << 20  # cells per bound: rounding costs sqrt(P) / 2^21 of the bound, 0.003 % at 4,000 parameters
_EXACT: Final = 1 << 22  # squares of at most GRID that an int64 adds without overflow


def discrete_event(noise_multiplier: float) -> dp_event.ZCDpEvent:
    """One release of a sum in which a unit has at most one row, zero-out; samplers scale it, and never amplify it."""
    return dp_event.ZCDpEvent(1.0 / (2.0 * noise_multiplier**2))


@dataclass(frozen=True)
class GridSum(ClippedSum):
    """Sensitive: an exact sum of rows on the grid; `total` is empty.

    Attributes:
        cells: [P] int64, in units of bound / GRID.
    """

    cells: Tensor = field(kw_only=True, repr=False)


class GridEngine:
    """A gradient engine whose sums are exact: rows one by one, rounded to the grid, added in int64.

    Args:
        rows: gives the gradients of rows.
    """

    def __init__(self, rows: RowEngine) -> None:
        self._rows = rows

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> GridSum:
        """The sum over rows of factor * gradient on the grid; see the module."""
        total: Tensor | None = None
        for i in range(len(examples)):
            part = slice(i, i + 1)
            row = on_grid(self._rows.per_row(examples.rows(part), draws.rows(part)), clipper)
            total = row if total is None else total + row
        if total is None:
            total = torch.zeros(self._rows.per_row(examples, draws).shape[1], dtype=torch.int64)
        return GridSum(torch.zeros(0), clipper.bound, cells=total)


def on_grid(row: Tensor, clipper: Clipper) -> Tensor:
    """[1, P] gradient -> [P] int64 cells of norm at most GRID; zeros where it is not finite or fails the check."""
    norms = row_norms(row)
    factor = float(row_factors(clipper, norms)[0])
    if factor == 0.0:
        return torch.zeros(row.shape[1], dtype=torch.int64)
    shrink = 1.0 - math.sqrt(row.shape[1]) / (2 * GRID)
    cells = (row[0].double() * (factor * shrink * GRID / clipper.bound)).round().cpu()
    if not bool((cells.abs() <= GRID).all()):  # false for NaN
        return torch.zeros(row.shape[1], dtype=torch.int64)
    whole = cells.to(torch.int64)
    square = sum(int(part.square().sum()) for part in whole.split(_EXACT))
    return whole if square <= GRID**2 else torch.zeros_like(whole)


@dataclass(frozen=True, kw_only=True)
class HardenedMechanism(Mechanism):
    """The mechanism of one step on the grid; see the module for statement and proof."""

    def step_event(self) -> DpEvent:
        """What one step costs: zCDP, scaled to the unit and relation, not amplified by sampling."""
        return self.sampler.amplify(discrete_event(self.noise_multiplier), self.unit, self.relation)

    @property
    def variance(self) -> int:
        """The parameter S of the noise in cells^2: (sigma GRID)^2, rounded up exactly."""
        return math.ceil((Fraction(self.noise_multiplier) * GRID) ** 2)

    def release(self, clipped: ClippedSum, *, denominator: float, rng: PrivacyRng) -> Released:
        """Adds exact discrete noise, then scales and divides.

        Raises:
            InputError: a denominator that is not positive.
            CheckFailed: the sum is not on the grid or was clipped to another bound; nothing was released.
        """
        if not (math.isfinite(denominator) and denominator > 0):
            raise InputError(f"denominator={denominator} is not a finite number above 0; nothing was released.")
        if not isinstance(clipped, GridSum) or clipped.bound != self.clipper.bound:
            raise CheckFailed("the sum is not an exact one of this mechanism's bound; nothing was released.")
        noise = torch.from_numpy(discrete_gaussian(self.variance, clipped.cells.numel(), rng))
        noisy = (clipped.cells + noise).double() * (self.clipper.bound / GRID / denominator)
        return Released(noisy.to(torch.float32), self.step_event())


def check_size(num_parameters: int) -> None:
    """Refuses models for which rounding would eat the bound.

    Raises:
        InputError: more than a tenth of the bound would be lost.
    """
    lost = math.sqrt(num_parameters) / (2 * GRID)
    if lost > 0.1:
        raise InputError(
            f"privacy.noise=discrete-gaussian: rounding {num_parameters:,} parameters would take {lost:.0%} of the "
            "bound; train fewer. Nothing was started."
        )


def check_rules(choice: Any) -> None:
    """Refuses rules whose other releases are not on the grid.

    Args:
        choice: a `RuleChoice`.

    Raises:
        InputError: a controller or gradient rule with discrete noise; nothing was started.
    """
    for part in ("controller", "gradient_rule"):
        if getattr(choice, part) != "none":
            raise InputError(
                f"privacy.noise=discrete-gaussian adds exact noise to clipped gradients only, not to what "
                f"{part}={getattr(choice, part)} releases; set it to none. Nothing was started."
            )
