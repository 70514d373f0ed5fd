"""The scenario: every setting of a run, with defaults, validation and a digest.

One schema serves three shapes: nested (TOML files), dotted (`--set privacy.epsilon=4`) and flat scalars
(Flower's run config, where `pyproject.toml` holds the complete default scenario). Unknown keys are refused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedpriv.errors import InputError

Scalar = str | int | float | bool


def _as_list(value: object) -> object:
    """`a,b` or a JSON list, as they arrive from the command line and from Flower's flat config."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _json(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return value


def _as_table(value: object) -> object:
    """`r=0.1,s=0.5` or a JSON object."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            return _json(text)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {key.strip(): _scalar(raw.strip()) for key, _, raw in pairs}
    return value


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from None


def _scalar(text: str) -> Scalar:
    """A command-line word as bool, int, float or str."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Options = Annotated[dict[str, Scalar], BeforeValidator(_as_table)]
MaybeFloat = Annotated[float | None, BeforeValidator(_none_if_empty)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DataConfig(_Section):
    """Where the series come from and how they are cut in time."""

    source: Literal["synthetic", "eia930", "pjm", "ett", "sgsc", "csv"] = "synthetic"
    dir: str = Field("", description="directory of the published files; empty: the FEDPRIV_DATA_DIR variable")
    path: str = Field("", description="the user's own CSV or Parquet file, or a directory of them (source = csv)")
    clients: Names = Field((), description="which clients of the source; empty: all, or the first partition.clients")
    channels: Names = Field((), description="which channels; empty: all")
    frequency: str = Field("", description="resample to this step by averaging, e.g. 1h; empty: as published")
    scaling: Literal["window", "bounds"] = Field("window", description="per-window, or by declared public bounds")
    low: float = Field(0.0, description="declared public lower bound (scaling = bounds), in the unit of the data")
    high: float = Field(1.0, description="declared public upper bound (scaling = bounds)")
    drop_flagged: bool = Field(True, description="treat cells that the publisher imputed as missing (eia930)")
    train_until: str = Field("", description="first stamp after training, ISO; empty: by train_fraction")
    validation_until: str = Field("", description="first stamp after validation, ISO; empty: by validation_fraction")
    train_fraction: float = Field(0.6, gt=0, lt=1)
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    time_column: str = Field("", description="csv: column with time stamps; empty: the first one")
    client_column: str = Field("", description="csv, long format: column naming the client or meter; empty: wide")
    value_column: str = Field("", description="csv, long format: column with the readings")
    unit: str = Field("", description="csv: physical unit of the readings, for labels")
    duplicates: Literal["refuse", "mean"] = Field("refuse", description="csv: one stamp with several values")
    days: int = Field(730, ge=14, le=36_525, description="synthetic: calendar length, days")
    meters: int = Field(1, ge=1, le=100_000, description="synthetic: meters per client")
    seed: int = Field(20, ge=0, description="synthetic: seed of the generated utilities (not of the run)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train_fraction + self.validation_fraction >= 1:
            total = self.train_fraction + self.validation_fraction
            raise ValueError(f"train_fraction + validation_fraction = {total:g} leaves no test part; keep it below 1")
        if self.scaling == "bounds" and not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}")
        if self.source == "csv" and not self.path:
            raise ValueError("source = csv needs data.path")
        return self


_BY = {
    "natural": ("", "parent", "region", "time-zone"),
    "dirichlet": ("", "profile", "season"),
    "temporal": ("", "year"),
    "feature": ("", "sampling", "channels", "covariates"),
    "missingness": ("", "flags", "outages"),
}
"""What `partition.by` may say for each kind; the others take none. Empty: the kind's default."""
_SKEW = {
    "quantity": (0.0, 10.0),
    "scale": (0.0, 6.0),
    "sampling": (1.0, 24.0),
    "channels": (0.0, 0.95),
    "covariates": (0.0, 1.0),
    "outages": (0.001, 0.6),
}
"""Range of `partition.skew` by kind, or by `partition.by` where that decides what it means."""


class PartitionConfig(_Section):
    """How the series are divided among clients."""

    kind: Literal[
        "natural", "iid", "dirichlet", "quantity", "temporal", "feature", "scale", "missingness", "clusters"
    ] = "natural"
    clients: int = Field(4, ge=0, le=10_000, description="number of clients; 0: all that the source has")
    series: int = Field(
        0,
        ge=0,
        le=100_000,
        description="series of the source that are divided; 0: all (synthetic: four per client; natural, feature and "
        "missingness: one per client)",
    )
    unit: Literal["auto", "series", "meter", "block"] = Field(
        "auto", description="what one client gets whole; auto: series where there are enough, else calendar blocks"
    )
    block_days: int = Field(28, ge=1, le=3650, description="unit = block: days of one block")
    by: str = Field(
        "",
        description="natural: parent, region, time-zone; dirichlet: profile, season; temporal: year; feature: "
        "sampling, channels, covariates; missingness: flags, outages; empty: the kind's default",
    )
    alpha: float = Field(0.5, ge=1e-3, le=1e6, description="dirichlet: concentration; small is uneven")
    clusters: int = Field(4, ge=2, le=1000, description="dirichlet by profile: number of classes")
    skew: MaybeFloat = Field(
        None,
        description="strength; quantity: exponent; scale: decades; sampling: longest interval in steps; channels, "
        "covariates: share hidden; outages: share missing at the worst client; empty: the kind's default",
    )
    seed: int = Field(0, ge=0, lt=2**62, description="seed of the partition (not of the run)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        allowed = _BY.get(self.kind, ("",))
        if self.by not in allowed:
            shown = ", ".join(repr(by) for by in allowed)
            raise ValueError(f"by={self.by!r} does not fit kind={self.kind}; allowed are {shown}")
        if self.by == "season" and self.unit in ("series", "meter"):
            raise ValueError(f"by=season needs calendar blocks; unit={self.unit} has no season (allowed: auto, block)")
        if self.unit != "auto" and self.kind in ("natural", "temporal", "feature", "scale", "missingness"):
            raise ValueError(f"unit={self.unit} does not apply to kind={self.kind}, whose units are fixed; leave auto")
        if self.skew is not None:
            meaning = self.by or {"feature": "sampling", "missingness": "outages"}.get(self.kind, self.kind)
            if meaning not in _SKEW:
                named = f"kind={self.kind}" + (f", by={self.by}" if self.by else "")
                raise ValueError(f"skew={self.skew:g} has no meaning for {named}; leave it empty")
            low, high = _SKEW[meaning]
            if not low <= self.skew <= high:
                raise ValueError(f"skew={self.skew:g} is outside {low:g} to {high:g} ({meaning})")
        return self


class TaskConfig(_Section):
    """What is given of a window and what must be generated."""

    kind: Literal["forecast", "imputation", "mixed"] = "forecast"
    context: int = Field(168, ge=2, le=10_000, description="steps before the horizon")
    horizon: int = Field(24, ge=1, le=10_000, description="steps to forecast")
    mask: Literal["random", "block", "stride", "any"] = Field("any", description="imputation: family of masks")
    ratio_low: float = Field(0.1, gt=0, lt=1, description="random masks: least share of hidden steps")
    ratio_high: float = Field(0.5, gt=0, lt=1, description="random masks: largest share of hidden steps")
    period: int = Field(0, ge=0, description="season of the naive baseline, steps; 0: one day")

    @property
    def window(self) -> int:
        """Steps in one window, L."""
        return self.context + self.horizon

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ratio_low > self.ratio_high:
            raise ValueError(f"ratio_low={self.ratio_low:g} exceeds ratio_high={self.ratio_high:g}")
        return self


class ModelConfig(_Section):
    """The denoiser: a Gaussian linear skip with a diffusion transformer on top."""

    width: int = Field(64, ge=8, le=4096)
    depth: int = Field(4, ge=0, le=64, description="transformer blocks; 0: the linear skip alone")
    heads: int = Field(4, ge=1, le=64)
    patch: int = Field(8, ge=1, description="steps per token")
    mlp_ratio: int = Field(4, ge=1, le=16)
    skip_rank: int = Field(8, ge=0, description="cosines over the horizon that the skip may form; 0: every step free")
    skip_memory: float = Field(
        36.0, ge=0, description="steps after which the weight of a context step has fallen to 1/e; 0: all weigh 1"
    )
    modulation: Literal["adaln-zero", "dp-aware"] = "adaln-zero"
    gamma_mode: Literal["residual", "multiplicative"] = "residual"
    c_max: float = Field(8.0, gt=0, description="dp-aware: bound on the norm of the condition")
    gamma_max: float = Field(1.5, gt=0, description="dp-aware: bound on each scale")
    beta_max: float = Field(1.5, gt=0, description="dp-aware: bound on each shift")
    alpha_max: float = Field(1.0, gt=0, description="dp-aware: bound on each gate")
    bound_operator: Literal["tanh", "soft", "hard", "ste"] = "tanh"
    trainable: Literal["all", "skip", "transformer", "modulation", "bias"] = Field(
        "skip", description="which parameters are trained (privately) and sent; the rest keep their start values"
    )
    warm_start: str = Field("", description="safetensors file of public or already paid-for weights to start from")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self


class DiffusionConfig(_Section):
    """Noise schedule, what is predicted, and how samples are drawn."""

    steps: int = Field(1000, ge=2, le=10_000)
    schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["x0", "epsilon", "v"] = "x0"
    multiplicity: int = Field(8, ge=1, le=256, description="diffusion draws per window, averaged before clipping")
    solver: Literal["ddim", "dpm-solver++", "ddpm"] = "dpm-solver++"
    sampling_steps: int = Field(20, ge=1, le=1000)
    data_scale: float = Field(0.5, gt=0, description="public guess of the residual's standard deviation")


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


class PrivacyConfig(_Section):
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.noise_multiplier is not None and not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier:g} is not positive")
        for name in ("release_count", "release_metrics"):
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


class OptimizerConfig(_Section):
    """The client's optimiser on released gradients; its state is new in every round."""

    name: Literal["sgd", "momentum", "adam", "adamw", "lamb"] = "sgd"
    learning_rate: MaybeFloat = Field(
        None, description="empty: a public rule of noise, batch, clients and model size (see docs/results.md)"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay: Literal["none", "linear"] = Field("linear", description="learning rate over the run: linear falls to 0")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate:g} is not positive")
        return self


class FederationConfig(_Section):
    """Rounds, local work and who takes part."""

    rounds: int = Field(300, ge=1, le=1_000_000)
    local_steps: int = Field(1, ge=0, le=100_000, description="private steps per client and round")
    clients_per_round: int = Field(0, ge=0, description="0: all")
    quorum: int = Field(0, ge=0, description="least number of valid updates for a round to count; 0: all asked")
    deadline: float = Field(3600.0, gt=0, description="seconds to wait for the replies of a round")


class StrategyConfig(_Section):
    """How the server turns updates into the next model."""

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedavgm"
    options: Options = Field({}, description="such as momentum=0.9,server_learning_rate=1.0")


class EvaluationConfig(_Section):
    """Scores on held-out data, computed in simulation only."""

    metrics: Names = ("mse", "mae", "rmse", "nmae", "crps", "coverage90")
    every: int = Field(0, ge=0, description="rounds between evaluations; 0: about ten in a run")
    samples: int = Field(20, ge=2, le=10_000, description="forecasts drawn per window for crps and coverage")
    windows: int = Field(192, ge=1, description="held-out windows per client, evenly spread over the part")


class RunConfig(_Section):
    """What does not change the promise: seed, machine, folder."""

    seed: int = Field(1, ge=0, lt=2**62)
    device: str = Field("cpu", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    out: str = Field("", description="run folder; empty: runs/NAME-DIGEST")
    name: str = Field("synthetic-4", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    engine: Literal["inline", "ray", "flower"] = "inline"
    workers: int = Field(0, ge=0, description="client processes at a time on ray and flower; 0: one per core")
    ray_address: str = Field("", description="an existing Ray cluster, e.g. auto or host:port; empty: a local one")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU per client process on ray and flower")


class Scenario(_Section):
    """A complete description of one run. Frozen; change it with `override`."""

    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    partition: PartitionConfig = PartitionConfig()  # pyright: ignore[reportCallIssue]
    task: TaskConfig = TaskConfig()  # pyright: ignore[reportCallIssue]
    model: ModelConfig = ModelConfig()  # pyright: ignore[reportCallIssue]
    diffusion: DiffusionConfig = DiffusionConfig()  # pyright: ignore[reportCallIssue]
    privacy: PrivacyConfig = PrivacyConfig()  # pyright: ignore[reportCallIssue]
    optimizer: OptimizerConfig = OptimizerConfig()  # pyright: ignore[reportCallIssue]
    federation: FederationConfig = FederationConfig()  # pyright: ignore[reportCallIssue]
    strategy: StrategyConfig = StrategyConfig()  # pyright: ignore[reportCallIssue]
    evaluation: EvaluationConfig = EvaluationConfig()  # pyright: ignore[reportCallIssue]
    run: RunConfig = RunConfig()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.depth and self.task.window % self.model.patch:
            raise ValueError(
                f"model.patch={self.model.patch} does not divide the window of {self.task.window} steps "
                "(task.context + task.horizon)"
            )
        if self.model.depth == 0 and self.model.trainable in ("transformer", "modulation"):
            raise ValueError(f"model.trainable={self.model.trainable} but model.depth=0: there is no transformer")
        return self

    @property
    def steps_total(self) -> int:
        """Private steps of one client that takes part in every round."""
        return self.federation.rounds * self.federation.local_steps

    # ---- shapes -------------------------------------------------------------------------------

    def nested(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries, complete; None where a value is not set."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Scalar]:
        """Dotted scalars for Flower's run config; lists and tables as JSON text, None as the empty string."""
        return {f"{section}.{key}": _to_scalar(value) for section, key, value in _leaves(self.nested())}

    def digest(self) -> str:
        """Hex SHA-256 of everything that can change the result (not: folder, engine, workers, data directory)."""
        leaves = {k: v for k, v in self.flat().items() if k not in _NOT_IN_DIGEST}
        return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()

    def override(self, changes: Mapping[str, object]) -> Scenario:
        """A new scenario with dotted or nested `changes`.

        Raises:
            InputError: an unknown key (the nearest known one is named) or a value out of range.
        """
        merged = self.nested()
        for dotted, value in _dotted(changes):
            _assign(merged, dotted, value)
        return _validated(merged)

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> Scenario:
        """The scenario that `flat` described; keys it lacks keep their defaults."""
        return cls().override(flat)

    @classmethod
    def from_toml(cls, path: Path) -> Scenario:
        """A scenario file: only the differences from the defaults, nested.

        Raises:
            InputError: no such file, not TOML, unknown key, or value out of range.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"scenario file {path} cannot be read ({error}); nothing was started.") from None
        try:
            return cls().override(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"scenario file {path} is not valid TOML: {error}. Nothing was started.") from None

    def to_toml(self) -> str:
        """The complete scenario as TOML; unset values are left out (their default is unset)."""
        import tomli_w

        nested = self.nested()
        return tomli_w.dumps({s: {k: v for k, v in keys.items() if v is not None} for s, keys in nested.items()})


_NOT_IN_DIGEST = frozenset(
    {
        "run.out",
        "run.engine",
        "run.workers",
        "run.name",
        "run.device",
        "run.ray_address",
        "run.num_gpus",
        "data.dir",
        "federation.deadline",
    }
)


_TABLES = frozenset(
    {
        "privacy.clipper_options",
        "privacy.controller_options",
        "privacy.gradient_rule_options",
        "privacy.filter_options",
        "strategy.options",
    }
)


def parse_assignments(words: list[str]) -> dict[str, Scalar]:
    """`KEY=VALUE` words of `--set` as a dotted dictionary.

    Raises:
        InputError: a word without `=`.
    """
    changes: dict[str, Scalar] = {}
    for word in words:
        key, sep, raw = word.partition("=")
        if not sep or not key.strip():
            raise InputError(f"--set {word!r} is not KEY=VALUE (such as privacy.epsilon=4); nothing was started.")
        changes[key.strip()] = _scalar(raw.strip())
    return changes


def known_keys() -> list[str]:
    """Every dotted key of a scenario."""
    return [f"{section}.{key}" for section, key, _ in _leaves(Scenario().nested())]


def _leaves(nested: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str, object]]:
    for section, keys in nested.items():
        for key, value in keys.items():
            yield section, key, value


def _to_scalar(value: object) -> Scalar:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True)
    assert isinstance(value, str | int | float | bool)
    return value


def _dotted(changes: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and "." not in key:
            section = cast("Mapping[str, object]", value)
            for inner, leaf in section.items():
                yield f"{key}.{inner}", leaf
        else:
            yield key, value


def _assign(nested: dict[str, dict[str, Any]], dotted: str, value: object) -> None:
    known = known_keys()
    parts = dotted.split(".")
    # Tables such as privacy.clipper_options take one level more: privacy.clipper_options.r=0.1
    if len(parts) == 3 and f"{parts[0]}.{parts[1]}" in _TABLES:
        try:
            table = _as_table(nested[parts[0]][parts[1]])
        except ValueError as error:
            raise InputError(f"{parts[0]}.{parts[1]} is {error}. Nothing was started.") from None
        nested[parts[0]][parts[1]] = {**(table if isinstance(table, dict) else {}), parts[2]: value}
        return
    if dotted not in known:
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown scenario key {dotted!r}; the nearest known key is {near!r}. Nothing was started.")
    nested[parts[0]][parts[1]] = value


def _validated(nested: Mapping[str, object]) -> Scenario:
    try:
        return Scenario.model_validate(nested)
    except ValidationError as error:
        problems: list[str] = []
        for e in error.errors():
            where = ".".join(str(p) for p in e["loc"][:2])
            shown = f"={e['input']!r}" if isinstance(e["input"], str | int | float | bool) else ""
            problems.append(f"{where}{shown}: {e['msg'].removeprefix('Value error, ')}")
        raise InputError("the scenario is not valid: " + "; ".join(problems) + ". Nothing was started.") from None
