"""Samplers that choose meters: whole-meter protection, and two-level sampling when there are many meters."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedpriv.errors import InputError
from fedpriv.privacy.laws import Laws, marginal
from fedpriv.privacy.samplers import (
    RandomPhaseTiling,
    Sampler,
    StridedWindows,
    Tiles,
    check_prob,
    check_window,
    coins,
    public_span,
)
from fedpriv.privacy.units import Unit
from fedpriv.seeding import PrivacyRng


@dataclass(frozen=True)
class TwoLevelTiling(Sampler):
    """First meters (rate `meter_prob`), then random-phase tiles of the chosen meters (rate `sampling_prob`).

    For the whole meter, J = 0 unless the meter is chosen, otherwise it has the law of the tiling. For readings, days
    and weeks the meter's *other* tiles share its coin and may give it away, so the coin counts as published: it scales
    delta but not epsilon. After Schuchardt et al., arXiv:2502.02410 (top-level sampling), with tiles at the bottom.
    """

    window: int
    sampling_prob: float
    meter_prob: float
    name: str = field(default="two-level-tiling", init=False)

    def __post_init__(self) -> None:
        """Checks the public constants."""
        check_prob("meter_prob", self.meter_prob)
        RandomPhaseTiling(self.window, self.sampling_prob)

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step."""
        bottom = RandomPhaseTiling(self.window, self.sampling_prob)
        public_span(self.window, start, stop)
        for _ in range(steps):
            chosen = coins(num_meters, self.meter_prob, rng)
            for tiles in bottom.batches(num_meters=len(chosen), start=start, stop=stop, steps=1, rng=rng):
                yield Tiles(chosen[tiles.meter], tiles.start, tiles.group)

    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """The product of both rates with the mean number of tiles."""
        bottom = RandomPhaseTiling(self.window, self.sampling_prob)
        return self.meter_prob * bottom.expected_batch_size(num_meters=num_meters, start=start, stop=stop)

    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """The tiling's laws: joined with the meter's coin for the meter, beside it for shorter units."""
        bottom = RandomPhaseTiling(self.window, self.sampling_prob).laws(unit, calendar_steps=calendar_steps)
        q, never = self.meter_prob, np.ones(1)
        if unit.kind == "event":
            return [(1 - q, never), *((q * weight, law) for weight, law in bottom)]
        return [(weight, marginal([(1 - q, never), (q, law)])) for weight, law in bottom]

    def terms(self) -> dict[str, str | int | float]:
        """The public constants."""
        return {
            "sampler": self.name,
            "window": self.window,
            "sampling_prob": self.sampling_prob,
            "meter_prob": self.meter_prob,
        }


@dataclass(frozen=True)
class MeterSampling(Sampler):
    """Meters with rate q; the gradients of K windows of a chosen meter are averaged and clipped *once*.

    A whole meter moves the sum by at most the bound, so J ~ Bernoulli(q): the only sampler here with a useful epsilon
    at meter level. Zero-out of a shorter unit means that every clipped *group* that touches it contributes nothing;
    whether one of the K windows does touch it counts as published (the positions shape the rest of the sum).
    """

    window: int
    sampling_prob: float
    windows_per_meter: int
    name: str = field(default="meter-sampling", init=False)

    def __post_init__(self) -> None:
        """Checks the public constants."""
        check_window(self.window)
        check_prob("privacy.sampling_prob", self.sampling_prob)
        if self.windows_per_meter < 1:
            raise InputError(f"windows_per_meter={self.windows_per_meter} is below 1; nothing was started.")

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step: K rows per chosen meter, sharing one group; starts uniform with replacement."""
        positions = public_span(self.window, start, stop) - self.window + 1
        for _ in range(steps):
            chosen = coins(num_meters, self.sampling_prob, rng)
            rows = len(chosen) * self.windows_per_meter
            first = np.minimum((rng.random(rows) * positions).astype(np.int64), positions - 1)
            group = np.repeat(np.arange(len(chosen), dtype=np.int64), self.windows_per_meter)
            yield Tiles(chosen[group], start + first, group)

    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """Exactly q * M groups (a group, not a row, adds at most the bound)."""
        public_span(self.window, start, stop)
        return self.sampling_prob * num_meters

    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """Bernoulli(q) for the meter; for w readings, Bernoulli(q) if one of the K windows touches them, else 0."""
        coin = np.array([1 - self.sampling_prob, self.sampling_prob])
        if unit.kind != "event" or calendar_steps is None:
            return [(1.0, coin)]
        positions = public_span(self.window, 0, calendar_steps) - self.window + 1
        miss = (1 - min(1.0, (self.window + unit.steps - 1) / positions)) ** self.windows_per_meter
        return [(miss, np.ones(1)), (1 - miss, coin)]

    def terms(self) -> dict[str, str | int | float]:
        """The public constants."""
        return {
            "sampler": self.name,
            "window": self.window,
            "sampling_prob": self.sampling_prob,
            "windows_per_meter": self.windows_per_meter,
        }


def sampler_from_terms(terms: Mapping[str, Any]) -> Sampler:
    """The sampler whose `terms()` these are (other keys are ignored).

    Raises:
        InputError: an unknown sampler or missing constants.
    """
    kinds: dict[str, tuple[type[Sampler], tuple[str, ...]]] = {
        "random-phase-tiling": (RandomPhaseTiling, ("window", "sampling_prob")),
        "strided-windows": (StridedWindows, ("window", "stride", "sampling_prob", "allow_overlap")),
        "two-level-tiling": (TwoLevelTiling, ("window", "sampling_prob", "meter_prob")),
        "meter-sampling": (MeterSampling, ("window", "sampling_prob", "windows_per_meter")),
    }
    try:
        kind, names = kinds[str(terms["sampler"])]
        return kind(**{n: terms[n] for n in names})
    except KeyError as missing:
        raise InputError(f"sampler terms without or with an unknown {missing}: {sorted(terms)}.") from None
