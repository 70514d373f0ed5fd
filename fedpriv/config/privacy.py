"""What is promised, and the mechanism that keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedpriv.config.values import MaybeFloat, Options, Scalar, Section

CONTROLLER_NAMES = frozenset({"quantile", "dc-sgd-p", "dc-sgd-e", "dynamic", "global-adapt"})
GRADIENT_RULE_NAMES = frozenset({"bam", "sparsify", "disk", "error-feedback", "group-wise", "inner-momentum"})


@dataclass(frozen=True, kw_only=True)
class RuleChoice:
    """The four parts of a private step by name, each with its options; `none` where there is none."""

    clipper: str
    clipper_options: Mapping[str, Scalar]
    controller: str
    controller_options: Mapping[str, Scalar]
    gradient_rule: str
    gradient_rule_options: Mapping[str, Scalar]
    filter: str
    filter_options: Mapping[str, Scalar]


class PrivacyConfig(Section):
    """What is promised, and the mechanism that keeps it."""

    enabled: bool = True
    unit: Literal["reading", "day", "week"] = "reading"
    relation: Literal["zero-out", "replace-one", "add-remove"] = "zero-out"
    epsilon: float = Field(8.0, gt=0, le=1e6, description="budget of every client over the whole run")
    delta: float = Field(1e-5, gt=0, lt=1)
    noise_multiplier: MaybeFloat = Field(None, description="empty: the least that keeps the budget")
    clipper: str = Field(
        "auto-s", description="rule of norms; the name of a controller or gradient rule means flat clipping with it"
    )
    clipper_options: Options = Field({}, description="such as r=0.1,s=0.5")
    controller: Literal["none", "quantile", "dc-sgd-p", "dc-sgd-e", "dynamic", "global-adapt"] = Field(
        "none", description="what sets the bound of each step, from released statistics or a public schedule"
    )
    controller_options: Options = Field({}, description="such as gamma=0.5,eta=0.2; see docs/clipping.md")
    gradient_rule: Literal["none", "bam", "sparsify", "disk", "error-feedback", "group-wise", "inner-momentum"] = Field(
        "none", description="what is computed of a row before it is clipped"
    )
    gradient_rule_options: Options = Field({}, description="such as r=0.05,alpha=0.8; see docs/clipping.md")
    filter: Literal["none", "laplacian", "doppler", "momentum", "ema"] = Field(
        "none", description="smoothing of released gradients, over coordinates or over the steps of the whole run"
    )
    filter_options: Options = Field({}, description="such as sigma=1.0; see docs/clipping.md")
    bound: float = Field(1.0, gt=0, description="C, before a rule's own factor")
    normalize_by_bound: bool = Field(True, description="learning rate in units of the stated bound")
    sampling_prob: float = Field(0.467, gt=0, le=1, description="chance of each tile to enter a step")
    sampler: Literal["random-phase-tiling"] = "random-phase-tiling"
    accountant: Literal["pld", "rdp"] = Field(
        "pld",
        description="pld: a contract of steps, exact; rdp: a Renyi filter of one fixed order, which admits whatever "
        "fits and costs more",
    )
    noise: Literal["gaussian", "discrete-gaussian"] = Field(
        "gaussian",
        description="discrete-gaussian: hardened mode, exact integers, rows one by one, no amplification by sampling "
        "claimed (use sampling_prob=1)",
    )
    warm_start_share: float = Field(
        0.98, gt=0, lt=1, description="share of epsilon that the statistics of a warm start may cost by themselves"
    )
    warm_start_noise: MaybeFloat = Field(
        None,
        description="noise multiplier of these statistics, of noise over sensitivity for the unit; empty: the least "
        "that keeps warm_start_share (all of epsilon for model.kind = ridge, gaussian)",
    )
    release_count: MaybeFloat = Field(
        None,
        description="noise multiplier of one noisy count of a client's readings, charged, used as its weight; empty: "
        "no count leaves a client",
    )
    release_metrics: MaybeFloat = Field(
        None,
        description="noise multiplier of each noisy release of held-out scores, charged; empty: a deployed client "
        "sends no scores",
    )
    metrics_cap: float = Field(4.0, gt=0, le=1e6, description="release_metrics: a window's score counts at most this")
    engine: Literal["auto", "functional", "opacus", "ghost"] = "auto"
    microbatch: int = Field(0, ge=0, description="rows per physical batch; 0: the whole logical batch at once")
    native: bool = Field(
        False, description="ghost engine: C++ norms, compiled on first use; PyTorch's, with a warning, without compiler"
    )
    compile: bool = Field(
        False, description="ghost engine: the step compiled by TorchInductor: a minute at the start, for long runs"
    )
    bf16: bool = Field(False, description="ghost engine: products of the passes in bfloat16: for GPUs and AMX only")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.noise_multiplier is not None and not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier:g} is not positive")
        for name in ("release_count", "release_metrics", "warm_start_noise"):
            sigma = getattr(self, name)
            if sigma is not None and not 0 < sigma < math.inf:
                raise ValueError(f"{name}={sigma:g} is not a positive noise multiplier")
        if self.noise == "discrete-gaussian" and self.engine not in ("auto", "functional"):
            raise ValueError(f"noise=discrete-gaussian needs every row's gradient; engine={self.engine} has none")
        for part, names in (("controller", CONTROLLER_NAMES), ("gradient_rule", GRADIENT_RULE_NAMES)):
            given = getattr(self, part)
            if self.clipper in names and given not in ("none", self.clipper):
                raise ValueError(f"clipper={self.clipper} stands for {part}={self.clipper}, but {part}={given} is set")
            if self.clipper in names and self.clipper_options and getattr(self, f"{part}_options"):
                raise ValueError(f"options of {self.clipper} are in clipper_options and in {part}_options")
        return self

    def rules(self) -> RuleChoice:
        """The rules by name, a controller or gradient rule in the place of the clipper spelled out."""
        parts: dict[str, Any] = {
            name: getattr(self, name)
            for part in ("clipper", "controller", "gradient_rule", "filter")
            for name in (part, f"{part}_options")
        }
        for part, names in (("controller", CONTROLLER_NAMES), ("gradient_rule", GRADIENT_RULE_NAMES)):
            if self.clipper in names:
                parts |= {"clipper": "flat", "clipper_options": {}, part: self.clipper}
                parts[f"{part}_options"] = self.clipper_options or parts[f"{part}_options"]
        return RuleChoice(**parts)
