"""DP-aware modulation: the properties of its bounds (arXiv:2602.22610)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.models.dit import Block
from fedpriv.models.modulation import SOFT_BAND, TIGHTNESS, Bounds, Modulation, bound, project, unbound

OPERATORS = ["tanh", "soft", "hard", "ste"]
LIMIT = 1.5
REAL = st.floats(-1e6, 1e6)


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("size", [0.0, 1e-12, 0.1, 1.0, 1.5, 1.5001, 5.0, 1e6, 1e12])
def test_projection_stays_in_the_ball_and_contracts(size):
    direction = torch.randn(8, generator=_gen(), dtype=torch.float64)
    c = direction / direction.norm() * size
    out = project(c, LIMIT)
    assert out.norm() <= LIMIT * (1 + 1e-12)
    if size <= LIMIT * (1 - 1e-12):
        assert torch.equal(out, c)
    jacobian = torch.autograd.functional.jacobian(lambda x: project(x, LIMIT), c)
    assert isinstance(jacobian, torch.Tensor)
    expected = min(1.0, LIMIT / size) if size else 1.0
    assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(expected, rel=1e-6)


def test_projection_is_per_row_and_finite_in_float32():
    c = torch.tensor([[0.0, 0.0], [1e12, -1e12], [0.3, 0.4]], requires_grad=True)
    out = project(c, LIMIT)
    assert torch.equal(out[2], c[2]) and float(out[1].detach().norm()) == pytest.approx(LIMIT)
    out.sum().backward()
    assert c.grad is not None and torch.isfinite(c.grad).all()


@pytest.mark.parametrize("operator", OPERATORS)
@given(a=REAL, b=REAL, limit=st.floats(0.01, 100.0))
@settings(max_examples=100, deadline=None)
def test_operators_are_bounded_odd_monotone_and_lipschitz(operator, a, b, limit):
    x = _values(a, b, -a)
    fa, fb, minus = bound(x, limit, operator)
    assert max(abs(fa), abs(fb)) <= limit * (1 + 1e-12)  # attained, up to rounding
    assert fa == -minus
    slack = 1e-9 * (1 + limit)
    assert (fb - fa) * (1 if b >= a else -1) >= -slack
    assert abs(fb - fa) <= abs(b - a) + slack


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_the_identity_to_first_order_at_zero(operator):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    out = bound(x, LIMIT, operator)
    assert out.item() == 0.0
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert slope.item() == 1.0


@pytest.mark.parametrize(("operator", "inside", "outside"), [("hard", 1.0, 0.0), ("ste", 1.0, 1.0), ("soft", 1.0, 0.0)])
def test_slopes_inside_and_outside(operator, inside, outside):
    x = _values(0.5, -1.0, 2.0, -1e9).requires_grad_()
    (slope,) = torch.autograd.grad(bound(x, LIMIT, operator).sum(), x)
    assert slope.tolist() == [inside, inside, outside, outside]


def test_ste_is_the_clamp_exactly_even_far_out():
    x = torch.tensor([1e12, -1e12, 0.3, 2.0])
    assert torch.equal(bound(x, LIMIT, "ste"), x.clamp(-LIMIT, LIMIT))


def test_soft_is_smooth_at_both_ends_of_its_corner():
    band = SOFT_BAND * LIMIT
    for corner in (LIMIT - band, LIMIT + band):
        near = _values(corner - 1e-9, corner + 1e-9).requires_grad_()
        out = bound(near, LIMIT, "soft")
        (slope,) = torch.autograd.grad(out.sum(), near)
        assert abs(float(slope[1] - slope[0])) < 1e-7
        assert abs(float((out[1] - out[0]).detach())) < 3e-9
    assert float(bound(_values(LIMIT + band), LIMIT, "soft")) == pytest.approx(LIMIT)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 1.38, 1.45])
def test_unbound_inverts(operator, value):
    assert float(bound(_values(unbound(value, LIMIT, operator)), LIMIT, operator)) == pytest.approx(value, abs=1e-12)


def _block(gamma_mode: str, bounds: Bounds, *, shake: float = 0.0) -> Block:
    model = Scenario().override({"model.width": 8, "model.heads": 2, "model.gamma_mode": gamma_mode}).model
    block = Block(model, bounds=bounds, generator=_gen())
    g = _gen(1)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(shake * torch.randn(p.shape, generator=g))
    return block


DP_AWARE = Bounds(c_max=2.0, gamma_max=1.5, beta_max=1.5, alpha_max=1.0)


@pytest.mark.parametrize("gamma_mode", ["residual", "multiplicative"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("vanilla", [True, False])
def test_a_new_block_is_the_identity_and_not_dead(gamma_mode, operator, vanilla):
    bounds = Bounds() if vanilla else Bounds(**{**vars(DP_AWARE), "operator": operator})
    block = _block(gamma_mode, bounds)
    x, c = torch.randn(3, 5, 8, generator=_gen(2)), torch.randn(3, 8, generator=_gen(3))
    out = block(x, c)
    assert torch.equal(out, x)
    (out * torch.randn(out.shape, generator=_gen(4))).sum().backward()
    for part in block.modulation.values():
        grad = part.projection.weight.grad
        assert grad[16:].abs().max() > 1e-4  # the gate
        assert (grad[:16] == 0).all()  # scale and shift wait until the gate opens


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gamma_mode", ["residual", "multiplicative"])
def test_without_bounds_it_is_vanilla(operator, gamma_mode):
    far = Bounds(c_max=1e9, gamma_max=1e9, beta_max=1e9, alpha_max=1e9, operator=operator)
    vanilla, aware = _block(gamma_mode, Bounds()), _block(gamma_mode, far)
    g = _gen(1)
    with torch.no_grad():
        for p in vanilla.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    aware.load_state_dict(vanilla.state_dict())
    x, c = torch.randn(3, 5, 8, generator=_gen(2)), torch.randn(3, 8, generator=_gen(3))
    torch.testing.assert_close(aware(x, c), vanilla(x, c), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gamma_mode", ["residual", "multiplicative"])
def test_modulations_keep_their_bounds_whatever_the_weights(operator, gamma_mode):
    bounds = Bounds(**{**vars(DP_AWARE), "operator": operator})
    layer = Modulation(8, gate=True, bounds=bounds, gamma_mode=gamma_mode, generator=_gen())
    with torch.no_grad():
        layer.projection.weight.copy_(100 * torch.randn(24, 8, generator=_gen(1)))
    gamma, beta, alpha = layer(1e3 * torch.randn(4, 8, generator=_gen(2)))
    one = 1.0 if gamma_mode == "residual" else 0.0
    assert alpha is not None
    assert (gamma - one).abs().max() <= 1.5 + 1e-6 and beta.abs().max() <= 1.5 and alpha.abs().max() <= 1.0


def test_the_weight_gradient_is_an_outer_product_bounded_by_c_max():
    layer = Modulation(8, gate=True, bounds=DP_AWARE, gamma_mode="residual", generator=_gen())
    c = 50 * torch.randn(1, 8, generator=_gen(1))
    raw = layer.raw(c)
    raw.retain_grad()
    raw.square().sum().add((raw * torch.arange(24.0)).sum()).backward()
    assert raw.grad is not None and layer.projection.weight.grad is not None
    product = float(raw.grad.norm() * project(c, 2.0).norm())
    assert float(layer.projection.weight.grad.norm()) == pytest.approx(product, rel=1e-5)
    assert product <= float(raw.grad.norm()) * 2.0 * (1 + 1e-6)


def test_multiplicative_needs_room_for_its_start_value():
    with pytest.raises(InputError, match=r"gamma_max=0\.9 .* must exceed 1"):
        Modulation(8, gate=True, bounds=Bounds(gamma_max=0.9), gamma_mode="multiplicative", generator=_gen())


def test_tightness_scales_all_bounds():
    half = DP_AWARE.scaled(0.5)
    assert (half.c_max, half.gamma_max, half.beta_max, half.alpha_max) == (1.0, 0.75, 0.75, 0.5)
    assert Bounds().scaled(0.5) == Bounds() and math.isinf(Bounds().c_max)


REFERENCE = {"model.modulation": "dp-aware", "model.c_max": 4.0, "model.gamma_max": 2.0, "model.alpha_max": 0.5}


def _bounds(**changes: object) -> tuple[float, float, float, float]:
    bounds = Bounds.of(Scenario().override(REFERENCE | {f"model.{k}": v for k, v in changes.items()}).model)
    return bounds.c_max, bounds.gamma_max, bounds.beta_max, bounds.alpha_max


def test_components_are_bounded_one_by_one():
    assert _bounds() == (4.0, 2.0, 1.5, 0.5)
    assert _bounds(bounded="condition") == (4.0, math.inf, math.inf, math.inf)
    assert _bounds(bounded="modulation") == (math.inf, 2.0, 1.5, 0.5)
    assert _bounds(modulation="adaln-zero", bounded="condition") == (math.inf,) * 4


@pytest.mark.parametrize("tightness", TIGHTNESS)
def test_tightness_levels_are_those_of_the_paper(tightness):
    factor = {"loose": 1.0, "medium": 0.9, "tight": 0.75, "too-tight": 0.5}[tightness]  # tables 13 and 16
    assert _bounds(tightness=tightness) == pytest.approx([factor * b for b in (4.0, 2.0, 1.5, 0.5)])


@pytest.mark.parametrize("switched", ["condition", "modulation"])
def test_a_part_that_is_not_bounded_is_vanilla(switched):
    """What the switch leaves alone passes through bit for bit."""
    model = Scenario().override(REFERENCE | {"model.bounded": switched, "model.width": 8, "model.heads": 2}).model
    aware, vanilla = (
        Modulation(8, gate=True, bounds=b, gamma_mode="residual", generator=_gen())
        for b in (Bounds.of(model), Bounds())
    )
    with torch.no_grad():
        aware.projection.weight.copy_(0.1 * torch.randn(24, 8, generator=_gen(1)))
    vanilla.load_state_dict(aware.state_dict())
    far, near = 50 * torch.randn(4, 8, generator=_gen(2)), 0.01 * torch.randn(4, 8, generator=_gen(2))
    if switched == "condition":  # inside the ball nothing happens; outside, it does
        assert all(torch.equal(a, b) for a, b in zip(aware(near), vanilla(near), strict=True))
        assert not torch.equal(aware(far)[0], vanilla(far)[0])
        assert (aware(far)[2].abs() > 0.5).any()  # the gate is free
    else:
        assert torch.equal(aware.raw(far), vanilla.raw(far))
        assert (aware(far)[2].abs() <= 0.5).all()
