"""The exact sampler of discrete noise, and the hardened mechanism on top of it. Significance 1e-3, fixed seeds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from scipy import stats

from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy import discrete_gaussian as module
from fedpriv.privacy.accounting import epsilon, epsilon_of
from fedpriv.privacy.audit.probe import Probe, made_up, probe_loss, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.discrete_gaussian import discrete_gaussian
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.hardened import (
    GRID,
    GridEngine,
    GridSum,
    HardenedMechanism,
    check_rules,
    check_size,
    discrete_event,
    on_grid,
)
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, Relation, event_unit
from fedpriv.seeding import SystemRandom, stream


def law(variance: int) -> tuple[np.ndarray, np.ndarray]:
    reach = int(7 * math.sqrt(variance)) + 2
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * variance))
    return x, p / p.sum()


@pytest.mark.parametrize("variance", [1, 2, 3, 10, 100])
def test_small_variances_follow_the_law(variance):
    drawn = discrete_gaussian(variance, 300_000, stream(7, "discrete", variance))
    x, p = law(variance)
    counts = np.array([(drawn == v).sum() for v in x])
    enough = p * len(drawn) > 10
    expected = np.append(p[enough], p[~enough].sum()) * len(drawn)
    observed = np.append(counts[enough], len(drawn) - counts[enough].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("variance", [10**6, (5 * GRID) ** 2, 1 << 70])
def test_large_variances_are_normal_to_the_eye(variance):
    drawn = discrete_gaussian(variance, 200_000, stream(8, "discrete", variance)) / math.sqrt(variance)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / len(drawn))
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / math.sqrt(len(drawn))


def test_low_digits_are_uniform():
    """What floating-point noise cannot promise: no pattern in the last digits, even when shifted."""
    drawn = discrete_gaussian((5 * GRID) ** 2, 200_000, stream(9, "digits"))
    for shift in (0, 1, 12345):
        counts = np.bincount((drawn + shift) % 64, minlength=64)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_the_operating_system_serves():
    drawn = discrete_gaussian(16, 100_000, SystemRandom())
    assert drawn.dtype == np.int64
    assert abs(drawn.var() / 16 - 1) < 0.05
    assert len(discrete_gaussian(16, 0, SystemRandom())) == 0


@pytest.mark.parametrize("variance", [0, -1, 2.0, True, (1 << 72) + 1])
def test_variance_must_be_whole(variance):
    with pytest.raises(InputError, match="none was drawn"):
        discrete_gaussian(variance, 1, stream(1, "x"))


def test_undecided_coins_are_decided_exactly(monkeypatch):
    """With every coin sent to exact arithmetic the law is the same, so the slow path is not a second distribution."""
    monkeypatch.setattr(module, "MARGIN", 2.0)
    drawn = discrete_gaussian(2, 2_000, stream(3, "exact"))
    x, p = law(2)
    counts = np.array([(drawn == v).sum() for v in x])
    enough = p * len(drawn) > 10
    observed = np.append(counts[enough], len(drawn) - counts[enough].sum())
    expected = np.append(p[enough], p[~enough].sum()) * len(drawn)
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_exact_decisions_at_the_edge():
    """53 bits that straddle exp(-1): the next bits decide, with about the right odds."""
    scaled = Fraction(math.exp(-1)) * (1 << 53)
    word = int(scaled)  # exp(-1) lies somewhere in this cell or next to it
    assert module._decide(word - 2, Fraction(1), stream(1, "a"))
    assert not module._decide(word + 2, Fraction(1), stream(1, "a"))
    assert module._decide(0, Fraction(30), stream(1, "a")) in (True, False)
    assert module._decide((1 << 53) - 1, Fraction(0), stream(1, "a"))


def test_its_cost(record_property):
    import time

    rng = SystemRandom()
    discrete_gaussian((5 * GRID) ** 2, 10_000, rng)
    start = time.process_time()
    stream(0, "noise").standard_normal(200_000)
    plain = time.process_time() - start
    start = time.process_time()
    discrete_gaussian((5 * GRID) ** 2, 200_000, rng)
    discrete = time.process_time() - start
    record_property("ratio", discrete / plain)
    assert discrete < 100 * plain  # numpy's; about 20 on a quiet machine


# ---- the mechanism --------------------------------------------------------------------------------


def mechanism(sigma=2.0, p=1.0, unit=READING, relation="zero-out", clipper="flat"):
    return HardenedMechanism(
        sampler=RandomPhaseTiling(24, p), clipper=make_clipper(clipper, bound=0.7), noise_multiplier=sigma, unit=unit,
        relation=relation,
    )  # fmt: skip


def test_the_event_is_zcdp_scaled_and_never_amplified():
    assert mechanism().step_event() == dp_event.ZCDpEvent(1 / 8) == discrete_event(2.0)
    assert mechanism(p=0.1).step_event() == dp_event.ZCDpEvent(1 / 8)
    assert mechanism(relation="replace-one").step_event() == dp_event.ZCDpEvent(4 / 8)
    assert mechanism(unit=event_unit(24)).step_event() == dp_event.ZCDpEvent(4 / 8)  # a day meets two tiles


def test_its_epsilon_lies_a_little_above_that_of_continuous_noise():
    exact = epsilon(dp_event.GaussianDpEvent(20.0), 300, 1e-5, Relation.ZERO_OUT)
    claimed = epsilon(discrete_event(20.0), 300, 1e-5, Relation.ZERO_OUT)
    assert exact < claimed < 1.15 * exact
    both = epsilon_of([(discrete_event(20.0), 300), (dp_event.GaussianDpEvent(50.0), 2)], 1e-5, Relation.ZERO_OUT)
    assert both > claimed


def rows_engine():
    model = randomised(Probe(), torch.Generator().manual_seed(0))
    return make_engine("functional", model, probe_loss)


def test_rows_are_on_the_grid_within_the_bound_and_alone():
    engine, clipper = rows_engine(), make_clipper("flat", bound=0.7)
    examples, draws = made_up(6, torch.Generator().manual_seed(1))
    whole = GridEngine(engine).clipped_sum(examples, draws, clipper).cells
    assert whole.dtype == torch.int64
    one_by_one = torch.zeros_like(whole)
    for i in range(6):
        row = on_grid(engine.per_row(examples.rows(slice(i, i + 1)), draws.rows(slice(i, i + 1))), clipper)
        assert 0 < int(row.square().sum()) <= GRID**2
        one_by_one += row
    assert torch.equal(whole, one_by_one)  # exactly: leaving out a row changes the sum by that row and nothing else
    keep = torch.tensor([0, 1, 3, 4, 5])
    without = GridEngine(engine).clipped_sum(examples.rows(keep), draws.rows(keep), clipper).cells
    left_out = on_grid(engine.per_row(examples.rows(slice(2, 3)), draws.rows(slice(2, 3))), clipper)
    assert torch.equal(whole - without, left_out)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("clipper", ["flat", "auto-s", "psac", "psasc"])
def test_no_row_passes_the_grid(scale, clipper):
    made = make_clipper(clipper, bound=1.3)
    row = torch.randn(1, 500, generator=torch.Generator().manual_seed(2)) * scale
    assert int(on_grid(row, made).square().sum()) <= GRID**2


def test_a_clipper_that_overshoots_is_caught_in_integers():
    class Lying:
        bound = 1.0

        def factors(self, norms):
            return torch.full_like(norms, 1.5)

    row = torch.full((1, 4), 0.5)
    assert not on_grid(row, Lying()).any()  # norm 1 x 1.5 > bound: the row is left out


def test_release_is_exact_noise_on_the_exact_sum():
    made = mechanism(sigma=3.0)
    cells = torch.arange(-1000, 1000, dtype=torch.int64) * GRID // 2000
    got = made.release(GridSum(torch.zeros(0), 0.7, cells=cells), denominator=4.0, rng=stream(5, "noise"))
    noise = discrete_gaussian(made.variance, 2000, stream(5, "noise"))
    want = (cells.numpy() + noise) * (0.7 / GRID / 4.0)
    assert np.allclose(got.grad.numpy(), want, rtol=1e-6, atol=1e-9)
    assert made.variance == 9 * GRID**2
    assert got.event == made.step_event()
    assert float(np.std(noise)) == pytest.approx(3.0 * GRID, rel=0.06)
    for wrong in (ClippedSum(torch.zeros(3), 0.7), GridSum(torch.zeros(0), 0.8, cells=cells)):
        with pytest.raises(CheckFailed, match="nothing was released"):
            made.release(wrong, denominator=1.0, rng=stream(1, "n"))
    with pytest.raises(InputError):
        made.release(GridSum(torch.zeros(0), 0.7, cells=cells), denominator=0.0, rng=stream(1, "n"))


def test_an_empty_batch_is_noise():
    clipped = GridEngine(rows_engine()).clipped_sum(*made_up(0, torch.Generator()), make_clipper("flat", bound=0.7))
    assert clipped.cells.dtype == torch.int64
    assert not clipped.cells.any()
    assert mechanism().release(clipped, denominator=1.0, rng=stream(1, "n")).grad.any()


def test_refusals():
    with pytest.raises(InputError, match="train fewer"):
        check_size(10**11)
    from fedpriv.config import PrivacyConfig

    with pytest.raises(InputError, match="quantile"):
        check_rules(PrivacyConfig(controller="quantile", clipper="flat").rules())
