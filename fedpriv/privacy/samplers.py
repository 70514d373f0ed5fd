"""Which windows enter a step, and what that choice is worth.

Every sampler is a frozen dataclass of public constants. The same object draws the batches and states the *law* of a
unit, Pr[J = j] for J = number of sampled groups that touch the unit in one step, from which its `DpEvent` follows
(`fedpriv.privacy.laws`); so sampling and accounting cannot drift apart.

Shapes: B rows drawn, M meters, n calendar steps, L window steps.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from dp_accounting import DpEvent, NeighboringRelation, dp_event
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.privacy.laws import Law, Laws, binomial_law, event_of_laws, marginal
from fedpriv.privacy.units import Relation, Unit
from fedpriv.seeding import PrivacyRng

MAX_OVERLAP = 0.2  # expected windows per reading and step above which overlapping windows need an explicit yes
_CHUNK = 1 << 22  # coins drawn at a time


@dataclass(frozen=True)
class Tiles:
    """The windows of one step; may be empty, and noise is due even then.

    Attributes:
        meter: [B] int64, row of the client's meters.
        start: [B] int64, first calendar step of the window.
        group: [B] int64, nondecreasing from 0: rows of one group are averaged *before* clipping and clipped
            once. Rows are their own groups for every sampler but `MeterSampling`.
    """

    meter: NDArray[np.int64]
    start: NDArray[np.int64]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.meter)


def _tiles(meter: NDArray[np.int64], start: NDArray[np.int64]) -> Tiles:
    return Tiles(meter, start, np.arange(len(meter), dtype=np.int64))


def coins(count: int, prob: float, rng: PrivacyRng) -> NDArray[np.int64]:
    """Indices below `count` that an independent coin of probability `prob` chose."""
    parts = [
        low + np.flatnonzero(rng.random(min(_CHUNK, count - low)) < prob).astype(np.int64)
        for low in range(0, count, _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def check_prob(name: str, value: float) -> None:
    """A public rate in (0, 1].

    Raises:
        InputError: it is not.
    """
    if not 0 < value <= 1:
        raise InputError(f"{name}={value!r} is not in (0, 1]; nothing was started.")


def check_window(window: int) -> None:
    """A window of at least one step.

    Raises:
        InputError: it is shorter.
    """
    if window < 1:
        raise InputError(f"window={window} is below 1 step; nothing was started.")


def public_span(window: int, start: int, stop: int) -> int:
    """Calendar steps in [start, stop).

    Raises:
        InputError: not even one window fits.
    """
    if stop - start < window:
        raise InputError(
            f"the window of {window} steps is longer than the {max(stop - start, 0)} calendar steps it should be "
            "cut from; nothing was read."
        )
    return stop - start


class Sampler(ABC):
    """Contract of every sampler: fields are public, what is private comes as an argument."""

    window: int
    name: str = ""

    @abstractmethod
    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step, empty ones included, with every window inside [start, stop)."""

    @abstractmethod
    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """Exact expected number of groups per step: the public denominator of the released sum."""

    @abstractmethod
    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """The laws of J given each value of the draws that the unit shares with other groups, with their chances.

        Args:
            unit: what is protected; the worst placed one.
            calendar_steps: n, length of the training calendar; needed where the unit is the whole meter.
        """

    @abstractmethod
    def terms(self) -> dict[str, str | int | float]:
        """The public constants, for contracts and labels."""

    def law(self, unit: Unit, *, calendar_steps: int | None = None) -> Law:
        """[k + 1] Pr[J = j] with everything averaged out: what counting windows shows. Privacy uses `laws`."""
        return marginal(self.laws(unit, calendar_steps=calendar_steps))

    def amplify(
        self,
        inner: DpEvent,
        unit: Unit,
        relation: Relation | NeighboringRelation | str,
        *,
        calendar_steps: int | None = None,
    ) -> DpEvent:
        """The event of one step for `unit`: plain Poisson sampling where at most one group touches it.

        The event is the same data for every relation; the accountant interprets it under the relation.

        An inner `ZCDpEvent` (stated for one group and zero-out) is not amplified, since no theorem for it is used
        here; it is scaled by the square of the most groups that the unit can touch, and by 4 under replace-one.

        Raises:
            InputError: `inner` is neither Gaussian nor zCDP, or the unit needs `calendar_steps`.
        """
        replaced = Relation.parse(relation) is Relation.REPLACE_ONE
        if unit.kind == "client":
            return dp_event.NonPrivateDpEvent()  # noise sized for one group does not hide a whole client
        if isinstance(inner, dp_event.ZCDpEvent):
            most = max(len(law) - 1 for _, law in self.laws(unit, calendar_steps=calendar_steps))
            scale = float(most**2 * (4 if replaced else 1))
            return dp_event.ZCDpEvent(inner.rho * scale, inner.xi * scale) if scale else dp_event.NoOpDpEvent()
        return event_of_laws(inner, self.laws(unit, calendar_steps=calendar_steps))


def _calendar(unit: Unit, calendar_steps: int | None) -> int:
    if calendar_steps is None:
        raise InputError(f"the law of unit {unit.name!r} needs the public length of the calendar (calendar_steps).")
    return calendar_steps


@dataclass(frozen=True)
class RandomPhaseTiling(Sampler):
    """Disjoint tiles at a fresh random phase in every step, each with its own coin. The default.

    Each step draws phi ~ U{0..L-1} without looking at data, cuts [start, stop) into tiles
    [start + phi + iL, start + phi + (i+1)L) that lie wholly inside, and takes every (meter, tile) with
    probability p. All window positions are used over time, yet within a step a reading is in at most one tile.

    Guarantee, reading: given phi the pair of one step is the Poisson-sampled Gaussian with rate p; the hockey-stick
    divergence is jointly convex in the pair, so the average over phi obeys the same bound.
    Guarantee, w consecutive readings: with r = (t - phi) mod L uniform they meet n_phi = 1 + floor((w-1+r)/L) tiles,
    so J ~ Binomial(n_phi, p) given phi. The event is the mixture over a *published* phase: the other tiles of the
    step depend on phi, too, and whoever knows them may recognise it, so the averaged law E_phi[Binomial(n_phi, p)]
    would promise too much (arXiv:2310.15526 asks for coins independent of the rest).
    Expected batch: each of the n-L+1 positions belongs to exactly one phase, so the numbers of tiles sum to n-L+1
    over the L phases, and E[B] = p M (n-L+1) / L exactly.
    """

    window: int
    sampling_prob: float
    name: str = field(default="random-phase-tiling", init=False)

    def __post_init__(self) -> None:
        """Checks the public constants."""
        check_window(self.window)
        check_prob("privacy.sampling_prob", self.sampling_prob)

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step; one phase per logical step, never per worker or microbatch."""
        span = public_span(self.window, start, stop)
        for _ in range(steps):
            phase = int(rng.integers(0, self.window))
            per_meter = (span - phase) // self.window
            chosen = coins(num_meters * per_meter, self.sampling_prob, rng)
            meter, tile = np.divmod(chosen, max(per_meter, 1))
            yield _tiles(meter, start + phase + tile * self.window)

    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """The exact mean over phases and coins: p * M * (n - L + 1) / L."""
        span = public_span(self.window, start, stop)
        return self.sampling_prob * num_meters * (span - self.window + 1) / self.window

    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """Binomial(tiles met, p) for each number of tiles met, with the share of the phases that give it."""
        offsets = np.arange(self.window)
        if unit.kind == "event":
            met = 1 + (unit.steps - 1 + offsets) // self.window
        else:
            met = (public_span(self.window, 0, _calendar(unit, calendar_steps)) - offsets) // self.window
        tiles, phases = np.unique(met, return_counts=True)
        return [
            (int(c) / self.window, binomial_law(int(t), self.sampling_prob)) for t, c in zip(tiles, phases, strict=True)
        ]

    def terms(self) -> dict[str, str | int | float]:
        """The public constants."""
        return {"sampler": self.name, "window": self.window, "sampling_prob": self.sampling_prob}


@dataclass(frozen=True)
class StridedWindows(Sampler):
    """Windows at a fixed stride, each with its own coin; overlapping when stride < window.

    A reading lies in up to ceil(L/s) windows, w readings in up to ceil((L+w-1)/s): J ~ Binomial of that many coins.
    Refused when a reading is expected in more than 0.2 windows per step, unless `allow_overlap`: from there on
    tiling gives the same number of windows for less epsilon.
    """

    window: int
    stride: int
    sampling_prob: float
    allow_overlap: bool = False
    name: str = field(default="strided-windows", init=False)

    def __post_init__(self) -> None:
        """Checks the public constants."""
        check_window(self.window)
        check_prob("privacy.sampling_prob", self.sampling_prob)
        if not 1 <= self.stride <= self.window:
            raise InputError(f"stride={self.stride} is not in [1, window={self.window}]; nothing was started.")
        k = -(-self.window // self.stride)
        if k > 1 and k * self.sampling_prob > MAX_OVERLAP and not self.allow_overlap:
            raise InputError(
                f"every reading would be in {k * self.sampling_prob:.3g} sampled windows per step (k={k} overlapping "
                f"windows x sampling_prob={self.sampling_prob:g} > {MAX_OVERLAP}); use random-phase-tiling, or allow "
                "the overlap explicitly. Nothing was started."
            )

    def _positions(self, span: int) -> int:
        return (span - self.window) // self.stride + 1

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step."""
        positions = self._positions(public_span(self.window, start, stop))
        for _ in range(steps):
            meter, index = np.divmod(coins(num_meters * positions, self.sampling_prob, rng), positions)
            yield _tiles(meter, start + index * self.stride)

    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """Exactly q * M * number of positions."""
        return self.sampling_prob * num_meters * self._positions(public_span(self.window, start, stop))

    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """Binomial(k, q) with k the windows that the worst placed unit touches."""
        if unit.kind == "event":
            k = -(-(self.window + unit.steps - 1) // self.stride)
            if calendar_steps is not None:
                k = min(k, self._positions(public_span(self.window, 0, calendar_steps)))
        else:
            k = self._positions(public_span(self.window, 0, _calendar(unit, calendar_steps)))
        return [(1.0, binomial_law(k, self.sampling_prob))]

    def terms(self) -> dict[str, str | int | float]:
        """The public constants."""
        return {
            "sampler": self.name,
            "window": self.window,
            "stride": self.stride,
            "sampling_prob": self.sampling_prob,
            "allow_overlap": self.allow_overlap,
        }


def disjoint_windows(window: int, sampling_prob: float) -> StridedWindows:
    """Tiles at one fixed phase: at most one window per reading, fewer positions than random-phase tiling."""
    return StridedWindows(window, window, sampling_prob)
