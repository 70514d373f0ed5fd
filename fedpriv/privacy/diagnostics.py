"""Gradient diagnostics: norms per sample, tails, how much clipping takes away and in which direction.

Definitions of arXiv:2602.22610 with the bias vector as our own addition. Of a batch of B rows with gradients g_i, of
which g_i^cond is the part on the way from the condition to the modulation and g_i^other the rest:

    norms          |g_i|, |g_i^cond|, |g_i^other|, before clipping;  |g_i|^2 = |g_i^cond|^2 + |g_i^other|^2
    severity       eta_i = min(1, C / |g_i|);  p_clip = share of rows with |g_i| > C = share with eta_i < 1
    bias           b = mean_i (1 - eta_i) g_i;  distortion = |b| / |mean_i g_i|
    cosine         between mean_i g_i and mean_i eta_i g_i; and of the same with the clipping rule's own factors

Everything here is a function of raw gradients, without noise: NOT PRIVATE. It may be computed of published or generated
data; of private readings inside a simulation only, and then it must not leave it. Nothing on the wire carries it.

Any gradient engine will do: sums come from three calls of `clipped_sum` (with factors 1, eta, and the rule's own), the
norms of the conditioning from one more on an engine that sees these parameters alone. About four times a step's cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpriv.config import Scenario
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper, FlatClipper
from fedpriv.privacy.engines import LossFn, make_engine
from fedpriv.privacy.engines.base import trainable

Values = NDArray[np.float64]
PUBLISHED = frozenset({"synthetic", "eia930", "pjm", "ett", "sgsc"})
"""Sources whose readings anybody can have: generated, or published by their owners."""
TAILS = (0.95, 0.99)
SEVERITIES = (0.10, 0.50, 0.90, 0.99)


def diagnostics_mark(scenario: Scenario) -> str:
    """What stands in every file, on the page and in the label of a run that these numbers were taken of."""
    if scenario.data.source in PUBLISHED:
        return (
            "simulation only: raw gradient norms of published data, without noise; no promise covers them, and of "
            "private readings they would not be releasable"
        )
    return "NOT RELEASABLE (simulation only): raw gradient norms of private readings, without noise; no promise at all"


@dataclass(frozen=True)
class Snapshot:
    """One batch of one client at one round. Sensitive: see the module's text.

    Attributes:
        norms, conditioning: [B] of whole rows and of their conditioning part; rows that are not finite are left out.
        bound: C.
        mean_norm, bias_norm: norms of the mean gradient and of the bias vector; NaN for a batch without rows.
        cosine, cosine_rule: of the mean with the mean clipped flat, and clipped by the rule in force.
        dropped: rows whose gradient was not finite.
    """

    norms: Values = field(repr=False)
    conditioning: Values = field(repr=False)
    bound: float
    mean_norm: float
    bias_norm: float
    cosine: float
    cosine_rule: float
    dropped: int = 0

    @property
    def other(self) -> Values:
        """[B] norms of the parameters that are not on the conditioning path."""
        return np.sqrt(np.maximum(np.square(self.norms) - np.square(self.conditioning), 0.0))

    @property
    def severity(self) -> Values:
        """[B] eta."""
        return severity(self.norms, self.bound)

    @property
    def distortion(self) -> float:
        """|b| / |mean gradient|; NaN where the mean is zero."""
        return self.bias_norm / self.mean_norm if self.mean_norm > 0 else math.nan


def severity(norms: Values, bound: float) -> Values:
    """[n] min(1, C / norm); 1 for a gradient that is zero."""
    return bound / np.maximum(norms, bound)


def distribution(values: Values) -> tuple[Values, Values]:
    """([n] ascending values, [n] share of values at most so large): the ECDF; one minus it is the CCDF."""
    ordered = np.sort(values)
    return ordered, np.arange(1, len(ordered) + 1) / max(len(ordered), 1)


def summary(snapshots: Iterable[Snapshot]) -> dict[str, float]:
    """Statistics over all samples of all snapshots; empty where there are none.

    total-p95, total-p99, cond-..., other-...; p-clip; eta-mean, eta-p10, -p50, -p90, -p99; and the means over
    snapshots of distortion, cosine and cosine-rule.
    """
    many = [one for one in snapshots if len(one.norms)]
    if not many:
        return {}
    found: dict[str, float] = {"samples": float(sum(len(one.norms) for one in many))}
    groups: Mapping[str, list[Values]] = {
        "total": [one.norms for one in many],
        "cond": [one.conditioning for one in many],
        "other": [one.other for one in many],
    }
    for name, parts in groups.items():
        found |= {f"{name}-p{q * 100:g}": float(np.quantile(np.concatenate(parts), q)) for q in TAILS}
    eta = np.concatenate([one.severity for one in many])
    found["p-clip"] = float(np.mean(np.concatenate([one.norms > one.bound for one in many])))
    found["eta-mean"] = float(eta.mean())
    found |= {f"eta-p{q * 100:g}": float(np.quantile(eta, q)) for q in SEVERITIES}
    for name, values in (
        ("distortion", [one.distortion for one in many]),
        ("cosine", [one.cosine for one in many]),
        ("cosine-rule", [one.cosine_rule for one in many]),
    ):
        known = [value for value in values if math.isfinite(value)]
        if known:
            found[name] = float(np.mean(known))
    return found


class GradientProbe:
    """Takes snapshots of one model and loss with any gradient engine.

    Args:
        model: its parameters that require a gradient when the probe is made take part.
        loss: one loss per row.
        conditioning: says of a parameter's name whether it belongs to the conditioning.
        engine, microbatch: as in `make_engine`.
    """

    def __init__(
        self, model: nn.Module, loss: LossFn, *, conditioning: Callable[[str], bool], engine: str, microbatch: int = 0
    ) -> None:
        self._trained = [p for _, p in trainable(model)]
        inside = [p for name, p in trainable(model) if conditioning(name)]
        self._rest = [p for name, p in trainable(model) if not conditioning(name)] if inside else []
        self._engine = make_engine(engine, model, loss, microbatch=microbatch)
        self._all_inside = bool(inside) and not self._rest
        self._inner = None
        if inside and self._rest:
            with self._conditioning_alone():
                self._inner = make_engine(engine, model, loss, microbatch=microbatch)

    def snapshot(self, examples: Examples, draws: Draws, clipper: Clipper, *, bound: float) -> Snapshot:
        """The diagnostics of a batch under `clipper`, severities at C = `bound`. Reads raw gradients."""
        if len(examples) == 0:
            return Snapshot(np.zeros(0), np.zeros(0), bound, math.nan, math.nan, math.nan, math.nan)
        whole = self._engine.clipped_sum(examples, draws, _Whole())
        flat = self._engine.clipped_sum(examples, draws, FlatClipper(l2_clip_norm=bound))
        own = flat if isinstance(clipper, FlatClipper) else self._engine.clipped_sum(examples, draws, clipper)
        assert whole.norms is not None
        norms = whole.norms.cpu().numpy().astype(np.float64)
        conditioning = norms if self._all_inside else np.zeros_like(norms)
        if self._inner is not None:
            with self._conditioning_alone():
                inner = self._inner.clipped_sum(examples, draws, _Whole()).norms
            assert inner is not None
            conditioning = inner.cpu().numpy().astype(np.float64)
        kept = np.isfinite(norms) & np.isfinite(conditioning)
        return Snapshot(
            norms=norms[kept],
            conditioning=conditioning[kept],
            bound=bound,
            mean_norm=_norm(whole.total) / len(norms),
            bias_norm=_norm(whole.total.double() - flat.total.double()) / len(norms),
            cosine=_cosine(whole.total, flat.total),
            cosine_rule=_cosine(whole.total, own.total),
            dropped=int((~kept).sum()),
        )

    @contextmanager
    def _conditioning_alone(self) -> Generator[None]:
        for parameter in self._rest:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._rest:
                parameter.requires_grad_(True)


@dataclass(frozen=True)
class _Whole:
    """No clipping: for diagnostics alone. No noise could cover it, and it says so by its bound."""

    name: str = "none"
    bound: float = math.inf

    def factors(self, norms: Tensor) -> Tensor:
        """[B] ones; 0 where the norm is not finite."""
        return norms.isfinite().to(torch.float64)


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(torch.dot(vector.double(), vector.double())))


def _cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors; NaN where one of them is zero."""
    lengths = _norm(a) * _norm(b)
    return float(torch.dot(a.double(), b.double())) / lengths if lengths > 0 else math.nan
