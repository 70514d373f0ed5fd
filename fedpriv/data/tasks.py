"""What is given of a window and what is hidden, and the normalised examples that follow from it.

Everything about row i comes from row i: its mask from its own draws, its scale and baseline from its own given
entries. Masks follow the DP-AdaLN paper (arXiv:2602.22610; exact draws as in the project's methods note).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.config import DataConfig, TaskConfig
from fedpriv.data.windows import Windows
from fedpriv.examples import Examples
from fedpriv.seeding import PrivacyRng

SCALE_FLOOR = 1e-2
"""Least scale of a window, as a share of the mean absolute value of its given entries (public constant)."""
SCALE_TINY = 1e-6
"""Where even that floor is below this (nothing given, or all zero), the scale is 1."""
NORMALISED_LIMIT = 1e6
"""Normalised values are brought into +-this; with window scaling no given entry can be beyond sqrt(L)."""
SHORT_GAP = 6
"""Gaps of at most this many steps between given entries are interpolated linearly in the baseline."""

_FAMILIES = ("random", "block", "stride", "gap")
_OF_ANY = 3  # `any` draws from the first three, those of the paper
_STRIDE_BLOCKS = (4, 8)
_HEAD_DRAWS = 4  # uniforms per row before the L that order its steps


def task_masks(task: TaskConfig, observed: Tensor, rng: PrivacyRng) -> Tensor:
    """Which entries to hide: [B, L, C] bool, whole steps, the same for all channels.

    forecast: the last `horizon` steps. imputation: one mask of the family `task.mask` per row (`any`: one of
    random, block and stride, evenly). mixed: for each row either, evenly.

    Row i uses its own draws, a fixed number of them, so its mask depends neither on other rows nor on data.

    Args:
        task: kind, mask family and sizes.
        observed: [B, L, C] bool; only its shape is used.
        rng: a simulation's stream or the operating system's.
    """
    batch, length, channels = observed.shape
    hidden, _ = _drawn_masks(task, batch, length, rng)
    return torch.from_numpy(hidden)[:, :, None].expand(batch, length, channels)


def mask_kinds(task: TaskConfig) -> tuple[str, ...]:
    """The kinds of masks that a task draws from: forecast, random, block, stride, gap."""
    families = _FAMILIES[:_OF_ANY] if task.mask == "any" else (task.mask,)
    return {"forecast": ("forecast",), "imputation": families, "mixed": ("forecast", *families)}[task.kind]


def drawn_kinds(task: TaskConfig, batch: int, rng: PrivacyRng) -> NDArray[np.str_]:
    """[B] which of `mask_kinds` each row of `task_masks` is, for a stream in the same state."""
    return _drawn_masks(task, batch, task.window, rng)[1]


def _drawn_masks(
    task: TaskConfig, batch: int, length: int, rng: PrivacyRng
) -> tuple[NDArray[np.bool_], NDArray[np.str_]]:
    """[B, L] masks and [B] their kinds. No draw for forecasts."""
    hidden = np.zeros((batch, length), dtype=bool)
    hidden[:, max(length - task.horizon, 0) :] = True
    kinds = np.full(batch, "forecast")
    if task.kind == "forecast" or not batch:
        return hidden, kinds
    draws = rng.random(batch * (_HEAD_DRAWS + length)).reshape(batch, _HEAD_DRAWS + length)
    masks, family = _imputation_masks(task, draws, length)
    if task.kind == "imputation":
        return masks, family
    ahead = draws[:, 0] < 0.5
    return np.where(ahead[:, None], hidden, masks), np.where(ahead, kinds, family)


def _imputation_masks(
    task: TaskConfig, draws: NDArray[np.float64], length: int
) -> tuple[NDArray[np.bool_], NDArray[np.str_]]:
    """[B, L] masks and [B] families from [B, 4 + L] uniforms: column 1 picks the family, 2 and 3 its sizes, the rest
    the order."""
    pick, size, place = draws[:, 1:2], draws[:, 2:3], draws[:, 3:4]
    if task.mask == "any":
        family = np.minimum((pick * _OF_ANY).astype(np.int64), _OF_ANY - 1)
    else:
        family = np.full_like(pick, _FAMILIES.index(task.mask), dtype=np.int64)
    step = np.arange(length)
    # random: round(r L) distinct steps, r uniform in [ratio_low, ratio_high]
    ratio = task.ratio_low + size * (task.ratio_high - task.ratio_low)
    hide = np.clip(np.rint(ratio * length), 1, length - 1)
    rank = np.argsort(np.argsort(draws[:, _HEAD_DRAWS:], axis=1), axis=1)
    random = rank < hide
    # block: the last h steps, h uniform in [horizon, 4 horizon], leaving at least one step of history
    high = min(4 * task.horizon, length - 1)
    block = step >= length - _integer(size, min(task.horizon, high), high)
    # stride: n blocks of half a stride each, at a common offset
    most = max(1, min(_STRIDE_BLOCKS[1], length // 2))
    count = _integer(size, min(_STRIDE_BLOCKS[0], most), most)
    stride = length // count
    width = np.maximum(stride // 2, 1)
    offset = _integer(place, 0, stride - width)
    since = step - offset
    striped = (since >= 0) & (since // stride < count) & (since % stride < width)
    # gap: round(r L) steps in a row, a given step on both sides where there is room
    wide = np.minimum(hide, max(1, length - 2)).astype(np.int64)
    first = _integer(place, min(1, length - 1), np.maximum(length - 1 - wide, min(1, length - 1)))
    gap = (step >= first) & (step < first + wide)
    return np.choose(family, [random, block, striped, gap]), np.array(_FAMILIES)[family[:, 0]]


def _integer(
    uniform: NDArray[np.float64], low: int | NDArray[np.int64], high: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Uniform on {low..high} from a uniform in [0, 1)."""
    return np.minimum(low + (uniform * (np.asarray(high) - low + 1)).astype(np.int64), high)


def make_examples(
    windows: Windows, target: Tensor, *, period: int, scaling: DataConfig, require_observed: bool = True
) -> Examples:
    """Normalised examples: what is given, what is to be generated, and a baseline made of what is given.

    Args:
        windows: as read.
        target: [B, L, C] bool, the hidden positions.
        period: season of the baseline, steps.
        scaling: `window` (mean and deviation of the row's given entries) or `bounds` (declared, public).
        require_observed: targets are only hidden entries that were read, as in training and scoring. False:
            everything that is not given is to be generated, as in forecasting and filling gaps.

    In training and scoring, a channel of which nothing is given has no target under window scaling, for want of a
    scale: a row without a context contributes a loss of exactly 0.

    Returns:
        Finite in every entry, whatever the readings. Hidden entries that were not read are 0 in `values`.
    """
    observed, hidden = windows.observed.numpy(), target.numpy()
    given = observed & ~hidden
    values = windows.values.numpy().astype(np.float64)
    if scaling.scaling == "bounds":
        shape = (values.shape[0], 1, values.shape[2])
        loc = np.full(shape, (scaling.low + scaling.high) / 2)
        scale = np.full(shape, (scaling.high - scaling.low) / 2)
        scaled = np.True_
    else:
        loc, scale = _window_scale(values, given)
        scaled = given.any(axis=1, keepdims=True)
    values -= loc
    values /= scale
    np.clip(values, -NORMALISED_LIMIT, NORMALISED_LIMIT, out=values)
    normal = np.where(observed, values, 0.0).astype(np.float32)
    return Examples(
        values=torch.from_numpy(normal),
        given=torch.from_numpy(given),
        target=torch.from_numpy(observed & hidden & scaled if require_observed else ~given),
        calendar=windows.calendar,
        baseline=torch.from_numpy(seasonal_baseline(normal, given, period)),
        loc=torch.from_numpy(loc.astype(np.float32)),
        scale=torch.from_numpy(scale.astype(np.float32)),
    )


def drop_context(examples: Examples, probability: float, rng: PrivacyRng) -> Examples:
    """Takes from each row, with `probability`, all that it is given: it learns what the model says to nothing.

    Needed for guidance (arXiv:2207.12598). One draw per row, whatever the readings; the baseline, from which the
    residual is measured, stays. No draw where the probability is 0.
    """
    if probability == 0.0 or not len(examples):
        return examples
    kept = torch.from_numpy(rng.random(len(examples)) >= probability)
    return replace(examples, given=examples.given & kept[:, None, None])


def _window_scale(
    values: NDArray[np.float64], given: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[B, 1, C] mean and floored deviation of each row's given entries, in float64 (1e30 squared must not overflow)."""
    count = np.maximum(given.sum(axis=1, keepdims=True), 1)
    kept = np.where(given, values, 0.0)
    loc = kept.sum(axis=1, keepdims=True) / count
    spread = np.where(given, values - loc, 0.0)
    deviation = np.sqrt((spread * spread).sum(axis=1, keepdims=True) / count)
    size = np.abs(kept).sum(axis=1, keepdims=True) / count
    scale = np.maximum(deviation, SCALE_FLOOR * size)
    return loc, np.where(scale > SCALE_TINY, scale, 1.0)


def seasonal_baseline(values: NDArray[np.float32], given: NDArray[np.bool_], period: int) -> NDArray[np.float32]:
    """A value for every entry, from the given entries of the same row and channel.

    Given entries: themselves. Inner gaps of at most `SHORT_GAP` steps: the line between their neighbours.
    Others: the given entry at the same phase in the nearest earlier season, or in the nearest later one, or
    between both in proportion to their distance; without any, the last given entry, else the next, else 0.

    Args:
        values: [B, L, C].
        given: [B, L, C].
        period: season, steps.

    Raises:
        ValueError: `period` below 1.
    """
    if period < 1:
        raise ValueError(f"period={period} is below 1")
    batch, length, channels = values.shape
    baseline = np.ascontiguousarray(np.where(given, values, np.float32(0)))
    flat = baseline.reshape(-1)  # a view: written through below
    hidden = np.flatnonzero(~given)
    if not len(hidden):
        return baseline
    # entry e of the flat array lies at step (e // C) % L, and n steps further at e + n C
    step = hidden // channels % length
    turn = step // period
    seasons = -(-length // period)
    slack = seasons * period - length  # steps that complete the last season
    padded = np.pad(given, ((0, 0), (0, slack), (0, 0))) if slack else given
    at = hidden + hidden // (length * channels) * (slack * channels)
    before, after = _neighbours(padded.reshape(batch, seasons, period, channels))
    before, after = before.reshape(-1)[at], after.reshape(-1)[at]
    has_before, has_after = before >= 0, after < seasons
    earlier = flat[hidden + np.where(has_before, before - turn, 0) * (period * channels)]
    later = flat[hidden + np.where(has_after, after - turn, 0) * (period * channels)]
    earlier, later = np.where(has_before, earlier, later), np.where(has_after, later, earlier)
    share = ((turn - before) / np.maximum(after - before, 1)).astype(np.float32)
    guess = earlier + (later - earlier) * share
    last, following = _neighbours(given)
    last, following = last.reshape(-1)[hidden], following.reshape(-1)[hidden]
    has_last, has_next = last >= 0, following < length
    left = flat[hidden + np.where(has_last, last - step, 0) * channels]
    right = flat[hidden + np.where(has_next, following - step, 0) * channels]
    # without the phase: the last given entry, else the next; a row with nothing given reads its own 0
    guess = np.where(has_before | has_after, guess, np.where(has_last, left, right))
    short = has_last & has_next & (following - last - 1 <= SHORT_GAP)
    along = ((step - last) / np.maximum(following - last, 1)).astype(np.float32)
    flat[hidden] = np.where(short, left + (right - left) * along, guess)
    return baseline


def _neighbours(given: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For every entry the index on axis 1 of the last given one at or before it (-1) and the next one (size)."""
    size = given.shape[1]
    index = np.arange(size, dtype=np.int32).reshape(-1, *[1] * (given.ndim - 2))
    last = np.maximum.accumulate(np.where(given, index, np.int32(-1)), axis=1)
    following = np.minimum.accumulate(np.where(given, index, np.int32(size))[:, ::-1], axis=1)[:, ::-1]
    return last, following
