"""Rules that map per-sample gradient norms to factors: 0 <= norm * factor <= bound, for every norm.

A rule sees norms only. It cannot touch noise (whose size follows `bound`) or accounting. Common to all rules:

* unit: one row of a step's batch, that is, what the sampler draws (a tile of one meter's calendar);
* sensitivity of the sum of `factor * gradient` over a batch: `bound` when a row is removed, added or zeroed out,
  twice that when it is replaced (`sensitivity`). The accountant is told the relation, so the noise has standard
  deviation noise_multiplier * bound under each of them;
* event: one `GaussianDpEvent(noise_multiplier)` per step, wrapped by the sampler. No rule has a cost of its own,
  because each factor is a function of that row's own norm and of public constants;
* norms that are not finite get the factor 0: such a row leaves the sum unchanged.

In floating point the open bounds are attained, so compare with bound * (1 + 1e-5).
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self

import torch
from torch import Tensor

from fedpriv.config import CONTROLLER_NAMES, GRADIENT_RULE_NAMES
from fedpriv.errors import InputError

if TYPE_CHECKING:
    from dp_accounting import NeighboringRelation

S_MIN: Final = 1e-3  # least PSASC s; as s -> 0 the bound C / s goes to infinity


class Clipper(Protocol):
    """Maps per-sample gradient norms to factors: 0 <= norm * factor <= bound."""

    @property
    def name(self) -> str:
        """Its key in the registry."""
        ...

    @property
    def bound(self) -> float:
        """Supremum over all norms of norm * factor: what the noise is scaled to."""
        ...

    def factors(self, norms: Tensor) -> Tensor:
        """[B] norms -> [B] float64 factors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of the rules: `l2_clip_norm` is C of the papers; subclasses say what they make of it."""

    l2_clip_norm: float
    KEY: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _in_range(self.name, "bound", self.l2_clip_norm, low=0.0)

    @property
    def name(self) -> str:
        """Its key in the registry."""
        return self.KEY

    @property
    def bound(self) -> float:
        """Supremum over all norms of norm * factor."""
        return self.l2_clip_norm

    def factors(self, norms: Tensor) -> Tensor:
        """[B] norms -> [B] float64 factors; 0 where the norm is not a finite number >= 0."""
        x = norms.to(torch.float64)
        usable = x.isfinite() & (x >= 0)
        raw = self._factors(torch.where(usable, x, 0.0))
        return torch.where(usable & raw.isfinite(), raw, 0.0)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """L2 sensitivity of the summed contributions under `relation`."""
        return self.bound * (2.0 if relation.name == "REPLACE_ONE" else 1.0)

    def at(self, step: int) -> Self:
        """The rule in force at a step (counted over the whole run); only public schedules change."""
        del step
        return self

    def _factors(self, x: Tensor) -> Tensor:
        """Factors of finite norms x >= 0, float64."""
        raise TypeError(f"{type(self).__name__} states no formula")


@dataclass(frozen=True, kw_only=True)
class FlatClipper(Rule):
    """min(1, C / x). Abadi et al. 2016, arXiv:1607.00133.

    Proof note: x * min(1, C / x) = min(x, C) <= C. Sensitivity C (add, remove, zero-out).
    """

    KEY: ClassVar[str] = "flat"

    def _factors(self, x: Tensor) -> Tensor:
        return (self.l2_clip_norm / x).clamp(max=1.0)  # x = 0: min(inf, 1) = 1


@dataclass(frozen=True, kw_only=True)
class AutoVClipper(Rule):
    """C / x, and 0 at x = 0. AUTO-V of Bu et al. 2023, arXiv:2206.07136.

    Proof note: every non-zero row contributes exactly C. Sensitivity C. It has a "lazy region": symmetric
    gradients cancel whatever their size, which AUTO-S avoids.
    """

    KEY: ClassVar[str] = "auto-v"

    def _factors(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, self.l2_clip_norm / x, 0.0)


@dataclass(frozen=True, kw_only=True)
class AutoSClipper(Rule):
    """C / (x + gamma). AUTO-S of Bu et al. 2023, arXiv:2206.07136; gamma is a public constant.

    Proof note: x C / (x + gamma) < C because gamma > 0. Sensitivity C (supremum, not attained).
    """

    gamma: float = 0.01
    KEY: ClassVar[str] = "auto-s"

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range(self.name, "gamma", self.gamma, low=0.0)

    def _factors(self, x: Tensor) -> Tensor:
        return self.l2_clip_norm / (x + self.gamma)


@dataclass(frozen=True, kw_only=True)
class NsgdClipper(Rule):
    """C / (x + r). Normalised SGD, Yang et al. 2022, arXiv:2206.13033.

    Proof note: as AUTO-S with gamma = r: x C / (x + r) < C. Sensitivity C.
    """

    r: float = 0.01
    KEY: ClassVar[str] = "nsgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range(self.name, "r", self.r, low=0.0)

    def _factors(self, x: Tensor) -> Tensor:
        return self.l2_clip_norm / (x + self.r)


@dataclass(frozen=True, kw_only=True)
class PsacClipper(Rule):
    """C / (x + r / (x + r)). DP-PSAC of Xia et al. 2023, arXiv:2212.00328.

    Proof note: r > 0 makes the denominator exceed x, so x w(x) < C. Sensitivity C. w(0) = C, and w peaks at
    sqrt(r) - r with C / (2 sqrt(r) - r); x w(x) grows monotonically to C.
    """

    r: float = 0.1
    KEY: ClassVar[str] = "psac"

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range(self.name, "r", self.r, low=0.0)

    def _factors(self, x: Tensor) -> Tensor:
        return self.l2_clip_norm / (x + self.r / (x + self.r))


@dataclass(frozen=True, kw_only=True)
class PsascClipper(Rule):
    """C / (s x + r / (x + r)), bound C / s. The factor of DP-PSASC, arXiv:2411.03059, without its momentum.

    Proof note: the denominator exceeds s x, so x w(x) < C / s: the sensitivity is C / s and the noise must have
    standard deviation noise_multiplier * C / s. s < 1 therefore enlarges contributions and noise alike and
    changes nothing in privacy. r and s are public constants; s >= 0.001, since s -> 0 leaves no bound.
    """

    r: float = 0.1
    s: float = 0.5
    KEY: ClassVar[str] = "psasc"

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range(self.name, "r", self.r, low=0.0)
        _in_range(self.name, "s", self.s, low=S_MIN, closed=True)

    @property
    def bound(self) -> float:
        """C / s."""
        return self.l2_clip_norm / self.s

    def _factors(self, x: Tensor) -> Tensor:
        return self.l2_clip_norm / (self.s * x + self.r / (x + self.r))


@dataclass(frozen=True, kw_only=True)
class GlobalAdaptV2SClipper(Rule):
    """C / z where x <= z, else C / (x + w / (x + w)), z = z0 * decay^floor(step / every). arXiv:2312.02400.

    Proof note: below z the contribution is x C / z <= C, above it x C / (x + w / (x + w)) < C. Sensitivity C at
    every step. The threshold z follows a public schedule of the step alone, so it costs nothing. x w(x) jumps
    down at x = z (it is neither monotone nor continuous); the bound holds all the same.
    The paper lowers sigma on the same schedule; here every step is accounted by its own event.
    """

    z0: float = 1.0
    decay: float = 1.0
    every: int = 1
    w: float = 0.01
    step: int = 0
    KEY: ClassVar[str] = "global-adapt-v2s"

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range(self.name, "z0", self.z0, low=0.0)
        _in_range(self.name, "decay", self.decay, low=0.0, high=1.0)
        _in_range(self.name, "every", self.every, low=1, closed=True)
        _in_range(self.name, "w", self.w, low=0.0)
        _in_range(self.name, "step", self.step, low=0, closed=True)

    @property
    def z(self) -> float:
        """Threshold in force: public. Never below 1e-12, so that C / z stays finite."""
        return max(self.z0 * self.decay ** (self.step // self.every), 1e-12)

    def at(self, step: int) -> Self:
        """The rule in force at a step of the public schedule."""
        return dataclasses.replace(self, step=step)

    def _factors(self, x: Tensor) -> Tensor:
        tail = self.l2_clip_norm / (x + self.w / (x + self.w))
        return torch.where(x <= self.z, self.l2_clip_norm / self.z, tail)


CLIPPERS: Final[Mapping[str, type[Rule]]] = {
    rule.KEY: rule
    for rule in (
        FlatClipper,
        AutoVClipper,
        AutoSClipper,
        NsgdClipper,
        PsacClipper,
        PsascClipper,
        GlobalAdaptV2SClipper,
    )
}


def make_clipper(name: str, *, bound: float, **options: object) -> Rule:
    """The named rule with C = `bound`; see `CLIPPERS` for the names and each rule's fields for its options.

    The `bound` of the result is the rule's own: C / s for PSASC.

    Raises:
        InputError: unknown name or option, or a value out of range; nothing was started.
    """
    if name not in CLIPPERS:
        near = difflib.get_close_matches(name, list(CLIPPERS), n=1, cutoff=0.0)[0]
        known = ", ".join(CLIPPERS)
        if name in CONTROLLER_NAMES | GRADIENT_RULE_NAMES:
            part = "controller" if name in CONTROLLER_NAMES else "gradient_rule"
            raise InputError(
                f"{name!r} is not a rule of norms but a {part.replace('_', ' ')}: it works around one of {known}, as "
                f"privacy.{part}={name} (fedpriv.privacy.recipe). Nothing was started."
            )
        raise InputError(f"unknown clipper {name!r}; the nearest is {near!r} (known: {known}). Nothing was started.")
    kind = CLIPPERS[name]
    kinds = {f.name: f.type for f in dataclasses.fields(kind) if f.name not in ("l2_clip_norm", "step")}
    checked: dict[str, float | int] = {}
    for option, value in options.items():
        if option not in kinds:
            allowed = ", ".join(kinds) or "none"
            raise InputError(f"clipper {name!r} has no option {option!r}; it allows: {allowed}. Nothing was started.")
        checked[option] = _number(name, option, value, whole=kinds[option] == "int")
    return kind(l2_clip_norm=float(_number(name, "bound", bound)), **checked)  # pyright: ignore[reportArgumentType]


def _number(name: str, option: str, value: object, *, whole: bool = False) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"clipper {name!r}: {option}={value!r} is not a number. Nothing was started.")
    if whole:
        if value != int(value):
            raise InputError(f"clipper {name!r}: {option}={value!r} is not a whole number. Nothing was started.")
        return int(value)
    return float(value)


def _in_range(
    name: str, option: str, value: float, *, low: float, high: float = math.inf, closed: bool = False
) -> None:
    """Refuses a value outside (low, high], or [low, high] if closed; infinity and NaN always."""
    above = value >= low if closed else value > low
    if not (math.isfinite(value) and above and value <= high):
        interval = f"{'[' if closed else '('}{low:g}, {'inf)' if math.isinf(high) else f'{high:g}]'}"
        raise InputError(f"clipper {name!r}: {option}={value:g} is not in {interval}. Nothing was started.")
