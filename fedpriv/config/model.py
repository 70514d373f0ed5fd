"""The denoiser and its diffusion."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fedpriv.config.values import Options, Section


class ModelConfig(Section):
    """The denoiser: a Gaussian linear skip with a diffusion transformer on top."""

    kind: Literal["diffusion", "ridge", "gaussian"] = Field(
        "diffusion",
        description="ridge, gaussian: a closed-form model from one round of noised statistics, and no training rounds",
    )
    width: int = Field(64, ge=8, le=4096)
    depth: int = Field(4, ge=0, le=64, description="transformer blocks; 0: the linear skip alone")
    heads: int = Field(4, ge=1, le=64)
    patch: int = Field(8, ge=1, description="steps per token")
    mlp_ratio: int = Field(4, ge=1, le=16)
    attention: Literal["prefix", "full"] = Field(
        "prefix",
        description="forecasts: prefix: steps before the horizon attend to one another only, so that one encoding of "
        "them serves all samples; full: every step to every step (always so outside forecasts)",
    )
    skip_rank: int = Field(8, ge=0, description="cosines over the horizon that the skip may form; 0: every step free")
    skip_memory: float = Field(
        36.0, ge=0, description="steps after which the weight of a context step has fallen to 1/e; 0: all weigh 1"
    )
    modulation: Literal["adaln-zero", "dp-aware"] = "adaln-zero"
    gamma_mode: Literal["residual", "multiplicative"] = "residual"
    bounded: Literal["all", "condition", "modulation"] = Field(
        "all", description="dp-aware: what is bounded: the condition, scale, shift and gate, or both"
    )
    tightness: Literal["loose", "medium", "tight", "too-tight"] = Field(
        "loose", description="dp-aware: the bounds below times 1, 0.9, 0.75 or 0.5"
    )
    c_max: float = Field(8.0, gt=0, description="dp-aware: bound on the norm of the condition")
    gamma_max: float = Field(1.5, gt=0, description="dp-aware: bound on each scale")
    beta_max: float = Field(1.5, gt=0, description="dp-aware: bound on each shift")
    alpha_max: float = Field(1.0, gt=0, description="dp-aware: bound on each gate")
    bound_operator: Literal["tanh", "soft", "hard", "ste"] = "tanh"
    trainable: Literal["auto", "all", "skip", "seasons", "scale", "transformer", "modulation", "bias", "lora"] = Field(
        "auto",
        description="which parameters are trained (privately) and sent; the rest keep their start values. skip: the "
        "Gaussian part; seasons: its weights of earlier days and spread; scale: its spread; auto: seasons in private "
        "forecasts with a fitted warm start, else skip",
    )
    lora_rank: int = Field(4, ge=1, le=256, description="lora: rank of the adapters of attention and MLP")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the old average that a round keeps in the mean of released models, which is then "
        "evaluated and saved; 0: the last model is",
    )
    warm_start: str = Field(
        "auto",
        description="where the diffusion model starts: ridge or gaussian (fitted from one round of noised statistics), "
        "FILE (safetensors, public or already paid-for weights), ridge:FILE, empty (the seasonal baseline); auto: "
        "ridge for forecasts, gaussian for filling and mixed tasks, where the unit, the noise and the window allow it",
    )
    warm_start_options: Options = Field(
        {}, description="of ridge: weekend_shift (hours from the data's clock to local), blocks; of gaussian: structure"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.kind != "diffusion" and self.warm_start not in ("", "auto"):
            raise ValueError(f"kind={self.kind} is a one-round model: warm_start={self.warm_start} starts nothing")
        return self

    @property
    def statistics(self) -> Literal["", "ridge", "gaussian"]:
        """The one-round model that the run fits from released statistics; empty: none."""
        if self.kind != "diffusion":
            return self.kind
        match self.warm_start.partition(":")[0]:
            case "ridge":
                return "ridge"
            case "gaussian":
                return "gaussian"
            case _:
                return ""

    @property
    def warm_start_file(self) -> str:
        """The file of weights to start from; empty: none."""
        if self.warm_start == "auto":
            return ""
        return self.warm_start.partition(":")[2] if self.statistics else self.warm_start


class DiffusionConfig(Section):
    """Noise schedule, what is predicted, and how samples are drawn."""

    steps: int = Field(1000, ge=2, le=10_000)
    schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["x0", "epsilon", "v"] = "x0"
    multiplicity: int = Field(8, ge=1, le=256, description="diffusion draws per window, averaged before clipping")
    solver: Literal["ddim", "dpm-solver++", "ddpm"] = "dpm-solver++"
    sampling_steps: int = Field(20, ge=1, le=1000)
    data_scale: float = Field(0.5, gt=0, description="public guess of the residual's standard deviation")
    condition_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance of a training window to lose its given entries, for guidance"
    )
    guidance: float = Field(
        1.0, ge=0, le=100, description="classifier-free guidance of samples; 1: none, 0: as if nothing were given"
    )
    nag_scale: float = Field(1.0, ge=1, le=100, description="normalized attention guidance of samples; 1: none")
    nag_tau: float = Field(2.5, ge=1, le=100, description="most that it may stretch a token's attention output")
    nag_alpha: float = Field(0.25, ge=0, le=1, description="share of the guided attention output in the result")
    nag_norm: Literal["l2", "l1"] = Field("l2", description="norm that is kept: l2 as in its code, l1 as in its paper")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.condition_dropout and (self.guidance != 1 or self.nag_scale != 1):
            what = f"guidance={self.guidance:g}" if self.guidance != 1 else f"nag_scale={self.nag_scale:g}"
            raise ValueError(
                f"{what} compares with the model that is given nothing, which training never showed it; train with "
                "diffusion.condition_dropout, such as 0.1"
            )
        return self
