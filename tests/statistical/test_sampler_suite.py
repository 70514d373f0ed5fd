"""The sampler suite passes sound samplers and fails each planted defect (fixed seeds, significance 1e-3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from fedpriv.privacy.audit.sampler import batch_size_law, check_sampler
from fedpriv.privacy.meter_samplers import MeterSampling, TwoLevelTiling
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler, StridedWindows, Tiles, disjoint_windows
from fedpriv.seeding import PrivacyRng, SystemRandom, stream

SPAN = {"num_meters": 4, "start": 7, "stop": 7 + 131}
SOUND = [
    RandomPhaseTiling(12, 0.3),
    RandomPhaseTiling(12, 0.01),
    RandomPhaseTiling(1, 0.2),
    RandomPhaseTiling(12, 1.0),
    StridedWindows(12, 4, 0.05),
    disjoint_windows(12, 0.3),
    TwoLevelTiling(12, 0.4, 0.5),
    MeterSampling(12, 0.3, 3),
]


@pytest.mark.parametrize("sampler", SOUND, ids=lambda s: f"{s.name}-{s.window}-{s.sampling_prob}")
@pytest.mark.parametrize("seed", [1, 2])
def test_sound_samplers_pass(sampler: Sampler, seed: int):
    results = check_sampler(sampler, **SPAN, steps=1500, rng=stream(seed, "sampling"))
    assert [f"{r.name}: {r.detail}" for r in results if not r.passed] == []


def test_the_deployment_stream_passes():
    results = check_sampler(SOUND[0], **SPAN, steps=1500, rng=SystemRandom(), significance=1e-6)
    assert [f"{r.name}: {r.detail}" for r in results if not r.passed] == []


@dataclass(frozen=True)
class TwiceTheRate(RandomPhaseTiling):
    def batches(self, **kw) -> Iterator[Tiles]:
        return RandomPhaseTiling(self.window, 2 * self.sampling_prob).batches(**kw)


@dataclass(frozen=True)
class SkipsEmpty(RandomPhaseTiling):
    def batches(self, **kw) -> Iterator[Tiles]:
        return (t for t in RandomPhaseTiling(self.window, self.sampling_prob).batches(**kw) if len(t))


@dataclass(frozen=True)
class SameCoins(RandomPhaseTiling):
    """Draws each batch twice in a row."""

    def batches(self, *, steps: int, **kw) -> Iterator[Tiles]:
        for tiles in RandomPhaseTiling(self.window, self.sampling_prob).batches(steps=-(-steps // 2), **kw):
            yield tiles
            yield tiles


@dataclass(frozen=True)
class FixedPhase(RandomPhaseTiling):
    def batches(self, **kw) -> Iterator[Tiles]:
        return disjoint_windows(self.window, self.sampling_prob).batches(**kw)


@dataclass(frozen=True)
class PhasePerMeter(RandomPhaseTiling):
    """One phase for each meter: harmless for readings, but not what the law of longer units says."""

    def batches(self, *, num_meters: int, steps: int, **kw) -> Iterator[Tiles]:
        inner = RandomPhaseTiling(self.window, self.sampling_prob)
        for _ in range(steps):
            parts = [next(inner.batches(num_meters=1, steps=1, **kw)) for _ in range(num_meters)]
            meter = np.concatenate([np.full(len(p), m) for m, p in enumerate(parts)]).astype(np.int64)
            start = np.concatenate([p.start for p in parts])
            yield Tiles(meter, start, np.arange(len(meter)))


@dataclass(frozen=True)
class Shuffled(RandomPhaseTiling):
    """Fixed-size batches without replacement over an epoch of tiles."""

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        generator = np.random.default_rng(5)
        per_meter = (stop - start) // self.window
        size = max(1, round(self.sampling_prob * num_meters * per_meter))
        order = np.zeros(0, dtype=np.int64)
        for _ in range(steps):
            if len(order) < size:
                order = generator.permutation(num_meters * per_meter)
            chosen, order = order[:size], order[size:]
            meter, tile = np.divmod(chosen, per_meter)
            yield Tiles(meter, start + tile * self.window, np.arange(len(chosen)))


@dataclass(frozen=True)
class Overlapping(RandomPhaseTiling):
    """Sliding windows accounted as tiles."""

    def batches(self, **kw) -> Iterator[Tiles]:
        return StridedWindows(self.window, 3, self.sampling_prob / 4, allow_overlap=True).batches(**kw)


@pytest.mark.parametrize(
    ("sampler", "caught_by"),
    [
        (TwiceTheRate(12, 0.1), "inclusion of a reading"),
        (SkipsEmpty(12, 0.02), "one batch per step, empty ones included"),
        (SameCoins(12, 0.3), "independence of successive steps"),
        (FixedPhase(12, 0.3), "uniform phase"),
        (PhasePerMeter(12, 0.3), "uniform phase"),
        (Shuffled(12, 0.3), "batch sizes"),
        (Shuffled(12, 0.3), "independence of successive steps"),
        (Overlapping(12, 0.3), "coverage per step"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Sampler) else v,
)
def test_planted_defects_fail(sampler: Sampler, caught_by: str):
    results = check_sampler(sampler, **SPAN, steps=1500, rng=stream(3, "sampling"))
    assert caught_by in {r.name for r in results if not r.passed}


def test_batch_size_law_has_the_stated_mean():
    for sampler in SOUND:
        law = batch_size_law(sampler, num_meters=4, calendar_steps=131)
        stated = sampler.expected_batch_size(**SPAN)
        assert (law * np.arange(len(law))).sum() == pytest.approx(stated, rel=1e-10)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_said():
    failed = 0
    for seed in range(200):
        results = check_sampler(SOUND[0], **SPAN, steps=400, rng=stream(seed, "alarms"), significance=0.05)
        failed += any(not r.passed for r in results)
    assert failed <= 24  # Binomial(200, 0.05) exceeds this once in a thousand
