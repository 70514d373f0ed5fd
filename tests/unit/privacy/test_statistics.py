"""Cover, clipping, noise and event of the one-round releases, replayed on neighbouring data sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from dp_accounting import dp_event
from scipy import stats
from torch import Tensor

from fedpriv.config import DataConfig
from fedpriv.data.client_data import ClientData
from fedpriv.data.tasks import make_examples
from fedpriv.data.windows import cut
from fedpriv.errors import CheckFailed, InputError
from fedpriv.examples import Examples
from fedpriv.models.designs import LagDesign, ProfileDesign
from fedpriv.models.gaussian import GaussianBaseline
from fedpriv.models.ridge import RidgeBaseline
from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.statistics import (
    EveryWindow,
    SampledPasses,
    StatisticsMechanism,
    calibrate_release,
    clipped_rows,
)
from fedpriv.privacy.units import CLIENT, METER, READING, Relation, Unit

CONTEXT, HORIZON, PERIOD = 28, 8, 8
WINDOW = CONTEXT + HORIZON
STEPS, METERS = 150, 2
DAY = Unit.parse("day", steps_per_day=PERIOD)
BASELINES = {
    "profile": RidgeBaseline(design=ProfileDesign(context=CONTEXT, horizon=HORIZON, period=PERIOD, blocks=2)),
    "lags": RidgeBaseline(design=LagDesign(context=CONTEXT, horizon=HORIZON, cosines=3)),
    "kernels": GaussianBaseline(window=WINDOW, period=PERIOD),
    "dense": GaussianBaseline(window=WINDOW, period=PERIOD, structure="dense"),
}
CLIPPERS = {"flat": make_clipper("flat", bound=0.7), "auto-s": make_clipper("auto-s", bound=0.7)}
COVERS = {"every-1": EveryWindow(WINDOW, 1), "every-5": EveryWindow(WINDOW, 5), "every-36": EveryWindow(WINDOW, WINDOW)}


def client(values: np.ndarray) -> ClientData:
    whole = slice(0, values.shape[1])
    step = pd.Timedelta(hours=3)
    names = tuple(f"m{i}" for i in range(values.shape[0]))
    start = pd.Timestamp("2024-01-01")
    return ClientData("a", values, start, step, names, ("load",), "MW", whole, whole, whole)


def series(seed: int = 0) -> np.ndarray:
    """[M, T, 1] float32 with a daily rhythm."""
    rng = np.random.default_rng(seed)
    time = np.arange(STEPS)[None, :, None]
    wave = 10 + 3 * np.sin(2 * np.pi * time / PERIOD) + rng.normal(size=(METERS, STEPS, 1)).cumsum(axis=1) * 0.3
    return wave.astype(np.float32)


def reader(values: np.ndarray):
    data = client(values)

    def read(meter: np.ndarray, start: np.ndarray) -> Examples:
        windows = cut(data, meter, start, WINDOW)
        target = torch.zeros_like(windows.observed)
        target[:, CONTEXT:] = True
        return make_examples(windows, target, period=PERIOD, scaling=DataConfig())

    return read


def mechanism(cover, clipper="flat", sigma=1.0, unit=READING) -> StatisticsMechanism:
    return StatisticsMechanism(
        cover=cover, clipper=CLIPPERS[clipper], noise_multiplier=sigma, unit=unit, relation=Relation.ZERO_OUT
    )


def sums(mech: StatisticsMechanism, statistic, values: np.ndarray, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    args = {"num_meters": METERS, "start": 0, "stop": STEPS, "rng": rng}
    return list(mech.clipped_sum(statistic, reader(values), **args))


@pytest.mark.parametrize("stride", [1, 5, 7, WINDOW])
@pytest.mark.parametrize("steps", [1, 3, PERIOD, 40])
def test_overlap_is_the_weight_of_the_windows_that_the_worst_unit_touches(stride: int, steps: int) -> None:
    cover = EveryWindow(WINDOW, stride)
    (tiles,) = cover.tiles(num_meters=1, start=0, stop=STEPS, rng=np.random.default_rng(0))
    assert tiles.start.max() + WINDOW <= STEPS
    touched = [
        ((tiles.start < at + steps) & (tiles.start + WINDOW > at)).sum() * cover.weight
        for at in range(STEPS - steps + 1)
    ]
    unit = Unit.parse(f"event:{steps}", steps_per_day=PERIOD)
    assert max(touched) <= cover.overlap(unit) + 1e-12
    assert max(touched) <= cover.overlap(unit, calendar_steps=STEPS) + 1e-12 <= cover.overlap(unit) + 1e-12
    assert max(touched) >= cover.overlap(unit) - cover.weight - 1e-12  # tight up to rounding to strides
    assert cover.expected_weight(num_meters=3, start=0, stop=STEPS) == pytest.approx(3 * len(tiles) * cover.weight)


def test_every_position_is_used_and_a_reading_weighs_one() -> None:
    cover = EveryWindow(WINDOW, 1)
    (tiles,) = cover.tiles(num_meters=2, start=3, stop=STEPS, rng=np.random.default_rng(0))
    assert len(tiles) == 2 * (STEPS - 3 - WINDOW + 1)
    assert cover.overlap(READING) == 1.0
    assert cover.overlap(METER, calendar_steps=STEPS) == pytest.approx((STEPS - WINDOW + 1) / WINDOW)
    with pytest.raises(InputError, match="calendar_steps"):
        cover.overlap(METER)
    with pytest.raises(InputError, match="whole client"):
        cover.overlap(CLIENT)
    with pytest.raises(InputError, match="nothing was read"):
        list(cover.tiles(num_meters=1, start=0, stop=WINDOW - 1, rng=np.random.default_rng(0)))
    with pytest.raises(InputError, match="stride"):
        EveryWindow(WINDOW, 0)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("steps", [1, PERIOD])
def test_zeroing_a_unit_out_moves_the_sum_by_at_most_the_stated_sensitivity(
    name: str, clipper: str, cover: str, steps: int
) -> None:
    mech, statistic, values = mechanism(COVERS[cover], clipper), BASELINES[name], series()
    values[0, 60:64] *= 40.0  # spikes: the largest contributions
    base = sums(mech, statistic, values)[0]
    unit = Unit.parse(f"event:{steps}", steps_per_day=PERIOD)
    allowed = mech.clipper.bound * COVERS[cover].overlap(unit)
    worst = 0.0
    for at in (0, 30, 61, 75, STEPS - steps):
        neighbour = values.copy()
        neighbour[0, at : at + steps] = np.nan
        worst = max(worst, float((sums(mech, statistic, neighbour)[0] - base).norm()))
    assert 0 < worst <= allowed * (1 + 1e-6)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("content", [0.0, 1e30, -1e30, 3e38, "flat"])
def test_replacing_a_reading_moves_the_sum_by_at_most_twice(name: str, content: float | str) -> None:
    mech, statistic, values = mechanism(COVERS["every-1"]), BASELINES[name], series()
    neighbour = values.copy()
    neighbour[1, 70] = values[1, 69] if content == "flat" else content
    shift = float((sums(mech, statistic, neighbour)[0] - sums(mech, statistic, values)[0]).norm())
    assert shift <= 2 * mech.clipper.bound * (1 + 1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_rows_are_functions_of_their_own_window(name: str) -> None:
    read = reader(series())
    meter, start = np.array([0, 1, 0, 1]), np.array([0, 40, 77, 100])
    together = BASELINES[name].rows(read(meter, start))
    for i in range(4):
        alone = BASELINES[name].rows(read(meter[i : i + 1], start[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class Huge:
    """A hostile statistic."""

    fill: float
    size: int = 5

    def rows(self, examples: Examples) -> Tensor:
        rows = torch.zeros(len(examples), self.size, dtype=torch.float64)
        rows[:, 1] = self.fill
        return rows


@pytest.mark.parametrize("fill", [0.0, 1e-300, 1.0, 1e150, 1e300, math.inf, math.nan])
@pytest.mark.parametrize("clipper", CLIPPERS)
def test_no_row_passes_the_bound_whatever_the_statistic_says(fill: float, clipper: str) -> None:
    examples = reader(series())(np.array([0, 1]), np.array([0, 9]))
    rows = clipped_rows(Huge(fill), examples, CLIPPERS[clipper])
    assert rows.isfinite().all()
    assert (rows.norm(dim=1) <= CLIPPERS[clipper].bound).all()


def test_windows_with_a_missing_reading_add_nothing() -> None:
    values = series()
    values[0, 10] = np.nan  # in the context
    values[1, CONTEXT + 2] = np.nan  # in the horizon
    rows = clipped_rows(BASELINES["lags"], reader(values)(np.array([0, 1, 0]), np.array([0, 0, 11])), CLIPPERS["flat"])
    assert not rows[0].any()
    assert not rows[1].any()
    assert rows[2].any()


def test_a_statistic_of_the_wrong_size_is_refused() -> None:
    @dataclass(frozen=True)
    class Liar(Huge):
        def rows(self, examples: Examples) -> Tensor:
            return torch.zeros(len(examples), self.size + 1)

    with pytest.raises(CheckFailed):
        sums(mechanism(COVERS["every-36"]), Liar(1.0), series())


def test_chunks_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    mech, statistic = mechanism(COVERS["every-1"]), BASELINES["profile"]
    whole = sums(mech, statistic, series())[0]
    monkeypatch.setattr("fedpriv.privacy.statistics._CHUNK", 1)
    torch.testing.assert_close(sums(mech, statistic, series())[0], whole)


def test_events_for_units_and_covers() -> None:
    every = mechanism(EveryWindow(192, 1), sigma=2.0)
    assert every.event() == dp_event.GaussianDpEvent(2.0)
    day = every.event(Unit.parse("day", steps_per_day=24))
    assert isinstance(day, dp_event.GaussianDpEvent)
    assert day.noise_multiplier == pytest.approx(2.0 / ((192 + 23) / 192))
    passes = mechanism(SampledPasses(RandomPhaseTiling(192, 1.0), 4), sigma=2.0)
    assert passes.event() == dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(2.0), 4)
    assert epsilon(passes.event(), 1, 1e-5, "zero-out") == pytest.approx(
        epsilon(dp_event.GaussianDpEvent(1.0), 1, 1e-5, "zero-out"), rel=1e-3
    )
    sampled = mechanism(SampledPasses(RandomPhaseTiling(192, 0.5), 1), sigma=2.0)
    assert sampled.event() == dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(2.0))
    # a day lies in one or two tiles of a pass: dearer than a reading, and than with all phases averaged
    unit = Unit.parse("day", steps_per_day=24)
    one = mechanism(SampledPasses(RandomPhaseTiling(192, 1.0), 1), sigma=2.0)
    price = [epsilon(event, 1, 1e-5, "zero-out") for event in (every.event(), day, one.event(unit))]
    assert price[0] < price[1] < price[2]


def test_calibration_is_that_of_the_gaussian_mechanism() -> None:
    # analytic Gaussian mechanism (Balle & Wang 2018) at delta = 1e-5
    for target, sigma in ((1.0, 3.730632), (2.0, 1.993812), (8.0, 0.600229)):
        found = calibrate_release(
            EveryWindow(192, 4), unit=READING, relation=Relation.ZERO_OUT, epsilon=target, delta=1e-5
        )
        assert found == pytest.approx(sigma, rel=2e-3)
        replaced = calibrate_release(
            EveryWindow(192, 4), unit=READING, relation=Relation.REPLACE_ONE, epsilon=target, delta=1e-5
        )
        assert replaced == pytest.approx(2 * sigma, rel=2e-3)


def test_no_noise_needs_an_explicit_yes_and_says_so() -> None:
    with pytest.raises(InputError, match="nothing was released"):
        mechanism(COVERS["every-1"], sigma=0.0)
    open_ = replace(mechanism(COVERS["every-1"]), noise_multiplier=0.0, insecure_no_noise=True)
    assert open_.event() == dp_event.NonPrivateDpEvent()


def test_noise_has_the_stated_size_also_without_windows_and_over_passes() -> None:
    @dataclass(frozen=True)
    class Nothing(Huge):
        size: int = 4000

        def rows(self, examples: Examples) -> Tensor:
            return torch.zeros(len(examples), self.size)

    statistic = Nothing(0.0)
    args = {"num_meters": METERS, "start": 0, "stop": STEPS}
    for cover in (EveryWindow(WINDOW, 9), SampledPasses(RandomPhaseTiling(WINDOW, 1e-6), 3)):
        mech = mechanism(cover, sigma=1.7)
        sent = mech.release(statistic, reader(series()), **args, rng=np.random.default_rng(5))
        assert sent.stddev == pytest.approx(1.7 * 0.7 * math.sqrt(cover.passes))
        assert sent.event == mech.event()
        noise = sent.vector.numpy() / sent.stddev
        low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], len(noise))
        assert low < (noise**2).sum() < high
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        again = mech.release(statistic, reader(series()), **args, rng=np.random.default_rng(6))
        assert abs(np.corrcoef(noise, again.vector.numpy())[0, 1]) < 6 / math.sqrt(len(noise))


def test_releases_are_unbiased_for_the_clipped_sum() -> None:
    mech, statistic, values = mechanism(COVERS["every-5"]), BASELINES["profile"], series()
    exact = sums(mech, statistic, values)[0]
    args = {"num_meters": METERS, "start": 0, "stop": STEPS}
    read = reader(values)
    draws = torch.stack([mech.release(statistic, read, **args, rng=np.random.default_rng(s)).vector for s in range(60)])
    z = (draws.mean(dim=0) - exact) / (mech.stddev / math.sqrt(60))
    low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], len(z))
    assert low < float(z.square().sum()) < high


def test_passes_use_each_reading_once_and_match_their_expected_weight() -> None:
    cover = SampledPasses(RandomPhaseTiling(WINDOW, 1.0), 40)
    counts = np.zeros(STEPS)
    total = 0
    for tiles in cover.tiles(num_meters=1, start=0, stop=STEPS, rng=np.random.default_rng(0)):
        seen = np.zeros(STEPS)
        for s in tiles.start:
            seen[s : s + WINDOW] += 1
        assert seen.max() <= 1
        counts += seen
        total += len(tiles)
    assert counts[WINDOW:-WINDOW].min() > 30  # nearly every pass; the calendar's ends are met less often
    assert total == pytest.approx(cover.expected_weight(num_meters=1, start=0, stop=STEPS), rel=0.15)
    with pytest.raises(InputError, match="passes"):
        SampledPasses(RandomPhaseTiling(WINDOW, 1.0), 0)
