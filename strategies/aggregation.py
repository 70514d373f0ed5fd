"""From the clients' updates to the next model: pure functions, state as plain arrays.

Everything works on differences (`update - model`, float64, added in the order given: the partition order), so the
same updates give the same model bit for bit on every engine. All of it is post-processing of releases: it costs
no privacy. Shapes: K clients, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpriv.config import Scalar, StrategyConfig
from fedpriv.errors import InputError

Flat = NDArray[np.float32]
Delta = NDArray[np.float64]
State = Mapping[str, NDArray[Any]]


_BLOCK = 16_384  # entries summed at a time: they stay in the cache over all clients


class ServerOptimizer(Protocol):
    """Turns the mean difference of a round into the next model."""

    def init(self, num_parameters: int) -> dict[str, NDArray[Any]]:
        """State before the first round; arrays only, so that a checkpoint can hold it."""
        ...

    def step(self, model: Flat, delta: Delta, state: State) -> tuple[Flat, dict[str, NDArray[Any]]]:
        """[P] model and [P] mean difference -> [P] next model, next state. Changes neither argument."""
        ...


def mean_delta(model: Flat, updates: Sequence[Flat], weights: Sequence[float] | None = None) -> Delta:
    """[P] float64: weighted mean of `update - model`, added in the given order.

    Args:
        model: [P] what the clients started from.
        updates: K arrays [P].
        weights: K positive *public* numbers; None: equal.
    """
    if not updates:
        raise ValueError("mean of no updates")
    weights = [1.0] * len(updates) if weights is None else list(weights)
    if len(weights) != len(updates) or any(not 0 < w < math.inf for w in weights):
        raise ValueError(f"{len(weights)} weights for {len(updates)} updates; all must be positive")
    total = np.zeros(model.shape, dtype=np.float64)
    difference = np.empty(_BLOCK, dtype=np.float64)
    for begin in range(0, model.size, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        start, sums = model[part], total[part]
        out = difference[: sums.size]
        for update, weight in zip(updates, weights, strict=True):
            np.subtract(update[part], start, out=out, dtype=np.float64)
            if weight != 1.0:
                out *= weight
            sums += out
    total /= math.fsum(weights)
    return total


def moving_average(average: NDArray[np.float64] | None, model: Flat, decay: float, counted: int) -> NDArray[np.float64]:
    """[P] float64: decay * average + (1 - decay) * model, after `counted` earlier models; None: the first one.

    The decay is at most (1 + n) / (10 + n) for the n-th model, so that early models are forgotten soon.
    """
    if average is None:
        return model.astype(np.float64)
    decay = min(decay, (1 + counted) / (10 + counted))
    return decay * average + (1.0 - decay) * model


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """model + server_learning_rate * delta. McMahan et al. 2017, arXiv:1602.05629."""

    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "server_learning_rate")

    def init(self, num_parameters: int) -> dict[str, NDArray[Any]]:
        """Nothing to remember."""
        return {}

    def step(self, model: Flat, delta: Delta, state: State) -> tuple[Flat, dict[str, NDArray[Any]]]:
        """See the class."""
        return _moved(model, self.server_learning_rate * delta), {}


@dataclass(frozen=True, kw_only=True)
class FedAvgM:
    """v = momentum * v + delta; model + server_learning_rate * v. Hsu et al. 2019, arXiv:1909.06335."""

    server_learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _positive(self, "server_learning_rate")
        _fraction(self, "momentum")

    def init(self, num_parameters: int) -> dict[str, NDArray[Any]]:
        """velocity: [P] float64."""
        return {"velocity": np.zeros(num_parameters, dtype=np.float64)}

    def step(self, model: Flat, delta: Delta, state: State) -> tuple[Flat, dict[str, NDArray[Any]]]:
        """See the class."""
        velocity = self.momentum * state["velocity"] + delta
        return _moved(model, self.server_learning_rate * velocity), {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """m = b1 m + (1 - b1) d; v = b2 v + (1 - b2) d^2; model + lr * m / (sqrt(v) + tau); v starts at tau^2.

    Reddi et al. 2021, arXiv:2003.00295, algorithm 2 (no bias correction, as there).
    """

    server_learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self, "server_learning_rate", "tau")
        _fraction(self, "beta1", "beta2")

    def init(self, num_parameters: int) -> dict[str, NDArray[Any]]:
        """first, second: [P] float64 moments."""
        return {
            "first": np.zeros(num_parameters, dtype=np.float64),
            "second": np.full(num_parameters, self.tau**2, dtype=np.float64),
        }

    def step(self, model: Flat, delta: Delta, state: State) -> tuple[Flat, dict[str, NDArray[Any]]]:
        """See the class."""
        first = self.beta1 * state["first"] + (1.0 - self.beta1) * delta
        second = self.beta2 * state["second"] + (1.0 - self.beta2) * np.square(delta)
        change = self.server_learning_rate * first / (np.sqrt(second) + self.tau)
        return _moved(model, change), {"first": first, "second": second}


OPTIMIZERS: dict[str, type[FedAvg] | type[FedAvgM] | type[FedAdam]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
}


def make_optimizer(name: str, options: Mapping[str, Scalar]) -> ServerOptimizer:
    """The server optimiser `name` with its options.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise InputError(f"strategy.name={name!r} is not known; choose one of {known}. Nothing was started.")
    kind = OPTIMIZERS[name]
    allowed = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in allowed:
            raise InputError(
                f"strategy.options.{key} is not an option of {name}; it has {', '.join(allowed)} "
                "(and weights). Nothing was started."
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"strategy.options.{key}={value!r} is not a number. Nothing was started.")
        values[key] = float(value)
    return kind(**values)


def public_weights(text: str) -> dict[str, float]:
    """`NAME:2;OTHER:1` as a dictionary; the empty string or `equal` means equal weights.

    The numbers are part of the public scenario. Weights by counts of private rows would be a release.

    Raises:
        InputError: not of this form, or a weight that is not positive.
    """
    if text in ("", "equal"):
        return {}
    weights: dict[str, float] = {}
    for part in text.split(";"):
        name, _, number = part.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name.strip() or not 0 < value < math.inf:
            raise InputError(
                f"strategy.options.weights: {part!r} is not NAME:NUMBER with a positive number "
                "(such as A:2;B:1). Nothing was started."
            )
        weights[name.strip()] = value
    return weights


def _moved(model: Flat, change: Delta) -> Flat:
    with np.errstate(over="ignore"):  # infinities are found and reported by whoever keeps the model
        return (model + change).astype(np.float32)  # float64 until the last step


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 < value < math.inf:
            raise InputError(f"strategy.options.{name}={value:g} is not positive; nothing was started.")


def _fraction(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value < 1:
            raise InputError(f"strategy.options.{name}={value:g} is not in [0, 1); nothing was started.")


def make_strategy(config: StrategyConfig) -> tuple[ServerOptimizer, dict[str, float]]:
    """The server optimiser and the public weights (empty: equal) that a scenario names.

    Raises:
        InputError: unknown name or option, or a value out of range.
    """
    options = dict(config.options)
    weights = public_weights(str(options.pop("weights", "")))
    return make_optimizer(config.name, options), weights
