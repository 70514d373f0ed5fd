"""Forecasts that cost nothing: what every trained model must beat.

Each is made of the given entries of a row alone and comes with a Gaussian band whose width is measured inside the same
row, so that it is scored like a model: point errors, CRPS and coverage. All in physical units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.examples import Examples

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
    values, given = examples.values, examples.given
    rows, length, channels = values.shape
    steps = torch.arange(length, device=values.device)[None, :, None].expand(values.shape)
    before = torch.where(given, steps, -1).cummax(dim=1).values  # [B, L, C] newest given step up to here
    after = torch.where(given, steps, length).flip(1).cummin(dim=1).values.flip(1)  # next given step
    source = torch.where(before >= 0, before, after)
    known = source < length  # False only where a channel has no given entry at all: then 0, the window's level
    point = torch.where(known, values.gather(1, source.clamp(max=length - 1)), torch.zeros_like(values))
    distance = torch.where(known, (steps - source).abs(), torch.zeros_like(steps))
    lags = sorted({int(d) for d in distance.unique()} - {0})
    table = torch.ones(rows, max(lags, default=0) + 1, channels, device=values.device)  # [B, lag, C]
    if lags:
        table[:, lags] = _lag_spread(examples, lags)
    return _band(examples, point, table.gather(1, distance))


BASELINES: dict[str, Callable[..., Band]] = {"seasonal-naive": seasonal_naive, "last-value": last_value}


def make_baseline(name: str, examples: Examples, *, period: int) -> Band:
    """The named baseline of `BASELINES`.

    Raises:
        InputError: an unknown name.
    """
    if name not in BASELINES:
        raise InputError(f"unknown baseline {name!r}; known are {', '.join(BASELINES)}. Nothing was computed.")
    return BASELINES[name](examples, period=period)


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
