"""Filters after release: gain, first step, memory."""

import pytest
import torch

from fedpriv.errors import InputError
from fedpriv.privacy.filters import FILTERS, DopplerFilter, EmaFilter, LaplacianFilter, MomentumFilter


def vector(size=17, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def run(filter_, grads):
    state, out = filter_.start(len(grads[0])), []
    for grad in grads:
        smooth, state = filter_.apply(grad, state, (len(grad),))
        out.append(smooth)
    return out


def smoothed_back(x, sigma):
    """A x, with A = I - sigma L and L the circulant second difference."""
    return x - sigma * (x.roll(1) - 2 * x + x.roll(-1))


@pytest.mark.parametrize("size", [3, 16, 17, 1000])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.0])
def test_laplacian_solves_its_equation(size, sigma):
    x = vector(size)
    out, _ = LaplacianFilter(sigma=sigma).apply(x, {}, (size,))
    assert torch.allclose(smoothed_back(out, sigma), x, atol=1e-5)
    assert out.norm() <= x.norm() * (1 + 1e-6)
    assert torch.allclose(LaplacianFilter(sigma=sigma).apply(torch.ones(size), {}, (size,))[0], torch.ones(size))


def test_laplacian_smooths_each_tensor_or_the_whole():
    x = vector(12)
    parts, _ = LaplacianFilter().apply(x, {}, (5, 1, 2, 4))
    assert torch.allclose(parts[:5], LaplacianFilter().apply(x[:5], {}, (5,))[0])
    assert torch.equal(parts[5:8], x[5:8])  # one and two entries have no second difference
    whole, _ = LaplacianFilter(whole=True).apply(x, {}, (5, 1, 2, 4))
    assert torch.allclose(smoothed_back(whole, 1.0), x, atol=1e-6) and not torch.allclose(whole, parts)


@pytest.mark.parametrize("b1", [0.0, 0.05])
def test_doppler_passes_constants_and_begins_without_bias(b1):
    filter_ = DopplerFilter(a1=-0.9, b0=0.1 - b1, b1=b1)
    x = vector()
    for out in run(filter_, [x] * 40):
        assert torch.allclose(out, x, atol=1e-5)
    first, second = run(filter_, [x, vector(seed=2)])
    assert torch.allclose(first, x, atol=1e-6) and not torch.allclose(second, x)


def test_doppler_by_hand():
    x, y = torch.tensor([1.0]), torch.tensor([3.0])
    out = run(DopplerFilter(), [x, y])
    assert float(out[1]) == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 3) / (0.9 * 0.1 + 0.1))


def test_doppler_refuses_a_gain_that_is_not_one():
    with pytest.raises(InputError, match="is not 1"):
        DopplerFilter(b0=0.2)


def test_momentum_and_average_by_hand():
    x, y = torch.tensor([1.0]), torch.tensor([3.0])
    assert [float(v) for v in run(MomentumFilter(beta=0.5), [x, y])] == [1.0, 3.5]
    assert [float(v) for v in run(EmaFilter(beta=0.5), [x, y])] == pytest.approx([1.0, (0.25 + 1.5) / 0.75])


@pytest.mark.parametrize("name", list(FILTERS))
def test_memory_keeps_its_shape_and_the_input_is_left_alone(name):
    filter_, x = FILTERS[name](), vector()
    kept = x.clone()
    state = filter_.start(17)
    _, after = filter_.apply(x, state, (17,))
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in state.items()}
    assert torch.equal(x, kept) and filter_.name == name
