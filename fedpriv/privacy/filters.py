"""Filters after release: smoothing over coordinates or over steps. Post-processing, so none costs privacy.

Proof note, for all: the input is a released gradient, the state a function of released gradients; no private row is
read, so unit, relation, sensitivity and event are those of the mechanism before. Unlike an optimiser's momentum,
which begins anew with every round, a filter's memory travels with the model over the whole run.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import State, read, scalar


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Base: turns a released gradient [P] and its memory into the next gradient and memory."""

    KEY: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """Its key in the registry."""
        return self.KEY

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Memory before the first step."""
        del num_parameters
        return {}

    def apply(self, grad: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """[P] -> [P], next memory; `sizes` are the entries of each trained parameter."""
        raise TypeError(f"{type(self).__name__} states no formula")


@dataclass(frozen=True, kw_only=True)
class LaplacianFilter(Filter):
    """Laplacian smoothing, DP-LSSGD: solves A out = grad, A = I - sigma L, L the circulant second difference.

    By FFT, with the gain 1 / (1 + 2 sigma (1 - cos w_k)) <= 1 at frequency w_k; a constant passes unchanged and the
    norm never grows. arXiv:1906.12056 and, federated, arXiv:2005.00218.

    Attributes:
        sigma: strength; 0 changes nothing.
        whole: smooth the whole vector at once instead of each parameter on its own.
    """

    sigma: float = 1.0
    whole: bool = False
    KEY: ClassVar[str] = "laplacian"

    def __post_init__(self) -> None:
        in_range(self.name, "sigma", self.sigma, low=0.0, high=1e6, closed="low")

    def apply(self, grad: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Filter.apply`."""
        parts = [grad] if self.whole else list(grad.split(list(sizes)))
        return torch.cat([self._smooth(part) for part in parts]), dict(state)

    def _smooth(self, x: Tensor) -> Tensor:
        n = x.numel()
        if n < 3 or self.sigma == 0:  # a circle of one or two points has no second difference worth the name
            return x
        wave = torch.arange(n // 2 + 1, dtype=torch.float64, device=x.device) * (2 * torch.pi / n)
        spectrum = torch.fft.rfft(x.to(torch.float64)) / (1 + 2 * self.sigma * (1 - wave.cos()))
        return torch.fft.irfft(spectrum, n=n).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class DopplerFilter(Filter):
    """A first-order low-pass filter over steps, DOPPLER: m_t = -a1 m_{t-1} + b0 g_t + b1 g_{t-1}. arXiv:2408.13460.

    Unit gain for constants: -a1 + b0 + b1 = 1. Divided by its own answer to a constant 1 from the first step, so
    the first output is the first gradient (no bias towards 0).
    """

    a1: float = -0.9
    b0: float = 0.1
    b1: float = 0.0
    KEY: ClassVar[str] = "doppler"

    def __post_init__(self) -> None:
        in_range(self.name, "a1", self.a1, low=-1.0, high=1.0)
        in_range(self.name, "b0", self.b0, low=0.0, high=2.0)
        in_range(self.name, "b1", self.b1, low=0.0, high=2.0, closed="low")
        if abs(-self.a1 + self.b0 + self.b1 - 1.0) > 1e-9:
            raise InputError(
                f"doppler: -a1 + b0 + b1 = {-self.a1 + self.b0 + self.b1:g} is not 1, so a constant gradient would "
                "change size. Nothing was started."
            )

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Memory [P], weight [1] and steps [1]; last [P] where b1 is used."""
        state = {"weight": scalar(0.0), "seen": scalar(0.0), "memory": torch.zeros(num_parameters)}
        return {**state, "last": torch.zeros(num_parameters)} if self.b1 else state

    def apply(self, grad: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Filter.apply`."""
        del sizes
        seen = read(state["seen"], 0.0, 1.0)
        memory = self.b0 * grad - self.a1 * state["memory"]
        weight = self.b0 - self.a1 * read(state["weight"], 0.0, 2.0)
        after: dict[str, Tensor] = {}
        if self.b1:
            memory, weight = memory + self.b1 * state["last"], weight + self.b1 * seen
            after["last"] = grad.clone()
        after |= {"weight": scalar(weight), "seen": torch.ones_like(state["seen"]), "memory": memory}
        return memory / max(weight, 1e-3), after


@dataclass(frozen=True, kw_only=True)
class MomentumFilter(Filter):
    """Heavy ball over the whole run: m = beta m + g."""

    beta: float = 0.9
    KEY: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        in_range(self.name, "beta", self.beta, low=0.0, high=1.0, closed="low")

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Memory [P]."""
        return {"memory": torch.zeros(num_parameters)}

    def apply(self, grad: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Filter.apply`."""
        del sizes
        memory = self.beta * state["memory"] + grad
        return memory, {"memory": memory}


@dataclass(frozen=True, kw_only=True)
class EmaFilter(Filter):
    """Exponential moving average over the whole run, m = beta m + (1 - beta) g, divided by the sum of its weights."""

    beta: float = 0.9
    KEY: ClassVar[str] = "ema"

    def __post_init__(self) -> None:
        in_range(self.name, "beta", self.beta, low=0.0, high=1.0, closed="low")

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Weight [1], memory [P]."""
        return {"weight": scalar(0.0), "memory": torch.zeros(num_parameters)}

    def apply(self, grad: Tensor, state: State, sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Filter.apply`."""
        del sizes
        memory = self.beta * state["memory"] + (1 - self.beta) * grad
        weight = self.beta * read(state["weight"], 0.0, 1.0) + (1 - self.beta)
        return memory / weight, {"weight": scalar(weight), "memory": memory}


FILTERS: Final[Mapping[str, type[Filter]]] = {
    kind.KEY: kind for kind in (LaplacianFilter, DopplerFilter, MomentumFilter, EmaFilter)
}
