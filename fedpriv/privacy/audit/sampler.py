"""Does a sampler draw what its law says? Every check compares the batches with the law that the accountant uses.

A sampler that shuffles, skips empty batches, draws at twice the rate, reuses its coins or cuts overlapping tiles
breaks the promise without any error showing; each of these fails a check here. Checks are made at a joint
significance (1e-3 unless said), so that a sound sampler fails once in a thousand runs.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc

from fedpriv.errors import InputError
from fedpriv.privacy.audit.result import CheckResult
from fedpriv.privacy.meter_samplers import MeterSampling, TwoLevelTiling
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler, Tiles
from fedpriv.privacy.units import METER, READING
from fedpriv.seeding import PrivacyRng

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class _AllHit:
    """A source that fixes the phase and makes every coin fall on its chosen side."""

    phase: int

    def random(self, size: int) -> NDArray[np.float64]:
        """Zeros: every coin with a positive probability hits."""
        return np.zeros(size)

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(size)

    def integers(self, low: int, high: int) -> int:
        """The fixed phase, whatever the range."""
        return low + min(self.phase, high - low - 1)


def check_sampler(
    sampler: Sampler,
    *,
    num_meters: int,
    start: int,
    stop: int,
    steps: int,
    rng: PrivacyRng,
    significance: float = 1e-3,
) -> list[CheckResult]:
    """All checks of one sampler on one calendar.

    Args:
        sampler: under test.
        num_meters: M, public.
        start, stop: training calendar; long enough for a reading in the middle to be away from both ends.
        steps: batches to draw; a few thousand give power against a rate off by a tenth.
        rng: source of its randomness.
        significance: chance that a sound sampler fails any of the checks.

    Raises:
        InputError: the calendar is too short for a reading away from both ends.
    """
    if stop - start < 3 * sampler.window:
        raise InputError(f"the calendar of {stop - start} steps is shorter than three windows; nothing was checked.")
    batches = list(sampler.batches(num_meters=num_meters, start=start, stop=stop, steps=steps, rng=rng))
    level = significance / 4  # four statistical checks share it
    counts = _touching(sampler, batches, _probes(sampler, num_meters, start, stop))
    return [
        _inside(sampler, batches, num_meters, start, stop),
        _coverage(sampler, counts),
        _all_phases(sampler, num_meters, start, stop),
        _empty_batches(batches, steps),
        _inclusion(sampler, counts, stop - start, level),
        _batch_sizes(sampler, batches, num_meters, stop - start, level),
        _serial(counts, level),
        _positions(sampler, batches, start, stop, level),
    ]


def _probes(sampler: Sampler, num_meters: int, start: int, stop: int) -> list[tuple[int, int]]:
    """(meter, step) of readings whose touching windows are drawn independently of each other."""
    window = sampler.window
    inner = np.arange(start + window, stop - window, 2 * window)
    if isinstance(sampler, MeterSampling | TwoLevelTiling):  # one coin per meter: one reading of each
        return [(m, int(inner[m % len(inner)])) for m in range(num_meters)]
    return [(m, int(t)) for m in range(num_meters) for t in inner]


def _touching(sampler: Sampler, batches: Sequence[Tiles], probes: list[tuple[int, int]]) -> Counts:
    """[steps, probes] groups of each step that touch each probed reading."""
    meters, times = (np.array(v, dtype=np.int64) for v in zip(*probes, strict=True))
    counts = np.zeros((len(batches), len(probes)), dtype=np.int64)
    for i, tiles in enumerate(batches):
        offset = times[None, :] - tiles.start[:, None]
        hit = (tiles.meter[:, None] == meters) & (offset >= 0) & (offset < sampler.window)  # [B, probes]
        groups = np.zeros((int(tiles.group.max()) + 1 if len(tiles) else 0, len(probes)), dtype=bool)
        np.logical_or.at(groups, tiles.group, hit)
        counts[i] = groups.sum(axis=0)
    return counts


def _inside(sampler: Sampler, batches: Sequence[Tiles], num_meters: int, start: int, stop: int) -> CheckResult:
    bad = sum(
        int(((t.start < start) | (t.start + sampler.window > stop) | (t.meter < 0) | (t.meter >= num_meters)).sum())
        for t in batches
    )
    return CheckResult("windows inside the calendar", bad == 0, f"{bad} windows outside [{start}, {stop})")


def _coverage(sampler: Sampler, counts: Counts) -> CheckResult:
    most, allowed = int(counts.max(initial=0)), len(sampler.law(READING)) - 1
    detail = f"a reading was touched by up to {most} groups in one step; the law allows {allowed}"
    return CheckResult("coverage per step", most <= allowed, detail)


def _all_phases(sampler: Sampler, num_meters: int, start: int, stop: int) -> CheckResult:
    """Exhaustive for tilings: with every coin up, each phase covers each reading at most once."""
    name = "coverage over all phases"
    if not isinstance(sampler, RandomPhaseTiling):
        return CheckResult(name, True, "has no phase")
    positions: list[NDArray[np.int64]] = []
    worst = 0
    for phase in range(sampler.window):
        source = _AllHit(phase)
        for tiles in sampler.batches(num_meters=1, start=start, stop=stop, steps=1, rng=source):
            covered = (tiles.start[:, None] - start + np.arange(sampler.window)).ravel()
            worst = max(worst, int(np.bincount(covered, minlength=1).max()) if len(covered) else 0)
            positions.append(tiles.start - start)
    every = np.sort(np.concatenate(positions))
    exact = np.array_equal(every, np.arange(stop - start - sampler.window + 1))
    mean = sampler.sampling_prob * num_meters * len(every) / sampler.window
    stated = sampler.expected_batch_size(num_meters=num_meters, start=start, stop=stop)
    detail = (
        f"at most {worst} tiles on a reading; {len(every)} positions over {sampler.window} phases, "
        f"{'each once' if exact else 'not each once'}; mean batch {mean:.6g}, stated {stated:.6g}"
    )
    return CheckResult(name, worst <= 1 and exact and math.isclose(mean, stated, rel_tol=1e-12), detail)


def _empty_batches(batches: Sequence[Tiles], steps: int) -> CheckResult:
    empty = sum(len(t) == 0 for t in batches)
    detail = f"{len(batches)} batches for {steps} steps, {empty} of them empty"
    return CheckResult("one batch per step, empty ones included", len(batches) == steps, detail)


def _inclusion(sampler: Sampler, counts: Counts, span: int, level: float) -> CheckResult:
    law = sampler.law(READING, calendar_steps=span)
    seen = np.bincount(counts.ravel(), minlength=len(law)).astype(float)
    p, detail = _fit(seen, law)
    return CheckResult(
        "inclusion of a reading", p >= level, f"{detail}; mean {counts.mean():.5f}, law {_mean(law):.5f}"
    )


def batch_size_law(sampler: Sampler, *, num_meters: int, calendar_steps: int) -> NDArray[np.float64]:
    """[max + 1] law of the number of groups in one step: meters are independent given what they share."""
    total: NDArray[np.float64] = np.zeros(1)
    for weight, law in sampler.laws(METER, calendar_steps=calendar_steps):
        size = (len(law) - 1) * num_meters + 1
        pmf = np.fft.irfft(np.fft.rfft(law, 2 * size) ** num_meters, 2 * size)[:size]
        total = np.pad(total, (0, max(0, size - len(total)))) + weight * np.pad(pmf, (0, max(0, len(total) - size)))
    return np.maximum(total, 0.0) / np.maximum(total, 0.0).sum()


def _batch_sizes(sampler: Sampler, batches: Sequence[Tiles], num_meters: int, span: int, level: float) -> CheckResult:
    law = batch_size_law(sampler, num_meters=num_meters, calendar_steps=span)
    sizes = np.array([int(t.group.max()) + 1 if len(t) else 0 for t in batches])
    name = "batch sizes"
    if sizes.max(initial=0) >= len(law):
        return CheckResult(name, False, f"a batch of {sizes.max()} groups; at most {len(law) - 1} are possible")
    p, detail = _fit(np.bincount(sizes, minlength=len(law)).astype(float), law)
    j = np.arange(len(law))
    variance = float((law * (j - _mean(law)) ** 2).sum())
    return CheckResult(name, p >= level, f"{detail}; variance {sizes.var():.4g}, law {variance:.4g}")


def _serial(counts: Counts, level: float) -> CheckResult:
    """Correlation of each reading's count with that of the step before; shuffling makes it negative."""
    x = counts - counts.mean(axis=0)
    scale = math.sqrt(float((x[1:] ** 2).mean() * (x[:-1] ** 2).mean())) or 1.0
    z = float((x[1:] * x[:-1]).mean()) / scale * math.sqrt(x[1:].size)
    z += math.sqrt(x[1:].size) / len(x)  # centring by the own mean biases by -1/n
    p = math.erfc(abs(z) / math.sqrt(2))
    return CheckResult("independence of successive steps", p >= level, f"z = {z:.2f}, p = {p:.2g}")


def _positions(sampler: Sampler, batches: Sequence[Tiles], start: int, stop: int, level: float) -> CheckResult:
    """Phases of a tiling are uniform: one per step, read off its first window."""
    name = "uniform phase"
    if not isinstance(sampler, RandomPhaseTiling | TwoLevelTiling):
        return CheckResult(name, True, "has no phase")
    # Only phases with equally many tiles are equally likely to show; restrict to those.
    per_phase = (stop - start - np.arange(sampler.window)) // sampler.window
    kept = np.flatnonzero(per_phase == per_phase[0])
    shown = np.array([int((t.start[0] - start) % sampler.window) for t in batches if len(t)], dtype=np.int64)
    mixed = sum(len(np.unique((t.start - start) % sampler.window)) > 1 for t in batches if len(t))
    seen = np.bincount(shown, minlength=sampler.window)[kept].astype(float)
    p, detail = _fit(seen, np.full(len(kept), 1 / len(kept)))
    return CheckResult(name, p >= level and mixed == 0, f"{detail}; {mixed} steps with more than one phase")


def _mean(law: NDArray[np.float64]) -> float:
    return float((law * np.arange(len(law))).sum())


def _fit(seen: NDArray[np.float64], law: NDArray[np.float64]) -> tuple[float, str]:
    """p-value of Pearson's chi-square of counts against a law, neighbouring cells pooled to at least 5 expected."""
    n = seen.sum()
    if n == 0:
        return 1.0, "nothing to compare"
    seen = np.pad(seen, (0, max(0, len(law) - len(seen))))
    if seen[len(law) :].any() or (seen[: len(law)][law <= 0] > 0).any():
        return 0.0, "values that the law excludes"
    cells: list[tuple[float, float]] = []
    observed = expected = 0.0
    for o, e in zip(seen, law * n, strict=True):
        observed, expected = observed + float(o), expected + float(e)
        if expected >= 5:
            cells.append((observed, expected))
            observed = expected = 0.0
    if cells:
        cells[-1] = (cells[-1][0] + observed, cells[-1][1] + expected)
    if len(cells) < 2:
        return 1.0, "too few draws to compare"
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    p = float(gammaincc((len(cells) - 1) / 2, statistic / 2))
    return p, f"chi2 = {statistic:.2f} on {len(cells) - 1}, p = {p:.2g}"
