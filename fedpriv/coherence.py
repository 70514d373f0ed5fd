"""How the hidden entries of a window go together: correlated noise in the place of white noise.

A forecast that is too high in one hour is too high in the next, and a filled gap is one curve: samples must be drawn
together over all hidden steps, or sums over hours (a day's energy, a peak's width) get bands that are far too narrow.
A one-round model says how: its conditional covariance, post-processing of what was paid for.

The diffusion takes the correlation into its *noise* (Bilos et al., arXiv:2211.02590): y_t = a y_0 + s e with
e ~ N(0, R), R the correlation of the hidden entries, in training and in sampling. Every entry of e is standard normal
by itself, so losses, schedules and the denoiser's algebra stay as they are, and where the residual is N(m, v R), which
is what a warm start begins with, the entry-wise estimate m + g (y_t - a m) *is* the posterior mean. Its probability
flow takes e to m + sqrt(v) e: samples have the correlation of the one-round model before anything is trained.

How hard a window is varies more than its given entries tell: errors of real windows are a mixture of small and large
scales. So the scale of a drawn window is random, too: a multivariate Student t with TAIL_DOF degrees of freedom, one
scale for all entries of a series and draw. Statistics of windows clipped to equal norm tell of a *typical* window, not
of the mean square, which hard windows rule: the t is narrower in the middle by TAIL_SCALE and wider in the tails. Both
numbers were chosen on the public utilities named in `fedpriv.models.designs`; a normal law covers too little at 90 %
(88 % there) and too much at 50 % (56 %), the t 90 % and 50 %, with less CRPS.

Shapes: B windows, K draws (or samples) of each, L steps, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TAIL_DOF = 3
TAIL_SCALE = 0.77
TAIL_LIMIT = 10.0
TAIL_SPREAD = TAIL_SCALE * math.sqrt(TAIL_DOF / (TAIL_DOF - 2))
"""Standard deviation of TAIL_SCALE times the t: what a mean square error learns as the spread."""

Group = tuple[Tensor, Tensor, Tensor]
"""Series b * C + c [n], their common hidden steps [h], and the Cholesky factor [h, h] of the correlation there."""


@dataclass(frozen=True, eq=False)
class Coherence:
    """Groups of series of a batch that share a correlation; what is in none of them is left white."""

    groups: tuple[Group, ...] = ()

    def colour(self, white: Tensor) -> Tensor:
        """[B, K, L, C] independent standard normals -> of the same law entry by entry, and correlated over steps."""
        return self._through(white, lambda x, factor: x @ factor.T)

    def whiten(self, coloured: Tensor) -> Tensor:
        """The inverse of `colour`."""
        return self._through(coloured, lambda x, factor: torch.linalg.solve_triangular(factor, x.mT, upper=False).mT)

    def part(self, start: int) -> Coherence:
        """Of the steps from `start` on alone, numbered from 0 there.

        The steps before are the last to be drawn, so that the rest keeps its correlation: a factor is that of the
        steps it is asked for.
        """
        if not start:
            return self
        kept: list[Group] = []
        for series, steps, factor in self.groups:
            late = steps >= start
            if bool(late.all()):
                kept.append((series, steps - start, factor))
            elif bool(late.any()):
                covariance = factor[late].double() @ factor[late].double().T
                kept.append((series, steps[late] - start, torch.linalg.cholesky(covariance).float()))
        return Coherence(tuple(kept))

    def _through(self, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`change` takes [n, K, h] and the factor [h, h] of a group to [n, K, h]."""
        if not self.groups:
            return x
        rows, count, length, channels = x.shape
        flat = x.permute(0, 3, 1, 2).reshape(rows * channels, count, length).clone()
        draw = torch.arange(count, device=x.device)[None, :, None]
        for series, steps, factor in self.groups:
            at = series.to(x.device)[:, None, None], draw, steps.to(x.device)
            flat[at] = change(flat[at], factor.to(x.device, x.dtype))
        return flat.reshape(rows, channels, count, length).permute(0, 2, 3, 1)


def tail_factors(white: Tensor) -> Tensor:
    """[..., TAIL_DOF, C] independent standard normals -> [..., 1, C] random scales of a drawn window.

    A standard normal times its factor is TAIL_SCALE times a Student t, but for one window in 700, whose scale would
    be more than TAIL_LIMIT times the common one: such curves help nobody.
    """
    least = TAIL_DOF / TAIL_LIMIT**2
    return TAIL_SCALE * (TAIL_DOF / white.square().sum(dim=-2, keepdim=True).clamp(min=least)).sqrt()


def correlation_factor(covariance_factor: Tensor) -> Tensor:
    """Cholesky factor [h, h] of a covariance -> float32 factor of its correlation: rows of norm 1."""
    return (covariance_factor / covariance_factor.norm(dim=1, keepdim=True)).float()


def fading_factor(steps: int, correlation: float) -> Tensor:
    """[steps, steps] float32 factor of the correlations correlation^|i - j|: an autoregression of order one."""
    lag = torch.arange(steps, dtype=torch.float64)
    table = correlation ** (lag[:, None] - lag).abs()
    return torch.linalg.cholesky(table).float()
