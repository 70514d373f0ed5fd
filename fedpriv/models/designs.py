"""Public feature maps of a linear forecaster: which few numbers of the context explain the residual to the baseline.

Under noise, dimension is the enemy: a map from 168 steps to 24 has 4,032 coefficients, yet most of what it learns can
be said with a dozen. A design turns each window into blocks of equations  outputs ~ inputs @ coefficients, all scaled
by public constants so that columns are of equal size; what is released is the second moment of [inputs, outputs].

Shapes: B windows, C channels, n blocks, r equations per block, p inputs, m outputs, H horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.examples import Examples

_WEEK_SIN, _WEEK_COS = 2, 3  # columns of Examples.calendar: the phase of the week, Monday 0 h = 0


class Design(Protocol):
    """Contract of every design. Row i is a function of window i alone; all constants are public."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n blocks, p inputs, m outputs)."""
        ...

    @property
    def scored(self) -> int:
        """How many of the outputs are forecast; further ones only measure what is left over."""
        ...

    @property
    def constant(self) -> float:
        """Value of the constant input."""
        ...

    @property
    def horizon(self) -> int:
        """Steps that are forecast."""
        ...

    @property
    def lagged(self) -> bool:
        """Whether the last output is the first one a step earlier, 0 at the first step: it tells how errors last."""
        ...

    def inputs(self, examples: Examples) -> Tensor:
        """[B, C, n, r, p] float64; the last input is a constant. Looks at given entries only."""
        ...

    def outputs(self, examples: Examples) -> Tensor:
        """[B, C, n, r, m] float64, of the horizon's values."""
        ...

    def expand(self, predicted: Tensor) -> Tensor:
        """[B, C, n, r, m] predicted outputs -> [B, C, H] residual to the baseline, normalised units."""
        ...

    def expand_variance(self, variance: Tensor) -> Tensor:
        """[B, C, n, r, m] variances of the outputs -> [B, C, H]."""
        ...


def _filled(examples: Examples, context: int) -> Tensor:
    """[B, C, context] float64; missing entries are those of the baseline."""
    seen = torch.where(examples.given, examples.values, examples.baseline)
    return seen[:, :context].transpose(1, 2).double()


def _residual(examples: Examples, context: int) -> Tensor:
    """[B, C, H] float64: horizon minus baseline."""
    return (examples.values - examples.baseline)[:, context:].transpose(1, 2).double()


def _check_shape(context: int, horizon: int) -> None:
    if context < 1 or horizon < 1:
        raise InputError(f"context={context} and horizon={horizon} must be at least 1; nothing was fitted.")


def cosine_basis(length: int, count: int) -> Tensor:
    """[length, count] float64: the first `count` orthonormal DCT-II vectors, slowest first."""
    if not 1 <= count <= length:
        raise InputError(f"{count} cosines are not in [1, {length}]; nothing was fitted.")
    step = torch.arange(length, dtype=torch.float64)[:, None] + 0.5
    basis = torch.cos(math.pi / length * step * torch.arange(count, dtype=torch.float64)) * math.sqrt(2.0 / length)
    basis[:, 0] /= math.sqrt(2.0)
    return basis


@dataclass(frozen=True, kw_only=True)
class LagDesign:
    """The context itself (p = context + 1), recency-weighted, to cosine components of the horizon: n = r = 1.

    Attributes:
        context, horizon: steps.
        cosines: output components; 0: every step of the horizon by itself. What is cut off is one more output, which
            widens the bands and is not forecast.
        tau: steps after which a lag's weight has fallen to 1/e; inf: all lags weigh 1.
        floor: least weight of a lag.
        output_scale: of the outputs relative to the inputs; balances the noise in X'X against that in X'Y.
        input_scale: of all lags; in units of the constant.
    """

    context: int
    horizon: int
    cosines: int = 8
    tau: float = 36.0
    floor: float = 0.3
    output_scale: float = 1.4
    input_scale: float = 0.25

    def __post_init__(self) -> None:
        """Checks the public constants."""
        _check_shape(self.context, self.horizon)
        if not 0 <= self.cosines <= self.horizon:
            raise InputError(f"cosines={self.cosines} is not in [0, horizon={self.horizon}]; nothing was fitted.")
        if not (self.tau > 0 and 0 < self.floor <= 1):
            raise InputError(f"tau={self.tau} must be positive and floor={self.floor} in (0, 1]; nothing was fitted.")

    @property
    def scored(self) -> int:
        """Outputs that are forecast."""
        return self.cosines or self.horizon

    @property
    def lagged(self) -> bool:
        """Its outputs are components of the whole horizon."""
        return False

    @property
    def shape(self) -> tuple[int, int, int]:
        """One block."""
        return 1, self.context + 1, self.scored + (1 if 0 < self.cosines < self.horizon else 0)

    @property
    def constant(self) -> float:
        """1."""
        return 1.0

    @property
    def lag_weights(self) -> Tensor:
        """[context] public weight of each step of the context."""
        lag = self.context - torch.arange(self.context, dtype=torch.float64)
        return torch.exp(-(lag - 1.0) / self.tau).clamp(min=self.floor) * self.input_scale

    def _basis(self) -> Tensor:
        return cosine_basis(self.horizon, self.cosines) if self.cosines else torch.eye(self.horizon).double()

    def inputs(self, examples: Examples) -> Tensor:
        """[B, C, 1, 1, context + 1]."""
        lags = _filled(examples, self.context) * self.lag_weights
        return torch.cat([lags, torch.ones_like(lags[..., :1])], dim=-1)[:, :, None, None]

    def outputs(self, examples: Examples) -> Tensor:
        """[B, C, 1, 1, m]: components, then the root mean square of what they leave out."""
        residual, basis = _residual(examples, self.context), self._basis()
        kept = residual @ basis
        if 0 < self.cosines < self.horizon:
            left = (residual.square().sum(-1) - kept.square().sum(-1)).clamp(min=0) / (self.horizon - self.cosines)
            kept = torch.cat([kept, left.sqrt()[..., None]], dim=-1)
        return (kept * self.output_scale)[:, :, None, None]

    def expand(self, predicted: Tensor) -> Tensor:
        """[B, C, H]."""
        return predicted[:, :, 0, 0, : self.scored] @ self._basis().T / self.output_scale

    def expand_variance(self, variance: Tensor) -> Tensor:
        """[B, C, H]: components as if uncorrelated, and an equal share of the energy left out."""
        basis = self._basis()
        spread = variance[:, :, 0, 0, : self.scored] @ basis.square().T
        if self.shape[2] > self.scored:
            spread = spread + variance[:, :, 0, 0, -1:] * (1.0 - basis.square().sum(dim=1)).clamp(min=0.0)
        return spread / self.output_scale**2


# Public scales that make columns equal in size: half over the root mean square. They, and the defaults of the designs
# and of RidgeOptions, were chosen on eight utilities of EIA-930 taken as public: CISO-SDGE, PACW, SRP, ERCO-SOUT,
# SOCO, FPC, NYIS-ZONK, PJM-AEP (2020 to 2023). Keep these out of a claim of privacy or of held-out accuracy.
_PROFILE_SCALES = (0.9, 0.9, 1.0, 1.0, 4.0, 0.9, 1.2, 1.1, 1.1, 1.6, 1.6, 1.9, 0.5)


@dataclass(frozen=True, kw_only=True)
class ProfileDesign:
    """Each step of the horizon regressed on a dozen things a forecaster would look at, with few coefficients.

    Baseline plus a combination of: mean daily profile, same day last week, the two days before yesterday, the last
    readings against the day before (fading over a quarter day, and lasting), day-to-day change of the level, level a
    week ago, yesterday's level; and, where weekend status changes from yesterday to the step, of what last week did
    and the mean profile, and the change itself. Coefficients are shared within `blocks` stretches of the horizon.

    Attributes:
        context: steps, at least three periods (seven let it see the same weekday).
        horizon: steps, a multiple of `blocks`.
        period: steps of a day.
        blocks: stretches of the horizon with their own coefficients.
        weekend_shift: what to add to the calendar's clock, in hours, for local time; None: no weekend terms.
        output_scale: of the residual relative to the inputs.
        lag_scale: of the residual a step earlier, which is summed for the sake of one number, how errors last over the
            horizon: so small that the other sums hardly notice. 0: not summed, and samples are white over the horizon.
    """

    context: int
    horizon: int
    period: int
    blocks: int = 4
    weekend_shift: float | None = 0.0
    output_scale: float = 1.4
    lag_scale: float = 0.7

    def __post_init__(self) -> None:
        """Checks the public constants."""
        _check_shape(self.context, self.horizon)
        if self.period < 4 or self.context < 3 * self.period:
            raise InputError(
                f"period={self.period} must be at least 4 steps and context={self.context} at least three periods; "
                "nothing was fitted."
            )
        if self.blocks < 1 or self.horizon % self.blocks:
            raise InputError(f"blocks={self.blocks} does not divide horizon={self.horizon}; nothing was fitted.")

    @property
    def scored(self) -> int:
        """One output: the residual."""
        return 1

    @property
    def lagged(self) -> bool:
        """Whether the residual a step earlier is there, too."""
        return self.lag_scale > 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(blocks, p, 1), or (blocks, p, 2) with the residual a step earlier."""
        return self.blocks, 10 if self.weekend_shift is None else 13, 1 + self.lagged

    @property
    def constant(self) -> float:
        """Its public scale."""
        return _PROFILE_SCALES[-1]

    def _weekend(self, examples: Examples) -> Tensor:
        """[B, H] float64: weekend status of the step minus that of the day its baseline is from."""
        assert self.weekend_shift is not None
        if examples.calendar.shape[-1] <= _WEEK_COS:
            raise InputError("the calendar has no phase of the week; use weekend_shift=None. Nothing was fitted.")
        sin, cos = examples.calendar[..., _WEEK_SIN].double(), examples.calendar[..., _WEEK_COS].double()
        # one millionth of a week keeps a stamp on the hour from falling to the hour before
        phase = torch.remainder(torch.atan2(sin, cos) / (2 * math.pi) + self.weekend_shift / 168 + 1e-6, 1.0)
        weekend = (phase >= 5 / 7).double()
        step = torch.arange(self.horizon)
        return weekend[:, self.context + step] - weekend[:, self.context - self.period + step % self.period]

    def inputs(self, examples: Examples) -> Tensor:
        """[B, C, n, r, p]."""
        period, step = self.period, torch.arange(self.horizon)
        seen = _filled(examples, self.context)
        whole = min(self.context // period, 7)
        days = seen[..., self.context - whole * period :].unflatten(-1, (whole, period))  # [B, C, days, period]
        phase = step % period
        mean = days.mean(dim=-2)[..., phase]  # [B, C, H]
        base = examples.baseline[:, self.context :].transpose(1, 2).double()
        # the same weekday: day u of the horizon is a week after day u of the last seven, if seven are given
        week = days[:, :, (step // period) % whole, phase]
        quarter = period // 4
        last = seen[..., -1] - seen[..., -1 - period]
        gap = (seen[..., -quarter:] - seen[..., -quarter - period : -period]).mean(dim=-1)
        level = days.mean(dim=-1)  # [B, C, days]
        fading = torch.exp(-step.double() / quarter)
        flat = torch.ones(self.horizon, dtype=torch.float64)
        columns = [
            mean - base,
            week - mean,
            days[:, :, -2, phase] - mean,
            days[:, :, -3, phase] - mean,
            (last - 0.7 * gap)[..., None] * fading,
            gap[..., None] * flat,
            (level[..., -1] - level[..., -2])[..., None] * flat,
            level[..., 0, None] * flat,
            -level[..., -1, None] * flat,
        ]
        if self.weekend_shift is not None:
            change = self._weekend(examples)[:, None]  # [B, 1, H]
            columns += [(week - mean) * change.abs(), (mean - base) * change.abs(), 0.5 * change.expand_as(mean)]
        columns.append(torch.ones_like(mean))
        scales = _PROFILE_SCALES if self.weekend_shift is not None else (*_PROFILE_SCALES[:9], _PROFILE_SCALES[-1])
        table = torch.stack(columns, dim=-1) * torch.tensor(scales, dtype=torch.float64)
        return table.unflatten(2, (self.blocks, -1))

    def outputs(self, examples: Examples) -> Tensor:
        """[B, C, n, r, 1 or 2]: the residual, and that of the step before, 0 for the first one."""
        residual = _residual(examples, self.context)
        columns = [residual * self.output_scale]
        if self.lagged:
            columns.append(torch.nn.functional.pad(residual[..., :-1], (1, 0)) * self.lag_scale)
        return torch.stack(columns, dim=-1).unflatten(2, (self.blocks, -1))

    def expand(self, predicted: Tensor) -> Tensor:
        """[B, C, H]."""
        return predicted[..., 0].flatten(2) / self.output_scale

    def expand_variance(self, variance: Tensor) -> Tensor:
        """[B, C, H]."""
        return variance[..., 0].flatten(2) / self.output_scale**2
