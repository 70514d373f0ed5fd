"""Optimisers on flat vectors against torch's own."""

import pytest
import torch

from fedpriv.config import OptimizerConfig
from fedpriv.errors import InputError
from fedpriv.privacy.optimizers import make_optimizer

RATE = 0.05
THEIRS = {
    "sgd": lambda p, decay: torch.optim.SGD(p, lr=RATE, weight_decay=decay),
    "momentum": lambda p, decay: torch.optim.SGD(p, lr=RATE, momentum=0.8, weight_decay=decay),
    "adam": lambda p, decay: torch.optim.Adam(p, lr=RATE, betas=(0.8, 0.999), weight_decay=decay),
    "adamw": lambda p, decay: torch.optim.AdamW(p, lr=RATE, betas=(0.8, 0.999), weight_decay=decay),
}


def make(name, decay=0.0, unit=1.0):
    return make_optimizer(OptimizerConfig(name=name, learning_rate=RATE, momentum=0.8, weight_decay=decay), unit)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", list(THEIRS))
def test_steps_match_torch(name, decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, generator=generator, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    optimizer, ours, ourselves = THEIRS[name]([theirs], decay), start.clone(), make(name, decay)
    for _ in range(50):
        grad = torch.randn(500, generator=generator, dtype=torch.float64) + ours
        theirs.grad = grad.clone()
        optimizer.step()
        ours = ourselves.step(ours, grad)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", list(THEIRS))
def test_a_step_in_units_of_the_bound_does_not_depend_on_the_bound(name):
    generator = torch.Generator().manual_seed(0)
    one, two = make(name, unit=1.0), make(name, unit=4.0)
    x = y = torch.randn(50, generator=generator)
    for _ in range(5):
        grad = torch.randn(50, generator=generator)
        before = (x.clone(), grad.clone())
        x, y = one.step(x, grad), two.step(y, 4.0 * grad)
        assert torch.equal(before[1], grad)  # arguments are left alone
    torch.testing.assert_close(x, y)


def test_sgd_in_units_of_the_bound_is_a_smaller_learning_rate():
    grad = torch.tensor([2.0])
    assert make("sgd", unit=4.0).step(torch.zeros(1), grad).item() == pytest.approx(-RATE * 2.0 / 4.0)


@pytest.mark.parametrize("unit", [0.0, -1.0, float("nan"), float("inf")])
def test_the_unit_must_be_positive(unit):
    with pytest.raises(InputError, match="unit"):
        make("sgd", unit=unit)


# ---- LAMB ----------------------------------------------------------------------------------------


def test_lamb_scales_each_tensor_to_its_size():
    config = OptimizerConfig.model_validate({"name": "lamb", "learning_rate": 0.1})
    params = torch.tensor([3.0, 4.0, 0.0, 0.0])
    moved = make_optimizer(config, sizes=(2, 2)).step(params, torch.tensor([1.0, 1.0, 2.0, -2.0]))
    # The first bias-corrected Adam direction is the sign; trust: |(3, 4)| / |(1, 1)|, and 1 for a tensor of zeros.
    step = 0.1 * 5 / 2**0.5
    assert torch.allclose(moved, torch.tensor([3 - step, 4 - step, -0.1, 0.1]), atol=1e-5)


def test_lamb_does_not_depend_on_the_size_of_gradients():
    config = OptimizerConfig.model_validate({"name": "lamb", "learning_rate": 0.1, "weight_decay": 0.1})
    grads = [torch.randn(6, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    results = []
    for unit in (1.0, 1e-3):
        optimizer, params = make_optimizer(config, unit, (4, 2)), torch.arange(6.0)
        for grad in grads:
            params = optimizer.step(params, grad)
        results.append(params)
    assert torch.allclose(results[0], results[1], rtol=1e-4)
