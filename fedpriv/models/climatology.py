"""Climatology: what is usual at this time of day on this type of day, from the client's own training part.

It looks at no given entry, and its table is made of private readings without noise: it is a yardstick for simulation
that never leaves a client, and no privacy label covers it. All in physical units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = 41
"""Kept of every cell: those at levels (i + 1/2) / 41. Draws between them are interpolated, beyond them is cut off."""
DAY_TYPES = 2  # Monday to Friday; Saturday and Sunday


@dataclass(frozen=True)
class Climatology:
    """Means and quantiles of every cell of meter, day type and time of day.

    Attributes:
        mean: [M, 2, slots, C] float32.
        quantiles: [QUANTILES, M, 2, slots, C] float32, ascending.
    """

    mean: Tensor
    quantiles: Tensor

    def point(self, meter: Tensor, weekend: Tensor, slot: Tensor) -> Tensor:
        """[B] meters, [B, L] day types (0 or 1) and times of day -> [B, L, C] mean."""
        return self.mean[meter[:, None], weekend, slot]

    def sample(self, meter: Tensor, weekend: Tensor, slot: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
        """[S, B, L, C] draws from the cells, independent of each other and from step to step."""
        cells = self.quantiles[:, meter[:, None], weekend, slot]  # [Q, B, L, C]
        uniform = torch.rand(count, *cells.shape[1:], generator=generator)
        place = (uniform * QUANTILES - 0.5).clamp(0.0, QUANTILES - 1.0)
        low = place.long().clamp(max=QUANTILES - 2)
        return torch.lerp(cells.gather(0, low), cells.gather(0, low + 1), place - low)


def fit_climatology(
    values: NDArray[np.floating], *, weekend: NDArray[np.bool_], slot: NDArray[np.int64], slots: int
) -> Climatology:
    """Reads private rows. A cell without a reading takes the other day type's, else the meter's mean, else 0.

    Args:
        values: [M, T, C] physical units, NaN where nothing was read: the training part.
        weekend: [T] whether the step lies on a Saturday or Sunday.
        slot: [T] step of the day, in [0, slots).
        slots: steps in a day.
    """
    meters, _, channels = values.shape
    mean = np.full((meters, DAY_TYPES, slots, channels), np.nan)
    quantiles = np.full((QUANTILES, meters, DAY_TYPES, slots, channels), np.nan)
    for kind in range(DAY_TYPES):
        for at in range(slots):
            cell = values[:, (slot == at) & (weekend == bool(kind))].astype(np.float64)  # [M, n, C]
            if cell.shape[1]:
                mean[:, kind, at], quantiles[:, :, kind, at] = _summary(cell)
    for table in (mean[None], quantiles):  # [..., M, 2, slots, C]
        table[...] = np.where(np.isnan(table), table[:, :, ::-1], table)
    read = np.isfinite(values)
    total = np.where(read, values, 0.0).sum(axis=(1,), dtype=np.float64) / np.maximum(read.sum(axis=1), 1)  # [M, C]
    usual = total[:, None, None, :]
    return Climatology(
        mean=torch.from_numpy(np.where(np.isnan(mean), usual, mean).astype(np.float32)),
        quantiles=torch.from_numpy(np.where(np.isnan(quantiles), usual, quantiles).astype(np.float32)),
    )


def _summary(cell: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[M, n, C] -> [M, C] means and [QUANTILES, M, C] quantiles (linear between order statistics), NaN where none."""
    count = np.isfinite(cell).sum(axis=1)  # [M, C]
    with np.errstate(invalid="ignore"):
        mean = np.nansum(cell, axis=1) / np.where(count, count, np.nan)
    ordered = np.sort(cell, axis=1)  # NaN last
    levels = (np.arange(QUANTILES)[:, None, None] + 0.5) / QUANTILES
    place = levels * np.maximum(count - 1, 0)  # [Q, M, C]
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below = np.take_along_axis(ordered, np.moveaxis(low, 0, 1), axis=1)  # [M, Q, C]
    above = np.take_along_axis(ordered, np.moveaxis(high, 0, 1), axis=1)
    share = np.moveaxis(place - low, 0, 1)
    found = below + share * (above - below)
    return mean, np.where(count[:, None] > 0, found, np.nan).swapaxes(0, 1)
