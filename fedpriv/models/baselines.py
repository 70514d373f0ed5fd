"""Forecasts that cost nothing: what every trained model must beat.

Each is made of the given entries of a row alone and comes with a Gaussian band whose width is measured inside the same
row, so that it is scored like a model: point errors, CRPS and coverage. All in physical units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpriv.coherence import TAIL_DOF, TAIL_SCALE, Coherence, tail_factors
from fedpriv.errors import InputError
from fedpriv.examples import Examples
from fedpriv.laws import Law

SPREAD_FLOOR = 1e-3  # least band width, in normalised units


@dataclass(frozen=True, kw_only=True)
class Band:
    """A Gaussian forecast of every entry on its own.

    Attributes:
        point: [B, L, C] mean; given entries as read.
        stddev: [B, L, C] standard deviation; 0 where given.
    """

    point: Tensor
    stddev: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[S, B, L, C] independent draws; given entries as read."""
        noise = torch.randn(count, *self.point.shape, generator=generator, device=generator.device)
        return self.point + self.stddev * noise.to(self.point.device)

    @property
    def law(self) -> Law:
        """Of every entry by itself: what `sample` draws from."""
        return Law(self.point, self.stddev)


@dataclass(frozen=True, kw_only=True)
class JointBand(Band):
    """A forecast whose hidden entries are drawn together, with the heavy tails of `fedpriv.coherence`.

    Every entry is point + TAIL_SCALE * stddev * t, t of Student's law with TAIL_DOF degrees of freedom.

    Attributes:
        coherence: how entries go together.
    """

    coherence: Coherence

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[S, B, L, C] joint draws in physical units; given entries as read."""
        rows, length, channels = self.point.shape
        shape = rows, count, length + TAIL_DOF, channels
        white = torch.randn(shape, generator=generator, device=generator.device).to(self.point)
        noise = self.coherence.colour(white[:, :, :length]) * tail_factors(white[:, :, length:])
        return self.point + self.stddev * noise.transpose(0, 1)

    @property
    def law(self) -> Law:
        """Of every entry by itself: what `sample` draws from, but for its limit on the scale of a window."""
        return Law(self.point, TAIL_SCALE * self.stddev, TAIL_DOF)


def seasonal_naive(examples: Examples, *, period: int) -> Band:
    """The examples' own baseline; the band is the spread of the differences at one `period` inside the given part."""
    spread = _lag_spread(examples, [period])[:, 0]  # [B, C]
    return _band(examples, examples.baseline, spread[:, None].expand_as(examples.values))


def last_value(examples: Examples, *, period: int = 1) -> Band:
    """The last given reading before each entry (the next one after it, where there is none before).

    The band is that of a random walk: the spread of the given part's differences at the same distance. `period` is not
    used; it is there so that all baselines are called alike.
    """
    del period
    values = examples.values
    rows, length, channels = values.shape
    steps, before, after = _neighbours(examples)
    source = torch.where(before >= 0, before, after)
    known = source < length  # False only where a channel has no given entry at all: then 0, the window's level
    point = torch.where(known, values.gather(1, source.clamp(max=length - 1)), torch.zeros_like(values))
    distance = torch.where(known, (steps - source).abs(), torch.zeros_like(steps))
    lags = sorted({int(d) for d in distance.unique()} - {0})
    table = torch.ones(rows, max(lags, default=0) + 1, channels, device=values.device)  # [B, lag, C]
    if lags:
        table[:, lags] = _lag_spread(examples, lags)
    return _band(examples, point, table.gather(1, distance))


def linear_interpolation(examples: Examples, *, period: int = 1) -> Band:
    """On the line between the given readings before and after each entry; the nearer one where a side has none.

    The band is that of a Brownian bridge between them (of a random walk where a side has none), with the spread of the
    given part's differences at one step.
    """
    del period
    values = examples.values
    length = values.shape[1]
    steps, before, after = _neighbours(examples)
    left, right = before >= 0, after < length
    low, high = values.gather(1, before.clamp(min=0)), values.gather(1, after.clamp(max=length - 1))
    since, until = (steps - before).to(values.dtype), (after - steps).to(values.dtype)
    weight = torch.where(left & right, since / (since + until).clamp(min=1), torch.where(left, 0.0, 1.0))
    point = torch.where(left | right, (1 - weight) * low + weight * high, torch.zeros_like(values))
    variance = torch.where(left & right, since * until / (since + until).clamp(min=1), torch.where(left, since, until))
    variance = torch.where(left | right, variance, torch.ones_like(variance))
    return _band(examples, point, _lag_spread(examples, [1]) * variance.sqrt())


BASELINES: dict[str, Callable[..., Band]] = {
    "seasonal-naive": seasonal_naive,
    "last-value": last_value,
    "linear-interpolation": linear_interpolation,
}


def baselines_for(kind: str) -> tuple[str, ...]:
    """The baselines of a task; into a forecast's horizon there is nothing to interpolate to."""
    return tuple(name for name in BASELINES if kind != "forecast" or name != "linear-interpolation")


def make_baseline(name: str, examples: Examples, *, period: int) -> Band:
    """The named baseline of `BASELINES`.

    Raises:
        InputError: an unknown name.
    """
    if name not in BASELINES:
        raise InputError(f"unknown baseline {name!r}; known are {', '.join(BASELINES)}. Nothing was computed.")
    return BASELINES[name](examples, period=period)


def _neighbours(examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Three of [B, L, C]: the step, the newest given step up to it (-1: none), the next one from it on (L: none)."""
    given = examples.given
    length = given.shape[1]
    steps = torch.arange(length, device=given.device)[None, :, None].expand(given.shape)
    before = torch.where(given, steps, -1).cummax(dim=1).values
    after = torch.where(given, steps, length).flip(1).cummin(dim=1).values.flip(1)
    return steps, before, after


def _lag_spread(examples: Examples, lags: list[int]) -> Tensor:
    """[B, lags, C] root mean square difference of given entries `lag` steps apart, normalised units.

    1, the window's own scale, where fewer than two pairs are given.
    """
    values, given = examples.values, examples.given
    parts: list[Tensor] = []
    for lag in lags:
        both = given[:, lag:] & given[:, : given.shape[1] - lag]
        apart = values[:, lag:] - values[:, : values.shape[1] - lag]
        count = both.sum(dim=1)  # [B, C]
        rms = ((apart * both).square().sum(dim=1) / count.clamp(min=1)).sqrt()
        parts.append(torch.where(count >= 2, rms, torch.ones_like(rms)))
    return torch.stack(parts, dim=1).clamp(min=SPREAD_FLOOR)


def _band(examples: Examples, point: Tensor, stddev: Tensor) -> Band:
    """Physical units; given entries as read and without spread."""
    normalised = torch.where(examples.given, examples.values, point)
    return Band(
        point=normalised * examples.scale + examples.loc,
        stddev=torch.where(examples.given, torch.zeros_like(stddev), stddev) * examples.scale,
    )
