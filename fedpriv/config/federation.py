"""Optimiser, rounds, server strategy, evaluation and the machine."""

from __future__ import annotations

import difflib
from typing import Literal, Self

from pydantic import Field, model_validator

from fedpriv.config.values import MaybeFloat, Names, Options, Section

METRIC_NAMES = (
    *("mse", "mae", "rmse", "nmae", "mape", "r2"),
    *("crps", "coverage50", "coverage90", "energy-score", "pinball", "wql"),
    *("dist-kl", "dist-js", "dist-ws", "dist-ks", "mmd", "spectrum-distance"),
)
"""What `evaluation.metrics` may name: see `fedpriv.metrics` and, for the last six, `fedpriv.distances`."""


class OptimizerConfig(Section):
    """The client's optimiser on released gradients; its state is new in every round."""

    name: Literal["sgd", "momentum", "adam", "adamw", "lamb"] = "sgd"
    learning_rate: MaybeFloat = Field(
        None, description="empty: a public rule of noise, batch, clients and model size (see docs/results.md)"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay: Literal["none", "linear"] = Field("linear", description="learning rate over the run: linear falls to 0")
    warmup: int = Field(0, ge=0, description="first steps of the run, over which the learning rate rises from 0")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate:g} is not positive")
        return self


class FederationConfig(Section):
    """Rounds, local work and who takes part."""

    rounds: int = Field(300, ge=1, le=1_000_000)
    local_steps: int = Field(1, ge=0, le=100_000, description="private steps per client and round")
    clients_per_round: int = Field(0, ge=0, description="0: all")
    quorum: int = Field(0, ge=0, description="least number of valid updates for a round to count; 0: all asked")
    deadline: float = Field(3600.0, gt=0, description="seconds to wait for the replies of a round")


class StrategyConfig(Section):
    """How the server turns updates into the next model."""

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedavgm"
    options: Options = Field({}, description="such as momentum=0.9,server_learning_rate=1.0")


class EvaluationConfig(Section):
    """Scores on held-out data, computed in simulation only."""

    metrics: Names = Field(
        ("mse", "mae", "rmse", "nmae", "crps", "coverage90"),
        description="also mape, r2, coverage50, energy-score, pinball, wql; distances of distributions, at a cost: "
        "dist-kl, dist-js, dist-ws, dist-ks, mmd, spectrum-distance (see docs/scores.md)",
    )
    every: int = Field(0, ge=0, description="rounds between evaluations; 0: about ten in a run")
    samples: int = Field(20, ge=2, le=10_000, description="forecasts drawn per window for crps and coverage")
    windows: int = Field(192, ge=1, description="held-out windows per client, evenly spread over the part")
    diagnostics: int = Field(
        0,
        ge=0,
        description="rounds between gradient diagnostics (norms per sample, tails, clipping), without noise and in "
        "simulation only; 0: none",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := [name for name in self.metrics if name not in METRIC_NAMES]:
            near = difflib.get_close_matches(unknown[0], METRIC_NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"metric {unknown[0]!r} is not known; the nearest is {near!r} (known: {', '.join(METRIC_NAMES)})"
            )
        return self


class PersonalConfig(Section):
    """A model of each client's own, fine-tuned from the final global one; nothing of it is ever sent."""

    kind: Literal["none", "local", "private"] = Field(
        "none",
        description="local: without noise, for the client's own use only; private: private steps, charged with the run",
    )
    parameters: Literal["same", "all", "skip", "seasons", "transformer", "modulation", "bias", "scale"] = Field(
        "same", description="which are fine-tuned: same: those of model.trainable; scale: the spread alone"
    )
    steps: int = Field(30, ge=1, le=100_000, description="fine-tuning steps of each client, after the last round")
    learning_rate: MaybeFloat = Field(None, description="empty: the public rule of optimizer.learning_rate, one client")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate:g} is not positive")
        return self


class RunConfig(Section):
    """What does not change the promise: seed, machine, folder."""

    seed: int = Field(1, ge=0, lt=2**62)
    device: str = Field("cpu", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    products: Literal["default", "onednn"] = Field(
        "default", description="library of float32 matrix products on the CPU; onednn: faster on AMD with AVX-512"
    )
    out: str = Field("", description="run folder; empty: runs/NAME-DIGEST")
    name: str = Field("synthetic-4", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    engine: Literal["inline", "ray", "flower"] = "inline"
    workers: int = Field(0, ge=0, description="client processes at a time on ray and flower; 0: one per core")
    ray_address: str = Field("", description="an existing Ray cluster, e.g. auto or host:port; empty: a local one")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU per client process on ray and flower")
    tracking: Literal["none", "tensorboard", "mlflow"] = Field(
        "none", description="where copies of a run's numbers go as well (pip install 'fedpriv[tracking]')"
    )
