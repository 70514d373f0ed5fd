"""Sweep folders with simulated results: the structure of real ones, and a truth that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from fedpriv.reports.comparison.sweep import Sweep
from fedpriv.reports.comparison.sweep_runs import sweep_runs
from fedpriv.reports.forecasts import ForecastExamples

UTILITIES = ("CISO-PGAE", "BPAT", "AZPS", "ERCO-NCEN", "TVA", "FPL", "NYIS-ZONJ", "PJM-CE")
ROWS = ("run", "digest", "arm", "seed", "client", "model", "split", "metric", "value")


class Builder:
    """Collects the lines of a sweep and writes its folder."""

    def __init__(self, question: str, *, seed: int = 0, arms: Sequence[Mapping[str, Any]] = ()) -> None:
        self.rng = np.random.default_rng(seed)
        self.settings: dict[str, Any] = {
            "sweep": {"name": f"{question}-test", "question": question, "about": "Simulated results."},
            "base": {"federation": {"rounds": 30}, "data": {"source": "eia930"}},
            "grid": {},
            "arms": [dict(arm) for arm in arms],
        }
        self.runs: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def run(
        self,
        errors: Mapping[str, float],
        *,
        naive: Mapping[str, float],
        axes: Mapping[str, Any],
        seed: int,
        arm: str = "",
        status: str = "done",
        epsilon: float | None = None,
        error: str = "",
    ) -> str:
        name = f"{len(self.runs):012x}"
        self.runs.append(
            {
                "run": name, "digest": name * 5, "arm": arm, "seed": seed, "axes": dict(axes), "status": status,
                "seconds": 11.5, "epsilon": epsilon, "error": error,
            }
        )  # fmt: skip
        for client, value in errors.items() if status == "done" else ():
            models = {"federated": value, "seasonal-naive": naive[client], "last-value": 2 * naive[client]}
            for model, mse in models.items():
                for metric, number in {"mse": mse, "mae": 0.7 * math.sqrt(max(mse, 0)), "coverage90": 0.88}.items():
                    row = (name, name * 5, arm, seed, client, model, "test", metric, number)
                    self.rows.append({**dict(zip(ROWS, row, strict=True)), **axes})
        return name

    def write(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        self.settings = {k: v for k, v in self.settings.items() if v}
        (path / "sweep.toml").write_text(tomli_w.dumps(self.settings))
        (path / "runs.json").write_text(json.dumps([{**r, "axes": plain(r["axes"])} for r in self.runs]))
        pd.DataFrame(self.rows, columns=None if self.rows else list(ROWS)).to_parquet(path / "results.parquet")
        for run in self.runs:
            folder = path / "runs" / run["run"]
            folder.mkdir(parents=True, exist_ok=True)
            if run["status"] == "done" and run["epsilon"] is not None:
                (folder / "label.json").write_text(json.dumps(label(run)))
        return path


def plain(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Infinity is a word in strict JSON."""
    return {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in axes.items()}


def label(run: Mapping[str, Any]) -> dict[str, Any]:
    e = run["epsilon"]
    ladder = {"reading": e, "day": 1.3 * e, "week": 2.6 * e, "month": 8 * e, "meter": None}
    return {
        "unit": "reading", "relation": "zero-out", "delta": 1e-5, "ladder": ladder, "max_epsilon": e, "seeded": True,
    }  # fmt: skip


def clippers(
    *,
    gains: Mapping[str, float],
    wheres: Sequence[str] = ("natural", "dirichlet 0.1"),
    epsilons: Sequence[float] = (1.0, 8.0),
    seeds: int = 3,
    clients: Sequence[str] = UTILITIES,
    seed: int = 0,
    noise: float = 0.02,
) -> Builder:
    """Every rule has exp(gain) of the same error, with effects of seed, client and both; errors fall with epsilon."""
    made = Builder("clippers", seed=seed)
    made.settings["grid"] = {
        "privacy.clipper": list(gains),
        "privacy.epsilon": list(epsilons),
        "partition.kind": [
            w if w in ("natural", "iid") else {"label": w, "set": {"partition.kind": w.split()[0]}} for w in wheres
        ],
    }
    rng = made.rng
    for where in wheres:
        names = clients if where == "natural" else [f"client-{k:03d}" for k in range(len(clients))]
        naive = dict(zip(names, np.exp(-1.5 + 0.6 * rng.standard_normal(len(names))), strict=True))
        own = {rule: noise * rng.standard_normal(len(names)) for rule in gains}
        for epsilon in epsilons:
            level = -0.25 + 0.28 / math.sqrt(epsilon) if math.isfinite(epsilon) else -0.27
            shared = noise * rng.standard_normal((seeds, len(names)))  # luck of a seed, the same for all rules
            for rule, gain in gains.items():
                for s in range(seeds):
                    luck = noise * rng.standard_normal() + noise * rng.standard_normal(len(names))
                    logs = level + gain + own[rule] + shared[s] + luck
                    errors = {n: naive[n] * float(np.exp(x)) for n, x in zip(names, logs, strict=True)}
                    axes = {"privacy.clipper": rule, "privacy.epsilon": epsilon, "partition.kind": where}
                    promised = 0.995 * epsilon if math.isfinite(epsilon) else None
                    made.run(errors, naive=naive, axes=axes, seed=s + 1, epsilon=promised)
    return made


COLLABORATION_ARMS = (
    {"name": "federated"},
    {"name": "federated-open", "set": {"privacy.enabled": False}},
    {"name": "alone", "each_client": True},
    {"name": "alone-open", "each_client": True, "set": {"privacy.enabled": False}},
    {"name": "curator", "set": {"partition.kind": "pooled"}},
)


def collaboration(
    *,
    gain: Mapping[str, float],
    epsilons: Sequence[float] = (0.5, 2.0, 8.0),
    seeds: int = 4,
    noise: float = 0.01,
    seed: int = 0,
) -> Builder:
    """Without privacy, joining multiplies a client's error by exp(-gain); noise costs 0.2 / epsilon in a federation
    of eight and three times that alone."""
    made = Builder("collaboration", arms=COLLABORATION_ARMS, seed=seed)
    made.settings["grid"] = {"privacy.epsilon": list(epsilons)}
    rng, clients = made.rng, list(gain)
    naive = {c: float(v) for c, v in zip(clients, np.exp(-1.5 + 0.6 * rng.standard_normal(len(clients))), strict=True)}

    def errors(shift: Callable[[str], float], who: Sequence[str]) -> dict[str, float]:
        return {c: naive[c] * math.exp(-0.2 + shift(c) + noise * rng.standard_normal()) for c in who}

    def add(
        arm: str, shift: Callable[[str], float], who: Sequence[str], epsilon: float, s: int, *, private: bool = True
    ) -> None:
        made.run(
            errors(shift, who), naive=naive, axes={"privacy.epsilon": epsilon}, seed=s, arm=arm,
            epsilon=epsilon if private else None,
        )  # fmt: skip

    for s in range(1, seeds + 1):
        for epsilon in epsilons:
            add("federated", partial(lambda e, c: 0.2 / e - gain[c], epsilon), clients, epsilon, s)
            add("curator", partial(lambda e, c: 0.2 / e / 3 - gain[c], epsilon), clients, epsilon, s)
            for client in clients:
                add("alone", partial(lambda e, _: 0.6 / e, epsilon), [client], epsilon, s)
        add("federated-open", lambda c: -gain[c], clients, epsilons[0], s, private=False)
        for client in clients:
            add("alone-open", lambda _: 0.0, [client], epsilons[0], s, private=False)
    return made


def examples() -> ForecastExamples:
    rng = np.random.default_rng(3)
    hours = np.arange(192)
    series = (3000 + 800 * np.sin(2 * np.pi * hours / 24))[None] * rng.uniform(0.5, 2, (4, 1)) + rng.normal(
        0, 40, (4, 192)
    )
    truth = series[:, 168:]
    stamps = np.datetime64("2024-03-08T05:00", "s") + hours * np.timedelta64(3600, "s")
    return ForecastExamples(
        client=np.array(["CISO-PGAE", "CISO-PGAE", "BPAT", "BPAT"]),
        stamps=np.broadcast_to(stamps, (4, 192)),
        context=series[:, :168],
        truth=truth,
        point=truth * 1.02,
        quantiles=np.stack([truth * 0.95, truth, truth * 1.06], axis=1),
        levels=np.array([0.05, 0.5, 0.95]),
        baseline=series[:, 144:168],
        unit="MW",
    )


def with_examples(path: Path) -> Path:
    """Run folders with a scenario and example forecasts, as finished runs have them."""
    from fedpriv.config import Scenario

    for run in Sweep.open(path).done:
        folder = path / "runs" / run.run
        (folder / "scenario.toml").write_text(Scenario().to_toml())
        examples().save(folder / "examples.npz")
    return path


def in_memory(made: Builder, path: Path) -> Sweep:
    """The same without files, for tests that make hundreds."""
    settings = {k: v for k, v in made.settings.items() if v}
    runs = tuple(sweep_runs([{**r, "axes": plain(r["axes"])} for r in made.runs], settings))
    return Sweep(path, settings, runs, pd.DataFrame(made.rows).astype(dict.fromkeys(ROWS[:-1], str)))
