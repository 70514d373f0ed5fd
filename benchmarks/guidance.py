"""Does guidance make better forecasts? One trained run, several ways to draw samples, the same windows and noise.

    fedpriv simulate eia-8 --set privacy.enabled=false --set model.warm_start= --set model.trainable=all \
        --set optimizer.name=adamw --set diffusion.condition_dropout=0.1 --set diffusion.multiplicity=2 \
        --set federation.rounds=20 --set federation.local_steps=20 --set strategy.name=fedavg --out RUN
    python benchmarks/guidance.py RUN --windows 64

Scores are those of `fedpriv.metrics` on the test part, in units of each client's training standard deviation; the
squared error is that of the mean of the samples. Changes are paired: windows that begin at the same time are averaged
over clients, which share their weather, and the t interval is that of the mean over times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.diffusion.sampling import sample
from fedpriv.evaluation import held_out
from fedpriv.metrics import score
from fedpriv.seeding import stream, torch_generator
from fedpriv.tallies import training_moments
from fedpriv.trained import Trained

SETTINGS: dict[str, dict[str, object]] = {
    "none": {},
    "guidance 0.8": {"diffusion.guidance": 0.8},
    "guidance 1.5": {"diffusion.guidance": 1.5},
    "guidance 2": {"diffusion.guidance": 2.0},
    "guidance 3": {"diffusion.guidance": 3.0},
    "NAG 3": {"diffusion.nag_scale": 3.0},
    "NAG 5": {"diffusion.nag_scale": 5.0},
    "guidance 1.5, NAG 3": {"diffusion.guidance": 1.5, "diffusion.nag_scale": 3.0},
}
METRICS = ("mse", "crps", "energy-score", "coverage50", "coverage90")


def scores_of(trained: Trained, changes: Mapping[str, object], windows: int, samples: int) -> dict[str, NDArray]:
    """Metric -> [clients, windows] scores under a setting."""
    made = trained.sampled(changes)
    scenario = trained.scenario.override({"evaluation.windows": windows})
    found: dict[str, list[list[float]]] = {name: [] for name in METRICS}
    for client in roster(scenario).names:
        data = load_client(scenario, client)
        some, _ = held_out(data, scenario, part="test", count=windows)
        scale = torch.from_numpy(training_moments(data)[1])
        generator = torch_generator(stream(0, "guidance", client))
        drawn = sample(made.model, some, count=samples, diffusion=made.scenario.diffusion, generator=generator)
        truth, point = some.values * some.scale + some.loc, drawn.mean(dim=0)
        rows = []
        for i in range(len(some)):
            one = slice(i, i + 1)
            rows.append(score(truth[one], point[one], drawn[:, one], some.target[one], scale).finalize(METRICS))
        for name in METRICS:
            found[name].append([row.get(name, np.nan) for row in rows])  # nan: nothing of the window was read
    return {name: np.array(values) for name, values in found.items()}


def change(ours: NDArray, plain: NDArray) -> tuple[float, float]:
    """Mean change relative to `plain`'s mean and half the width of its 95 % interval, from [clients, windows]."""
    apart = np.nanmean(ours - plain, axis=0) / np.nanmean(plain)
    half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    return float(apart.mean()), float(half)


def main() -> None:
    """Prints the table; writes every number as JSON if asked."""
    parser = argparse.ArgumentParser(description="Guidance settings of one trained run, paired.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--windows", type=int, default=64, help="per client")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    trained = Trained.load(args.run)
    plain: dict[str, NDArray] = {}
    rows: dict[str, dict[str, list[float]]] = {}
    print("| sampling | MSE of the mean | change | CRPS | change | energy score | change | bands of 50, 90 % hold |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, changes in SETTINGS.items():
        found = scores_of(trained, changes, args.windows, args.samples)
        plain = plain or found
        rows[name] = {
            metric: [float(found[metric].mean()), *change(found[metric], plain[metric])] for metric in METRICS
        }
        cells = [name]
        for metric in ("mse", "crps", "energy-score"):
            value, mean, half = rows[name][metric]
            low, high = 100 * (mean - half), 100 * (mean + half)
            cells += [f"{value:.4g}", f"{100 * mean:+.1f} % ({low:+.1f} to {high:+.1f})" if changes else ""]
        cells.append(f"{100 * rows[name]['coverage50'][0]:.0f}, {100 * rows[name]['coverage90'][0]:.0f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"windows": args.windows, "samples": args.samples, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
