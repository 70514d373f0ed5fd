"""Numbers beside the model that a client may send: a count, a scaler, evaluation metrics. Each is noised and charged.

Every function returns a `SideRelease`: the value, the event for the ledger, and a note that says unit, relation,
sensitivity and noise. Noise is Gaussian with standard deviation `noise_multiplier * sensitivity`, added in float64 to
a sum over readings or windows; divisors are public or released in the same vector. All further arithmetic is
post-processing.

Proof note. Zero-out (or add/remove) of a unit removes the terms of the readings in it, each of norm at most b, so the
sum moves by at most (readings in the unit) * b, and for windows by (windows that touch the unit) * b. Replacing moves
it by at most twice that, which the accountant charges from the same event. The event is `GaussianDpEvent`.
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import calibrate
from fedpriv.privacy.statistics import EveryWindow
from fedpriv.privacy.units import Relation, Unit
from fedpriv.seeding import PrivacyRng

Array = NDArray[np.float64]
V_co = TypeVar("V_co", covariant=True)

COUNT_SHARE = 0.5  # length of the counting coordinate of a scaler, beside 1 for the two of the moments
SPREAD_FLOOR = 1e-3  # least released standard deviation, as a share of half the public range


@dataclass(frozen=True)
class SideRelease(Generic[V_co]):
    """Private by `event` for the unit it was asked for; anything may read it.

    Attributes:
        value: what was asked for.
        event: what it cost; charge it to the ledger of the model, and before the readings are touched.
        stddev: of the noise in the sum; public.
        note: one line for labels: unit, relation, sensitivity, noise.
    """

    value: V_co
    event: dp_event.GaussianDpEvent
    stddev: float
    note: str


@dataclass(frozen=True)
class Scaler:
    """Released moments of one client's readings, physical units.

    Attributes:
        mean, std: [C]; std is at least `SPREAD_FLOOR` of half the public range.
        count: [C] noisy number of readings, at least 1.
    """

    mean: Array
    std: Array
    count: Array


def side_event(noise_multiplier: float) -> dp_event.GaussianDpEvent:
    """The event of any of these releases, known before it: nothing in it depends on data."""
    _check_sigma(noise_multiplier)
    return dp_event.GaussianDpEvent(noise_multiplier)


def calibrate_side(*, epsilon: float, delta: float, relation: Relation | str, releases: int = 1) -> float:
    """The least noise multiplier for which `releases` of them together cost at most `epsilon`."""
    return calibrate(side_event, count=releases, epsilon=epsilon, delta=delta, relation=relation)


def unit_readings(unit: Unit, *, calendar_steps: int | None = None) -> int:
    """Steps of one meter that a unit holds; a step counts once whatever its channels.

    Raises:
        InputError: a meter without `calendar_steps`, or a whole client.
    """
    if unit.kind == "client":
        raise InputError("side releases are noised for a unit within one meter, not for a whole client; none was made.")
    if calendar_steps is not None and calendar_steps < 1:
        raise InputError(f"calendar_steps={calendar_steps} is below 1; nothing was released.")
    if unit.kind == "event":
        return unit.steps if calendar_steps is None else min(unit.steps, calendar_steps)
    if calendar_steps is None:
        raise InputError("unit 'meter' needs the public length of the calendar (calendar_steps); nothing was released.")
    return calendar_steps


def windows_touched(
    starts: NDArray[np.int64], meters: NDArray[np.int64], *, window: int, unit: Unit, calendar_steps: int | None = None
) -> int:
    """The most of the given public windows that one unit of one meter can touch.

    Args:
        starts, meters: [n] public positions of the windows.
        window: steps of a window.
        unit: what is protected.
        calendar_steps: needed for a meter.
    """
    span = unit_readings(unit, calendar_steps=calendar_steps)
    most = 0
    for meter in np.unique(meters):
        mine = np.sort(starts[meters == meter])
        # windows [s, s + window) meet [t, t + span) when t - window < s < t + span; the best t is with a window at its
        # left end, so count starts within window + span - 1 consecutive positions
        last = np.searchsorted(mine, mine + window + span - 1, side="left")
        most = max(most, int((last - np.arange(len(mine))).max(initial=0)))
    return most


def private_count(
    observed: NDArray[np.bool_],
    *,
    noise_multiplier: float,
    unit: Unit,
    relation: Relation | str,
    rng: PrivacyRng,
) -> SideRelease[float]:
    """How many steps of all meters have a reading: weights for averaging, released once and reused.

    Args:
        observed: [M, T, C] or [M, T]; a step counts once if any channel was read.
        noise_multiplier: sigma; the noise is sigma * (readings in the unit).
        unit, relation: what is promised.
        rng: source of the noise.

    Returns:
        A count in [0, M * T].
    """
    steps = observed.any(axis=2) if observed.ndim == 3 else observed
    length = tuple[int, ...](observed.shape)[1]
    sensitivity = float(unit_readings(unit, calendar_steps=length))
    total, stddev = _noised(np.array([steps.sum()], dtype=np.float64), sensitivity, noise_multiplier, rng)
    value = float(np.clip(total[0], 0.0, steps.size))
    return SideRelease(value, side_event(noise_multiplier), stddev, _note("count", unit, relation, sensitivity, stddev))


def private_scaler(
    values: NDArray[np.floating],
    *,
    low: float,
    high: float,
    noise_multiplier: float,
    unit: Unit,
    relation: Relation | str,
    rng: PrivacyRng,
) -> SideRelease[Scaler]:
    """Mean and standard deviation of readings clipped to public bounds, with the count that divides them.

    With u in [-1, 1] the clipped reading in half ranges, each reading and channel adds (a, u, u^2 - 1), a = 1/2, to the
    sum: a^2 + u^2 + (1 - u^2)^2 = a^2 + 1 - u^2 (1 - u^2) <= a^2 + 1. The centred square makes the two moments cost as
    much as one. Sensitivity: (readings in the unit) * sqrt(C) * sqrt(a^2 + 1).

    Args:
        values: [M, T, C], physical units; NaN adds nothing.
        low, high: public bounds of a reading.
        noise_multiplier: sigma.
        unit, relation: what is promised.
        rng: source of the noise.

    Raises:
        InputError: bounds that are not finite and in order; nothing was released.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"bounds low={low}, high={high} are not finite and in order; nothing was released.")
    half, middle = (high - low) / 2.0, (high + low) / 2.0
    rows = scaler_rows(values, low=low, high=high)  # [M, T, C, 3]
    channels = rows.shape[2]
    sensitivity = unit_readings(unit, calendar_steps=rows.shape[1]) * math.sqrt(channels * (COUNT_SHARE**2 + 1.0))
    sums, stddev = _noised(rows.sum(axis=(0, 1)).ravel(), sensitivity, noise_multiplier, rng)
    counted, first, second = sums.reshape(channels, 3).T
    count = np.maximum(counted / COUNT_SHARE, 1.0)
    mean = np.clip(first / count, -1.0, 1.0)
    square = np.clip(second / count + 1.0, 0.0, 1.0)
    std = np.sqrt(np.maximum(square - mean**2, SPREAD_FLOOR**2))
    scaler = Scaler(mean=mean * half + middle, std=std * half, count=count)
    return SideRelease(
        scaler, side_event(noise_multiplier), stddev, _note("scaler", unit, relation, sensitivity, stddev)
    )


def scaler_rows(values: NDArray[np.floating], *, low: float, high: float) -> Array:
    """[M, T, C] readings -> [M, T, C, 3] terms (a, u, u^2 - 1), each of norm at most sqrt(a^2 + 1); 0 where missing."""
    read = np.isfinite(values)
    half, middle = (high - low) / 2.0, (high + low) / 2.0
    u = np.clip((np.where(read, values, middle).astype(np.float64) - middle) / half, -1.0, 1.0)
    return np.stack([np.full_like(u, COUNT_SHARE), u, u**2 - 1.0], axis=-1) * read[..., None]


def private_metrics(
    per_window: Array,
    starts: NDArray[np.int64],
    meters: NDArray[np.int64],
    *,
    window: int,
    cap: float,
    noise_multiplier: float,
    unit: Unit,
    relation: Relation | str,
    calendar_steps: int | None = None,
    rng: PrivacyRng,
) -> SideRelease[Array]:
    """Means over windows of K metrics, each clipped to [0, cap]: noised sums over the public number of windows.

    Held-out windows share no reading with training windows when the calendar is split with a gap, so for readings and
    days the ledger may charge the larger of the two (parallel composition); whole meters pay for both.

    Args:
        per_window: [n, K] metric of each window, a function of that window and of a released model; not finite:
            counts as 0 (the window could not be scored), so that the number of windows stays public.
        starts, meters: [n] public positions of the windows; evenly spread ones overlap least.
        window: steps of a window.
        cap: public upper end of a metric, > 0.
        noise_multiplier: sigma.
        unit, relation: what is promised.
        calendar_steps: needed for a meter.
        rng: source of the noise.

    Returns:
        [K] means in [0, cap]. Sensitivity of the sums: (windows that touch the unit) * cap * sqrt(K).
    """
    if not (math.isfinite(cap) and cap > 0):
        raise InputError(f"cap={cap} is not a finite number above 0; nothing was released.")
    shape = tuple[int, ...](per_window.shape)
    if len(shape) != 2 or not shape[0] == len(starts) == len(meters) > 0:
        raise InputError(f"metrics {shape} do not fit {len(starts)} windows; nothing was released.")
    touched = windows_touched(starts, meters, window=window, unit=unit, calendar_steps=calendar_steps)
    sensitivity = touched * cap * math.sqrt(shape[1])
    kept = np.clip(np.where(np.isfinite(per_window), per_window, 0.0), 0.0, cap)
    sums, stddev = _noised(kept.sum(axis=0), sensitivity, noise_multiplier, rng)
    value = np.clip(sums / shape[0], 0.0, cap)
    note = _note(f"{shape[1]} metrics", unit, relation, sensitivity, stddev)
    return SideRelease(value, side_event(noise_multiplier), stddev, note)


def side_event_for(terms: Mapping[str, Any], own: Unit, other: Unit, *, calendar_steps: int | None) -> DpEvent:
    """The event of one side release for a unit other than the one that it was noised for; for the ladder.

    A count moves by at most one for each reading. A window that meets w readings meets one of the blocks of w0 readings
    that are laid over them with gaps shorter than a window L, of which ceil((w + L - 1) / (w0 + L - 1)) are enough, and
    each block is met by no more windows than the noise was made for. Of statistics the total weight of the windows that
    a unit touches is known for every unit.

    Args:
        terms: of its contract: side_release, noise_multiplier and, for metrics, window; for statistics stride, too.
        own, other: the unit that it was noised for, and the one that is asked about.
        calendar_steps: length of a whole meter.
    """
    sigma = float(terms["noise_multiplier"])
    length = other.steps if other.kind == "event" else calendar_steps
    if length is None or own.kind != "event":
        return dp_event.NonPrivateDpEvent()
    if terms["side_release"] == "statistics":
        cover = EveryWindow(int(terms["window"]), int(terms["stride"]))
        ratio = cover.overlap(other, calendar_steps=calendar_steps) / cover.overlap(own)
    elif terms["side_release"] == "count":
        ratio = max(1.0, length / own.steps)
    else:
        window = int(terms["window"])
        ratio = float(max(1, math.ceil((length + window - 1) / (own.steps + window - 1))))
    return dp_event.GaussianDpEvent(sigma / ratio)


def _noised(total: Array, sensitivity: float, noise_multiplier: float, rng: PrivacyRng) -> tuple[Array, float]:
    _check_sigma(noise_multiplier)
    stddev = noise_multiplier * sensitivity
    return total + stddev * rng.standard_normal(len(total)), stddev


def _check_sigma(noise_multiplier: float) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise InputError(f"noise_multiplier={noise_multiplier} is not a finite number above 0; nothing was released.")


def _note(what: str, unit: Unit, relation: Relation | str, sensitivity: float, stddev: float) -> str:
    return (
        f"private {what}: unit {unit.name}, {Relation.parse(relation)}, L2 sensitivity {sensitivity:g} (zero-out), "
        f"Gaussian noise {stddev:g}"
    )
