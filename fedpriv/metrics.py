"""Scores of forecasts as sums that merge: score windows anywhere, add the sums, divide at the end.

Over target entries only, with `e` forecast minus truth and `u` the unit (the client's training standard deviation):

    mse, mae       mean (e/u)^2, mean |e/u|;  rmse = sqrt(mse)
    nmae           sum |e| / sum |truth|, in original units
    mape           mean |e| / max(|truth|, u / 10), in original units: the floor keeps hours without load from deciding
    r2             1 - sum (e/u)^2 / sum (z - mean z)^2 with z = truth / u; below 0: worse than the mean of the targets
    crps           mean over entries of E|X - y| - E|X - X'| / 2, in units of u, over the samples X; the second
                   expectation is over *different* samples ("fair", unbiased in their number; Ferro 2014)
    energy-score   mean over windows of the same with the Euclidean norm over all targets of a window (also fair)
    coverage50/90  share of targets inside the central interval between sample quantiles. Quantile p of S samples is the
                   order statistic at p (S + 1), interpolated: then calibrated samples cover 50 % and 90 % whatever S
                   (the usual p (S - 1) + 1 covers 81 % instead of 90 % at S = 20)
    pinball        mean over entries and the levels 0.05, 0.10 ... 0.95 of the pinball loss, in units of u
    wql            2 x mean pinball over levels, summed over entries, divided by sum |truth|, in original units
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fedpriv.errors import InputError

POINT_METRICS = ("mse", "mae", "rmse", "nmae", "mape", "r2")
SAMPLE_METRICS = ("crps", "coverage50", "coverage90", "energy-score", "pinball", "wql")
METRICS = POINT_METRICS + SAMPLE_METRICS
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
MAPE_FLOOR = 0.1  # of the unit u
_PREFIX = "sum."


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over scored windows. Adding two of them is scoring both sets of windows."""

    entries: float = 0.0  # targets scored
    windows: float = 0.0  # windows with a target
    squared: float = 0.0  # (e/u)^2
    absolute: float = 0.0  # |e/u|
    raw_absolute: float = 0.0  # |e|
    raw_truth: float = 0.0  # |truth|
    relative: float = 0.0  # |e| / max(|truth|, floor)
    truth: float = 0.0  # truth/u
    truth_squared: float = 0.0
    sampled_entries: float = 0.0  # targets scored with samples
    sampled_windows: float = 0.0
    sampled_truth: float = 0.0  # |truth| at these
    crps: float = 0.0
    energy: float = 0.0
    covered50: float = 0.0
    covered90: float = 0.0
    pinball: float = 0.0  # mean over levels, in units of u
    raw_pinball: float = 0.0

    def merge(self, other: Score) -> Score:
        """The score of both sets of windows."""
        return Score(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def finalize(self, names: Iterable[str] = METRICS) -> dict[str, float]:
        """The metrics asked for; one that nothing was scored for is left out.

        Raises:
            InputError: an unknown name.
        """
        wanted = list(names)
        if unknown := [name for name in wanted if name not in METRICS]:
            raise InputError(f"unknown metric {unknown[0]!r}; known are {', '.join(METRICS)}. Nothing was computed.")
        mse = _ratio(self.squared, self.entries)
        spread = self.truth_squared - self.truth * _ratio(self.truth, self.entries)
        # A constant truth leaves rounding errors of the two sums, not a spread.
        spread = spread if spread > 1e-12 * self.truth_squared else 0.0
        values = {
            "mse": mse,
            "mae": _ratio(self.absolute, self.entries),
            "rmse": math.sqrt(mse),
            "nmae": _ratio(self.raw_absolute, self.raw_truth),
            "mape": _ratio(self.relative, self.entries),
            "r2": 1.0 - _ratio(self.squared, spread),
            "crps": _ratio(self.crps, self.sampled_entries),
            "energy-score": _ratio(self.energy, self.sampled_windows),
            "coverage50": _ratio(self.covered50, self.sampled_entries),
            "coverage90": _ratio(self.covered90, self.sampled_entries),
            "pinball": _ratio(self.pinball, self.sampled_entries),
            "wql": _ratio(2.0 * self.raw_pinball, self.sampled_truth),
        }
        return {name: values[name] for name in wanted if not math.isnan(values[name])}

    def to_dict(self) -> dict[str, float]:
        """The sums under flat names, for a message."""
        return {_PREFIX + f.name: float(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, flat: Mapping[str, object]) -> Score:
        """The score that `to_dict` wrote; other keys are ignored.

        Raises:
            InputError: a sum is missing or is not a finite number.
        """
        sums: dict[str, float] = {}
        for f in fields(cls):
            value = flat.get(_PREFIX + f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"a score lacks a finite {_PREFIX}{f.name}; it was not merged.")
            sums[f.name] = float(value)
        return cls(**sums)


def score(
    truth: Tensor,
    point: Tensor,
    samples: Tensor | None,
    target_mask: Tensor,
    unit_scale: Tensor | float,
) -> Score:
    """Scores windows, in float64.

    Args:
        truth: [B, L, C] physical units; read at targets only.
        point: [B, L, C] point forecast, physical units.
        samples: [S, B, L, C] forecast samples with S >= 2, or None for a forecast without a spread.
        target_mask: [B, L, C] bool, the entries to score.
        unit_scale: [C] or a number: the client's training standard deviation, physical units, > 0.

    Raises:
        InputError: a forecast is not finite at a target, fewer than two samples, or a unit that is not positive.
    """
    unit = torch.as_tensor(unit_scale, dtype=torch.float64, device=truth.device)
    if not bool((torch.isfinite(unit) & (unit > 0)).all()):
        raise InputError(f"unit_scale={unit.tolist()} is not positive and finite; nothing was scored.")
    unit = unit.expand(truth.shape)[target_mask]  # [n]
    y = truth[target_mask].double()  # [n]
    error = point[target_mask].double() - y
    if not bool(torch.isfinite(error).all()):
        raise InputError("a forecast or its truth is not finite at a target; nothing was scored.")
    windows = target_mask.flatten(1).any(dim=1)  # [B]
    sums = {
        "entries": y.numel(),
        "windows": windows.sum(),
        "squared": (error / unit).square().sum(),
        "absolute": (error / unit).abs().sum(),
        "raw_absolute": error.abs().sum(),
        "raw_truth": y.abs().sum(),
        "relative": (error.abs() / torch.maximum(y.abs(), MAPE_FLOOR * unit)).sum(),
        "truth": (y / unit).sum(),
        "truth_squared": (y / unit).square().sum(),
    }
    if samples is not None:
        if samples.shape[0] < 2:
            raise InputError(f"{samples.shape[0]} samples per window: at least 2 are needed; nothing was scored.")
        drawn = samples[:, target_mask].double()  # [S, n]
        if not bool(torch.isfinite(drawn).all()):
            raise InputError("a sample is not finite at a target; nothing was scored.")
        ordered = drawn.sort(dim=0).values
        loss = pinball(ordered, y)  # [n]
        row = torch.arange(truth.shape[0], device=truth.device)[:, None, None].expand(truth.shape)[target_mask]  # [n]
        sums |= {
            "sampled_entries": y.numel(),
            "sampled_windows": windows.sum(),
            "sampled_truth": y.abs().sum(),
            "crps": (crps(ordered, y) / unit).sum(),
            "energy": energy_scores(drawn / unit, y / unit, row, truth.shape[0]).sum(),
            "covered50": _covered(ordered, y, 0.5).sum(),
            "covered90": _covered(ordered, y, 0.9).sum(),
            "pinball": (loss / unit).sum(),
            "raw_pinball": loss.sum(),
        }
    return Score(**{name: float(value) for name, value in sums.items()})


def crps(ordered: Tensor, y: Tensor) -> Tensor:
    """Samples sorted along the first axis [S, n] and truth [n] -> [n], fair energy form (S >= 2)."""
    count = ordered.shape[0]
    # sum_{i<j} (x_j - x_i) = sum_i (2i - S - 1) x_i for sorted x, i = 1 ... S
    rank = 2.0 * torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device) - count - 1.0
    spread = (rank[:, None] * ordered).sum(dim=0) / (count * (count - 1))
    return (ordered - y).abs().mean(dim=0) - spread


def energy_scores(drawn: Tensor, y: Tensor, row: Tensor, rows: int) -> Tensor:
    """[B] fair energy score of each window; samples [S, n], truth [n], window of each entry [n]; 0 without targets."""
    count = drawn.shape[0]

    def norms(difference: Tensor) -> Tensor:  # [S, n] -> [S, B]
        zero = torch.zeros(difference.shape[0], rows, dtype=difference.dtype, device=difference.device)
        return zero.index_add(1, row, difference.square()).sqrt()

    distance = norms(drawn - y).mean(dim=0)
    spread = torch.zeros_like(distance)
    for shift in range(1, count):  # every ordered pair of different samples, once
        spread = spread + norms(drawn - drawn.roll(shift, dims=0)).sum(dim=0)
    return distance - 0.5 * spread / (count * (count - 1))


def quantile(ordered: Tensor, level: float) -> Tensor:
    """[n] sample quantile of sorted samples [S, n]: the order statistic at level * (S + 1), interpolated."""
    count = ordered.shape[0]
    position = min(max(level * (count + 1), 1.0), float(count)) - 1.0
    low = min(int(position), count - 2)
    return torch.lerp(ordered[low], ordered[low + 1], position - low)


def pinball(ordered: Tensor, y: Tensor) -> Tensor:
    """[n] pinball loss of the sample quantiles, mean over LEVELS."""
    total = torch.zeros_like(y)
    for level in LEVELS:
        under = y - quantile(ordered, level)
        total = total + torch.maximum(level * under, (level - 1.0) * under)
    return total / len(LEVELS)


def _covered(ordered: Tensor, y: Tensor, share: float) -> Tensor:
    low, high = quantile(ordered, 0.5 - share / 2), quantile(ordered, 0.5 + share / 2)
    return (y >= low) & (y <= high)


def _ratio(total: float, count: float) -> float:
    return total / count if count > 0 else math.nan
