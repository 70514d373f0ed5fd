"""Optimisers on released gradients: post-processing, so they cost no privacy.

All parameters are one flat vector [P], so that a step is a handful of tensor operations. Each follows torch's own
formula (tests hold them to it). The gradient is divided by `unit` first: with the mechanism's bound as unit, a
learning rate means the same for every clipping rule.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedpriv.config import OptimizerConfig
from fedpriv.errors import InputError


class Optimizer(Protocol):
    """Turns a released gradient into new parameters; keeps its own state between steps."""

    def step(self, params: Tensor, grad: Tensor) -> Tensor:
        """[P], [P] -> [P] new parameters; the arguments are left alone."""
        ...


class Sgd:
    """params - learning_rate * (grad / unit + weight_decay * params)."""

    def __init__(self, config: OptimizerConfig, unit: float) -> None:
        self._config, self._unit = config, unit

    def step(self, params: Tensor, grad: Tensor) -> Tensor:
        """See `Optimizer.step`."""
        return params - _rate(self._config) * _scaled(params, grad, self._unit, self._config.weight_decay)


class Momentum:
    """Heavy ball, as torch.optim.SGD: buffer = momentum * buffer + g; params - learning_rate * buffer."""

    def __init__(self, config: OptimizerConfig, unit: float) -> None:
        self._config, self._unit = config, unit
        self._buffer: Tensor | None = None

    def step(self, params: Tensor, grad: Tensor) -> Tensor:
        """See `Optimizer.step`."""
        g = _scaled(params, grad, self._unit, self._config.weight_decay)
        self._buffer = g.clone() if self._buffer is None else self._buffer.mul_(self._config.momentum).add_(g)
        return params - _rate(self._config) * self._buffer


class Adam:
    """Kingma and Ba 2015, arXiv:1412.6980; decoupled weight decay (arXiv:1711.05101) if `decoupled`.

    beta1 is `momentum` of the configuration (0.9 by default), beta2 = 0.999, eps = 1e-8.
    """

    BETA2 = 0.999
    EPS = 1e-8

    def __init__(self, config: OptimizerConfig, unit: float, *, decoupled: bool = False) -> None:
        self._config, self._unit, self._decoupled = config, unit, decoupled
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self._count = 0

    def step(self, params: Tensor, grad: Tensor) -> Tensor:
        """See `Optimizer.step`."""
        rate, decay, beta1 = _rate(self._config), self._config.weight_decay, self._config.momentum
        g = _scaled(params, grad, self._unit, 0.0 if self._decoupled else decay)
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(g), torch.zeros_like(g)
        self._count += 1
        self._mean.lerp_(g, 1 - beta1)
        self._square.mul_(self.BETA2).addcmul_(g, g, value=1 - self.BETA2)
        root = self._square.sqrt().div_(math.sqrt(1 - self.BETA2**self._count)).add_(self.EPS)
        kept = params * (1 - rate * decay) if self._decoupled else params
        return torch.addcdiv(kept, self._mean, root, value=-rate / (1 - beta1**self._count))


class Lamb:
    """LAMB, You et al. 2020, arXiv:1904.00962: Adam's direction, scaled per parameter tensor to the size of its values.

    update = m / (sqrt(v) + eps) + weight_decay * params (bias-corrected m and v, eps = 1e-6); each tensor moves by
    learning_rate * (|tensor| / |update|) * update, the trust ratio being 1 where either norm is 0 and at most 10.
    """

    BETA2 = 0.999
    EPS = 1e-6
    MOST = 10.0  # of the trust ratio: the papers' phi clips it, too

    def __init__(self, config: OptimizerConfig, unit: float, sizes: Sequence[int] = ()) -> None:
        self._config, self._unit, self._sizes = config, unit, list(sizes)
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self._count = 0

    def step(self, params: Tensor, grad: Tensor) -> Tensor:
        """See `Optimizer.step`."""
        beta1 = self._config.momentum
        g = _scaled(params, grad, self._unit, 0.0)
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(g), torch.zeros_like(g)
        self._count += 1
        self._mean.lerp_(g, 1 - beta1)
        self._square.mul_(self.BETA2).addcmul_(g, g, value=1 - self.BETA2)
        mean = self._mean / (1 - beta1**self._count)
        root = (self._square / (1 - self.BETA2**self._count)).sqrt_().add_(self.EPS)
        update = torch.addcdiv(self._config.weight_decay * params, mean, root)
        sizes = self._sizes or [params.numel()]
        return torch.cat([self._moved(p, u) for p, u in zip(params.split(sizes), update.split(sizes), strict=True)])

    def _moved(self, params: Tensor, update: Tensor) -> Tensor:
        size, move = float(params.norm()), float(update.norm())
        trust = min(size / move, self.MOST) if size > 0 and move > 0 else 1.0
        return params - _rate(self._config) * trust * update


def _rate(config: OptimizerConfig) -> float:
    if config.learning_rate is None:
        raise InputError("optimizer.learning_rate is not set; resolve the scenario first. Nothing was trained.")
    return config.learning_rate


def _scaled(params: Tensor, grad: Tensor, unit: float, weight_decay: float) -> Tensor:
    g = grad / unit
    return g.add(params, alpha=weight_decay) if weight_decay else g


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, float], Optimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "adam": Adam,
    "adamw": lambda config, unit: Adam(config, unit, decoupled=True),
    "lamb": Lamb,
}


def make_optimizer(config: OptimizerConfig, unit: float = 1.0, sizes: Sequence[int] = ()) -> Optimizer:
    """A fresh optimiser. `unit` divides every gradient: the mechanism's bound for normalize_by_bound, else 1.

    `sizes` are the entries of each parameter tensor, for rules that scale by tensor (LAMB); empty: all as one.

    Raises:
        InputError: a unit that is not positive.
    """
    if not (math.isfinite(unit) and unit > 0):
        raise InputError(f"unit={unit} of the learning rate is not a finite number above 0; nothing was started.")
    if config.name == "lamb":
        return Lamb(config, unit, sizes)
    return OPTIMIZERS[config.name](config, unit)
