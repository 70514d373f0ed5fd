"""Controllers: formulae, signs, clamps, and what happens with empty batches and absurd states."""

import math

import pytest
import torch

from fedpriv.errors import InputError
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.controllers import GlobalAdaptClipper, GlobalAdaptController, QuantileController, StepFacts
from fedpriv.privacy.histogram_controllers import DcSgdEController, DcSgdPController
from fedpriv.privacy.recipe import CONTROLLERS
from fedpriv.privacy.rule_state import LEAST, MOST, read, scalar
from fedpriv.privacy.schedules import DynamicController

FLAT = make_clipper("flat", bound=1.0)
ODD = torch.tensor([0.0, 1e-12, 0.5, 1e12, 1e30, math.inf, math.nan], dtype=torch.float64)


def facts(denominator=10.0, sizes=(4,), sigma=1.0, sigma_gradient=1.0, step=0):
    return StepFacts(step=step, denominator=denominator, sizes=sizes, sigma=sigma, sigma_gradient=sigma_gradient)


def at(bound):
    return make_clipper("flat", bound=bound)


# ---- quantile -------------------------------------------------------------------------------------


def test_quantile_counts_the_unclipped_bits_recentred():
    bits = QuantileController().statistic(ODD, FLAT, {})
    assert bits.tolist() == [3 * 0.5 - 4 * 0.5]  # infinite and NaN count as clipped


@pytest.mark.parametrize("norms", [ODD[i : i + 1] for i in range(len(ODD))])
def test_a_row_adds_at_most_the_stated_bound(norms):
    for controller in (QuantileController(), GlobalAdaptController(), DcSgdPController(), DcSgdEController()):
        state = controller.start(1.0)
        bound = controller.statistic_noise(1.0)[0]
        assert float(controller.statistic(norms, FLAT, state).norm()) <= bound
        assert not controller.statistic(norms[:0], FLAT, state).any()  # an empty batch says nothing


@pytest.mark.parametrize(("share", "direction"), [(1.0, -1), (0.0, 1), (0.5, 0)])
def test_quantile_moves_the_right_way(share, direction):
    """All unclipped: the bound is too large and falls. (Flower's clipped bit with this sign diverges.)"""
    controller = QuantileController(gamma=0.5, eta=0.2)
    answer = torch.tensor([10 * (share - 0.5)], dtype=torch.float64)
    after = read(controller.update(answer, at(2.0), {"bound": scalar(2.0)}, facts())["bound"])
    assert after == pytest.approx(2.0 * math.exp(-0.2 * (share - 0.5)), rel=1e-6)
    assert (after > 2.0) - (after < 2.0) == direction


def test_noise_cannot_throw_the_bound_out_of_range():
    controller = QuantileController(eta=10.0)
    for answer in (-1e300, 1e300):
        value = read(controller.update(torch.tensor([answer], dtype=torch.float64), FLAT, {}, facts())["bound"])
        assert LEAST <= value <= MOST and value in (pytest.approx(math.exp(5)), pytest.approx(math.exp(-5)))


@pytest.mark.parametrize("told", [math.nan, math.inf, -1.0, 0.0, 1e38])
def test_a_state_from_outside_is_clamped(told):
    for name in ("quantile", "dc-sgd-p", "dc-sgd-e", "global-adapt"):
        controller = CONTROLLERS[name]()
        state = {key: scalar(told) for key in controller.start(1.0)}
        clipper = controller.clipper(FLAT, state, 0)
        assert 0 < clipper.bound < math.inf
        assert (ODD[:5] * clipper.factors(ODD[:5]) <= clipper.bound * (1 + 1e-5)).all()
        controller.update(controller.statistic(ODD, clipper, state), clipper, state, facts())


# ---- global-adapt ---------------------------------------------------------------------------------


def test_global_adapt_scales_below_and_clips_above():
    clipper = GlobalAdaptClipper(l2_clip_norm=0.5, z=50.0)
    factors = clipper.factors(torch.tensor([0.0, 10.0, 50.0, 100.0]))
    assert factors.tolist() == pytest.approx([0.01, 0.01, 0.01, 0.005])


def test_global_adapt_rises_with_large_norms_and_falls_without():
    controller, state = GlobalAdaptController(eta=0.1), {"z": scalar(50.0)}
    for share in (0.0, 1.0):
        after = controller.update(torch.tensor([10 * (share - 0.5)], dtype=torch.float64), FLAT, state, facts())
        assert read(after["z"]) == pytest.approx(50.0 * math.exp(share - 0.1), rel=1e-6)
    assert controller.statistic(torch.tensor([10.0, 60.0, math.nan]), FLAT, state).tolist() == [0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [LEAST, 1e-3, 1.0, 50.0, MOST])
def test_the_global_adapt_factor_keeps_its_bound(z, dtype):
    norms = torch.tensor([0.0, *(10.0**e for e in range(-12, 31)), math.nan, math.inf, -1.0], dtype=dtype)
    clipper = GlobalAdaptClipper(l2_clip_norm=0.7, z=z)
    factors = clipper.factors(norms)
    assert (factors[-3:] == 0).all() and (factors >= 0).all()
    assert (norms[:-3].double() * factors[:-3] <= 0.7 * (1 + 1e-5)).all()


# ---- DC-SGD ---------------------------------------------------------------------------------------


def test_every_row_is_in_one_bin():
    rows = DcSgdPController(bins=20).rows(ODD, 0.1)
    assert (rows.sum(dim=1) == 1).all() and rows.shape == (7, 20)
    assert rows.argmax(dim=1).tolist() == [0, 0, 5, 19, 19, 19, 19]


def test_the_noiseless_p_bound_is_the_quantile_to_one_bin():
    controller = DcSgdPController(p=0.3, width=0.1)
    norms = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    state = controller.start(1.0)
    after = controller.update(controller.statistic(norms, FLAT, state), FLAT, state, facts(denominator=2000))
    assert read(after["bound"]) == pytest.approx(float(norms.quantile(0.3)), abs=0.1)


def test_the_e_bound_has_no_bias_without_noise_and_falls_with_it():
    controller, norms = DcSgdEController(width=0.1), torch.tensor([0.31, 0.74, 1.22], dtype=torch.float64)
    state = controller.start(1.0)
    counts = controller.statistic(norms, FLAT, state)
    bounds = [
        read(controller.update(counts, FLAT, state, facts(sizes=(1000,), sigma_gradient=s))["bound"])
        for s in (0.0, 0.01, 0.1, 1.0, 10.0)
    ]
    assert bounds[0] >= 1.25  # the middle of the largest bin that is occupied
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < 0.01
    assert all(LEAST <= bound <= MOST for bound in bounds)


def test_the_search_of_the_e_bound_ends():
    controller = DcSgdEController(width=1e9)
    state = controller.start(1.0)
    counts = torch.zeros(20, dtype=torch.float64)
    counts[-1] = 5.0
    after = controller.update(counts, FLAT, state, facts(sigma_gradient=0.0))
    assert read(after["bound"]) == pytest.approx(2.0**9)  # nine searches, each to its edge


@pytest.mark.parametrize("kind", [DcSgdPController, DcSgdEController])
def test_a_histogram_without_mass_changes_nothing(kind):
    controller = kind()
    state = controller.start(0.7)
    assert controller.update(-torch.ones(20, dtype=torch.float64), at(0.7), state, facts()) == state


def test_the_range_follows_the_norms():
    controller = DcSgdPController(width=0.1)
    state = controller.start(1.0)
    for place, factor in ((19, 2.0), (0, 0.5), (12, 1.0)):
        counts = torch.zeros(20, dtype=torch.float64)
        counts[place] = 3.0
        after = controller.update(counts, FLAT, state, facts())
        assert read(after["width"]) == pytest.approx(0.1 * factor)


# ---- dynamic --------------------------------------------------------------------------------------


def test_a_schedule_covers_the_run():
    controller = DynamicController(steps_total=103, c_final=0.5, sigma_final=0.8, stages=10)
    stages = controller.noise(2.0)
    assert len(stages) == 10 and sum(count for _, count in stages) == 103
    sigmas = [sigma for sigma, _ in stages]
    assert sigmas[0] == 2.0 and sigmas == sorted(sigmas, reverse=True) and sigmas[-1] > 1.6
    bounds = [controller.clipper(FLAT, {}, step).bound for step in range(103)]
    assert bounds[0] == 1.0 and bounds == sorted(bounds, reverse=True) and 0.5 < bounds[-1] < 0.6


def test_a_flat_schedule_is_flat_clipping():
    controller = DynamicController(steps_total=50, c_final=1.0, sigma_final=1.0)
    assert controller.noise(1.3) == [(1.3, 50)]
    assert controller.clipper(FLAT, {}, 49) is FLAT


def test_a_run_shorter_than_the_stages():
    controller = DynamicController(steps_total=3, stages=20)
    assert [count for _, count in controller.noise(1.0)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantile", {"gamma": 1.0}),
        ("quantile", {"eta": 0.0}),
        ("quantile", {"sigma_b": -1.0}),
        ("global-adapt", {"tau": 0.0}),
        ("dc-sgd-p", {"p": 0.0}),
        ("dc-sgd-e", {"bins": 1}),
        ("dynamic", {"sigma_final": 0.0}),
        ("dynamic", {"stages": 0}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(InputError, match="Nothing was started"):
        CONTROLLERS[name](**options)
