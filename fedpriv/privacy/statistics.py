"""One-round private release of sums over windows: what closed-form models are fitted from.

A *statistic* maps every window to one vector (second moments, autocovariances). The release is

    sum over windows of  weight * clip(vector)  +  N(0, (noise_multiplier * bound)^2)  per coordinate,

where a *cover* says which windows enter, with which public weight, and what that costs a privacy unit. Clipping,
noise and event are made here from one object; the statistic supplies vectors and can change none of them.

Proof note (unit: w consecutive readings of one meter; relation: zero-out). Zeroing the unit out makes readings
missing, a window with a missing reading contributes nothing, and all other windows keep their vectors, because row i
is a function of window i alone. So the sum changes by at most the total weight of the windows that touch the unit
times `bound`: the triangle inequality. Under replace-one the change is at most twice that, which the accountant
charges from the same event. Noise is added in float64; adding clients up, fitting and predicting is post-processing.
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.errors import CheckFailed, InputError
from fedpriv.examples import Examples
from fedpriv.privacy.accounting import calibrate
from fedpriv.privacy.clippers import Clipper
from fedpriv.privacy.samplers import Sampler, Tiles
from fedpriv.privacy.units import Relation, Unit
from fedpriv.seeding import PrivacyRng

Index = NDArray[np.int64]
Reader = Callable[[Index, Index], Examples]
"""(meter [B], start [B]) -> the windows there as forecast examples, each normalised by its own given entries.

Targets must be the hidden entries that were *read*; then an entry in neither `given` nor `target` is a missing one.
"""

_CHUNK = 1 << 22  # numbers held at a time
_MARGIN = 1e-9  # contributions stay this share below the bound, so that float64 rounding cannot pass it


class Statistic(Protocol):
    """One vector per window: what is summed. Row i must be a function of window i alone."""

    @property
    def size(self) -> int:
        """Length of the vector."""
        ...

    def rows(self, examples: Examples) -> Tensor:
        """[B, size] float64."""
        ...


class Cover(Protocol):
    """Which windows enter the sum, with which weight, and what that costs. All fields are public."""

    @property
    def window(self) -> int:
        """Steps in a window."""
        ...

    @property
    def passes(self) -> int:
        """How many sums are released (and added up)."""
        ...

    @property
    def weight(self) -> float:
        """Of every window in a sum."""
        ...

    def tiles(self, *, num_meters: int, start: int, stop: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """The windows of each pass."""
        ...

    def expected_weight(self, *, num_meters: int, start: int, stop: int) -> float:
        """Expected total weight of all windows of all passes: public."""
        ...

    def event(
        self, noise_multiplier: float, unit: Unit, relation: Relation, *, calendar_steps: int | None = None
    ) -> DpEvent:
        """What all passes together cost the unit."""
        ...


@dataclass(frozen=True)
class EveryWindow:
    """All windows at a stride, each with weight 1 / ceil(L / s): the mean over all phases of a tiling. The default.

    A reading lies in at most ceil(L / s) windows, of total weight 1, so one Gaussian event with the noise multiplier
    covers it: every window position is used and nothing is sampled. The mean over phases costs what a single tiling
    costs, for each phase's sum has the same sensitivity, and m noised passes tell no more about the same mean: m
    Gaussians of sigma * sqrt(m), averaged, are one of sigma. w consecutive readings meet at most ceil((L + w - 1) / s)
    windows: a day of 24 h and L = 192 cost 1.12 times a reading, not 2 as with a fixed phase.
    """

    window: int
    stride: int = 1

    def __post_init__(self) -> None:
        """Checks the public constants."""
        if not 1 <= self.stride <= self.window:
            raise InputError(f"stride={self.stride} is not in [1, window={self.window}]; nothing was released.")

    @property
    def passes(self) -> int:
        """One sum."""
        return 1

    @property
    def weight(self) -> float:
        """1 / ceil(L / s)."""
        return 1.0 / -(-self.window // self.stride)

    def _positions(self, start: int, stop: int) -> int:
        if stop - start < self.window:
            raise InputError(
                f"the window of {self.window} steps is longer than the {max(stop - start, 0)} calendar steps it "
                "should be cut from; nothing was read."
            )
        return (stop - start - self.window) // self.stride + 1

    def tiles(self, *, num_meters: int, start: int, stop: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """All windows, meter by meter; nothing is drawn."""
        del rng
        positions = self._positions(start, stop)
        meter, index = np.divmod(np.arange(num_meters * positions, dtype=np.int64), positions)
        yield Tiles(meter, start + index * self.stride, np.arange(len(meter), dtype=np.int64))

    def expected_weight(self, *, num_meters: int, start: int, stop: int) -> float:
        """Number of windows times the weight."""
        return num_meters * self._positions(start, stop) * self.weight

    def overlap(self, unit: Unit, *, calendar_steps: int | None = None) -> float:
        """Total weight of the windows that the worst placed unit touches: 1 for a reading.

        Raises:
            InputError: a whole meter needs `calendar_steps`; a whole client has no bound.
        """
        if unit.kind == "client":
            raise InputError("noise sized for windows does not hide a whole client; nothing was released.")
        if unit.kind == "meter" and calendar_steps is None:
            raise InputError("unit 'meter' needs the public length of the calendar (calendar_steps).")
        count = -(-(self.window + unit.steps - 1) // self.stride) if unit.kind == "event" else 1 << 62
        if calendar_steps is not None:
            count = min(count, self._positions(0, calendar_steps))
        return max(1.0, count * self.weight)

    def event(
        self, noise_multiplier: float, unit: Unit, relation: Relation, *, calendar_steps: int | None = None
    ) -> DpEvent:
        """One Gaussian whose multiplier is divided by the overlap. The relation is read by the accountant."""
        del relation
        return dp_event.GaussianDpEvent(noise_multiplier / self.overlap(unit, calendar_steps=calendar_steps))


@dataclass(frozen=True)
class SampledPasses:
    """`passes` steps of a sampler: sums of independent batches, each noised and charged as in training.

    Random-phase tiling with rate 1 makes a pass over all tiles at a random phase: a plain Gaussian event for a reading,
    the phase mixture for a day. A rate below 1 is Poisson-sampled. The passes compose.
    """

    sampler: Sampler
    passes: int

    def __post_init__(self) -> None:
        """Checks the public constants."""
        if self.passes < 1:
            raise InputError(f"passes={self.passes} is below 1; nothing was released.")

    @property
    def window(self) -> int:
        """The sampler's."""
        return self.sampler.window

    @property
    def weight(self) -> float:
        """1."""
        return 1.0

    def tiles(self, *, num_meters: int, start: int, stop: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """The sampler's batches."""
        return self.sampler.batches(num_meters=num_meters, start=start, stop=stop, steps=self.passes, rng=rng)

    def expected_weight(self, *, num_meters: int, start: int, stop: int) -> float:
        """Passes times the expected batch."""
        return self.passes * self.sampler.expected_batch_size(num_meters=num_meters, start=start, stop=stop)

    def event(
        self, noise_multiplier: float, unit: Unit, relation: Relation, *, calendar_steps: int | None = None
    ) -> DpEvent:
        """The sampler's event of one pass, `passes` times."""
        inner = dp_event.GaussianDpEvent(noise_multiplier)
        one = self.sampler.amplify(inner, unit, relation, calendar_steps=calendar_steps)
        return one if self.passes == 1 else dp_event.SelfComposedDpEvent(one, self.passes)


@dataclass(frozen=True)
class ReleasedStatistics:
    """Private by `event`; anything may read it.

    Attributes:
        vector: [size] float64: the noised sum. This is what travels.
        stddev: of the noise in each coordinate; public.
        event: what the release cost; for the ledger.
    """

    vector: Tensor
    stddev: float
    event: DpEvent


@dataclass(frozen=True, kw_only=True)
class StatisticsMechanism:
    """Cover, clipper and noise of one release, and the event that follows from them (proof note: module text).

    Attributes:
        cover: which windows, with which weight.
        clipper: bounds each window's vector.
        noise_multiplier: standard deviation of the noise of each pass over `clipper.bound`; 0 only with
            `insecure_no_noise=True` and then the event is the non-private one.
        unit, relation: what the event is stated for.
        calendar_steps: public length of the training calendar; needed where the unit is a meter.
        insecure_no_noise: allows noise_multiplier = 0, for comparison runs.
    """

    cover: Cover
    clipper: Clipper
    noise_multiplier: float
    unit: Unit
    relation: Relation
    calendar_steps: int | None = None
    insecure_no_noise: bool = False

    def __post_init__(self) -> None:
        """Refuses noise that is none."""
        sigma = self.noise_multiplier
        if not (math.isfinite(sigma) and (sigma > 0 or (sigma == 0 and self.insecure_no_noise))):
            raise InputError(f"noise_multiplier={sigma} is not a finite number above 0; nothing was released.")

    @property
    def stddev(self) -> float:
        """Of the noise in each coordinate of the sum over all passes: public."""
        return self.noise_multiplier * self.clipper.bound * math.sqrt(self.cover.passes)

    def event(self, unit: Unit | None = None) -> DpEvent:
        """What the release costs `unit` (default: the mechanism's own; others make the ladder)."""
        if self.noise_multiplier == 0:
            return dp_event.NonPrivateDpEvent()
        return self.cover.event(
            self.noise_multiplier, unit or self.unit, self.relation, calendar_steps=self.calendar_steps
        )

    def clipped_sum(
        self, statistic: Statistic, reader: Reader, *, num_meters: int, start: int, stop: int, rng: PrivacyRng
    ) -> Iterator[Tensor]:
        """[size] float64 per pass: the weighted sum of clipped vectors. Sensitive: only `release` may publish it."""
        chunk = max(16, _CHUNK // (statistic.size + self.cover.window))
        for tiles in self.cover.tiles(num_meters=num_meters, start=start, stop=stop, rng=rng):
            if not np.array_equal(tiles.group, np.arange(len(tiles))):
                raise InputError("windows that share a group cannot be clipped one by one; nothing was released.")
            total = torch.zeros(statistic.size, dtype=torch.float64)
            for low in range(0, len(tiles), chunk):
                examples = reader(tiles.meter[low : low + chunk], tiles.start[low : low + chunk])
                total += clipped_rows(statistic, examples, self.clipper).sum(dim=0)
            yield total * self.cover.weight

    def release(
        self, statistic: Statistic, reader: Reader, *, num_meters: int, start: int, stop: int, rng: PrivacyRng
    ) -> ReleasedStatistics:
        """The noised sum over the windows of calendar steps [start, stop). Passes without windows are noised, too.

        Args:
            statistic: what to sum.
            reader: reads the private windows; called after the charge, in chunks.
            num_meters: public number of meters.
            start, stop: public training calendar.
            rng: draws the sampler's coins and the noise.

        Raises:
            CheckFailed: the sum is not finite; nothing was released.
        """
        noisy = torch.zeros(statistic.size, dtype=torch.float64)
        sums = self.clipped_sum(statistic, reader, num_meters=num_meters, start=start, stop=stop, rng=rng)
        scale = self.noise_multiplier * self.clipper.bound
        for total in sums:
            if not bool(total.isfinite().all()):
                raise CheckFailed("the sum of clipped statistics is not finite; nothing was released.")
            noisy += total + scale * torch.from_numpy(rng.standard_normal(statistic.size))  # pyright: ignore
        return ReleasedStatistics(noisy, self.stddev, self.event())


def clipped_rows(statistic: Statistic, examples: Examples, clipper: Clipper) -> Tensor:
    """[B, size] float64 contributions, each of norm <= bound; 0 for windows with a missing reading or not finite."""
    rows = statistic.rows(examples).to(torch.float64)
    if tuple(rows.shape) != (len(examples), statistic.size):
        raise CheckFailed(f"a statistic gave {tuple(rows.shape)}, not ({len(examples)}, {statistic.size}).")
    complete = (examples.given | examples.target).flatten(1).all(dim=1)
    usable = complete & rows.isfinite().all(dim=1)
    rows = torch.where(usable[:, None], rows, torch.zeros_like(rows))
    factors = clipper.factors(rows.square().sum(dim=1).sqrt()) * (1 - _MARGIN)
    return rows * factors[:, None]


def calibrate_release(
    cover: Cover,
    *,
    unit: Unit,
    relation: Relation,
    epsilon: float,
    delta: float,
    calendar_steps: int | None = None,
) -> float:
    """The least noise multiplier for which the release costs the unit at most `epsilon` (PLD).

    Raises:
        InputError: no noise multiplier meets the target.
    """
    return calibrate(
        lambda sigma: cover.event(sigma, unit, relation, calendar_steps=calendar_steps),
        count=1,
        epsilon=epsilon,
        delta=delta,
        relation=relation,
    )
