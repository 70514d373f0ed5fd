"""Tails of per-window gradients with and without the bounds of DP-aware AdaLN-Zero (arXiv:2602.22610, table 2).

    python benchmarks/dp_aware_gradients.py --seeds 3 --out FOLDER

Trains the scenario `dp-aware-cpu` on ETTh1, which is public: raw norms of private windows would be a release. They come
from the ghost engine, which has them per layer; nothing about the training changes. Prints quantiles over all steps
and windows, writes them as JSON and the tails as a figure.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedpriv.examples import Draws, Examples
from fedpriv.models.parameters import is_conditioning
from fedpriv.privacy.engines.ghost import GhostEngine, Measured
from fedpriv.resolving import resolve
from fedpriv.training import LocalWorker
from simulations.scenarios import load

ARMS = {
    "vanilla": {"model.modulation": "adaln-zero"},
    "dp-aware": {},
    "condition only": {"model.bounded": "condition"},
    "modulation only": {"model.bounded": "modulation"},
    "too tight": {"model.tightness": "too-tight"},
}
BOUND = 1.0  # privacy.bound of the scenario
STYLES = ("-", "--", "-.", ":", (0, (5, 1)))
NOISE = {"privacy.noise_multiplier": 0.1, "privacy.epsilon": 1e6, "privacy.accountant": "rdp"}


class LoggingEngine(GhostEngine):
    """The ghost engine, keeping what it measures: [steps] of [rows, 2] norms (conditioning, the rest)."""

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker.model, worker._loss, check=False)
        self.norms: list[NDArray[np.float64]] = []

    def _measured(self, examples: Examples, draws: Draws) -> Measured:
        measured = super()._measured(examples, draws)
        names = [self._owners[i].full_names[0] for i in measured.terms]
        conditioning = torch.tensor([is_conditioning(name) for name in names])
        squares = measured.squares.double()
        parts = torch.stack([squares[conditioning].sum(dim=0), squares[~conditioning].sum(dim=0)], dim=1)
        self.norms.append(parts.clamp(min=0).sqrt().numpy())
        return measured


def norms_of(arm: str, seed: int) -> list[NDArray[np.float64]]:
    """[steps] of [rows, 2] norms of one training."""
    scenario = resolve(load("dp-aware-cpu").override(NOISE | ARMS[arm] | {"run.seed": seed}))
    worker = LocalWorker(scenario)
    engine = worker._engine = LoggingEngine(worker)
    parameters, federation = worker.initial_parameters(), scenario.federation
    for number in range(1, federation.rounds + 1):
        done = worker.train("ETTh1", parameters, round=number, steps=federation.local_steps, mode="simulation")
        parameters = done.parameters
    return engine.norms


def summary(norms: list[NDArray[np.float64]], bound: float = BOUND) -> dict[str, float]:
    """Table 2 and table 3 of the paper: pooled over all steps and windows."""
    both = np.concatenate(norms)
    total = np.hypot(both[:, 0], both[:, 1])
    severity = np.minimum(1.0, bound / np.maximum(total, 1e-12))
    found = {
        f"{name}_p{level}": float(np.percentile(values, level))
        for name, values in (("total", total), ("cond", both[:, 0]), ("other", both[:, 1]))
        for level in (95, 99)
    }
    return found | {
        "p_clip": float((total > bound).mean()),
        "severity_mean": float(severity.mean()),
        "severity_p10": float(np.percentile(severity, 10)),
        "severity_p50": float(np.percentile(severity, 50)),
    }


def draw(pooled: dict[str, list[NDArray[np.float64]]], path: Path, *, seeds: int) -> None:
    """Tails (share of windows beyond a norm) of both groups, and the 99 % quantile over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for (arm, norms), style in zip(pooled.items(), STYLES, strict=False):
        both = np.concatenate(norms)
        for axis, column in zip(axes[:2], (0, 1), strict=True):
            x = np.sort(both[:, column])
            axis.plot(x, 1.0 - np.arange(len(x)) / len(x), linestyle=style, label=arm)
        steps = len(norms) // seeds
        high = [
            np.percentile(np.concatenate([np.hypot(*n.T) for n in norms[step::steps]]), 99) for step in range(steps)
        ]
        axes[2].plot(high, linestyle=style, label=arm, linewidth=1)
    for axis, title in zip(axes[:2], ("conditioning parameters", "all other parameters"), strict=True):
        axis.axvline(BOUND, color="0.6", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlim=(0.1, 100), ylim=(1e-3, 1.1), title=title)
        axis.set_xlabel("norm of a window's gradient (line: clipping bound)")
    axes[0].set_ylabel("share of windows beyond")
    axes[2].set(xlabel="step", title="99 % quantile of the whole norm", ylim=(0, None))
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["vanilla", "dp-aware"])
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    torch.set_num_threads(1)
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    table: dict[str, list[dict[str, float]]] = {}
    for arm in options.arms:
        runs = [norms_of(arm, seed) for seed in range(1, options.seeds + 1)]
        table[arm] = [summary(run) for run in runs]
        pooled[arm] = [step for run in runs for step in run]
        means = {key: float(np.mean([row[key] for row in table[arm]])) for key in table[arm][0]}
        print(arm, json.dumps({key: round(value, 3) for key, value in means.items()}), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "dp-aware-gradients.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    draw(pooled, options.out / "dp-aware-gradients.png", seeds=options.seeds)


if __name__ == "__main__":
    main()
