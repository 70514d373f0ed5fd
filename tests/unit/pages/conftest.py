"""A fabricated run folder that looks like a real one: eight utilities, three hundred rounds, day-ahead forecasts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpriv.config import Scenario
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.forecasts import ForecastExamples
from fedpriv.reports.page import write_report

UTILITIES = ("PJM-AE", "PJM-DOM", "MISO-0001", "CISO-PGAE", "ERCO-COAS", "NYIS-ZONJ", "ISNE-4004", "SWPP-OKGE")


def scenario_of(*, private: bool = True, rounds: int = 300) -> Scenario:
    return Scenario().override(
        {
            "run.name": "eia-8",
            "data.source": "eia930",
            "partition.clients": 8,
            "privacy.enabled": private,
            "privacy.clipper": "psac",
            "federation.rounds": rounds,
        }
    )


def fill(folder: RunFolder, *, clients: tuple[str, ...] = UTILITIES, finished: bool = True, upto: int = 300) -> None:
    """Writes what a run writes, with numbers of a believable size."""
    rng = np.random.default_rng(7)
    private, total = folder.scenario.privacy.enabled, folder.scenario.federation.rounds
    naive = {c: float(v) for c, v in zip(clients, np.exp(rng.normal(-1.65, 0.55, len(clients))), strict=True)}
    gain = {c: float(v) for c, v in zip(clients, rng.normal(0.16, 0.13, len(clients)), strict=True)}
    gain[clients[0]] = -0.06
    spread = {c: float(v) for c, v in zip(clients, rng.uniform(0.9, 1.0, len(clients)), strict=True)}

    def error(client: str, round_: int) -> float:
        return naive[client] * (1 - gain[client] * (1 - math.exp(-4 * round_ / total)))

    def row(round_: int, client: str, split: str, model: str, metric: str, value: float) -> dict[str, object]:
        return {"round": round_, "client": client, "split": split, "model": model, "metric": metric, "value": value}

    for round_ in range(0, upto + 1, 5):
        rows: list[dict[str, object]] = []
        for client in clients:
            if private:
                spent = 7.96 * spread[client] * math.sqrt(round_ / total)
                rows.append(row(round_, client, "train", "federated", "epsilon", spent))
            if round_ % 30 == 0:
                rows.append(row(round_, client, "validation", "federated", "mse", error(client, round_) * 1.04))
                rows.append(row(round_, client, "validation", "seasonal-naive", "mse", naive[client] * 1.04))
            # Must never reach the page of a private run, whoever wrote it:
            rows.append(row(round_, client, "train", "federated", "clip_fraction", 0.7312345))
            rows.append(row(round_, client, "train", "federated", "gradient_norm", 3.1415926))
        folder.append_rows(rows)
    folder.flush()
    folder.checkpoint(upto, {"parameters": np.zeros(4032, np.float32)}, {"upto": upto})
    if not finished:
        folder.update_status(status="interrupted", seconds=80.2)
        return

    final: list[dict[str, object]] = []
    for client in clients:
        for model, mse in (
            ("federated", error(client, total)),
            ("seasonal-naive", naive[client]),
            ("last-value", naive[client] * 2.4),
        ):
            scores = {
                "mse": mse,
                "mae": 0.75 * math.sqrt(mse),
                "rmse": 812 * math.sqrt(mse),
                "nmae": 0.2 * math.sqrt(mse),
            }
            if model == "federated":
                scores |= {"crps": 0.55 * math.sqrt(mse), "coverage90": 0.87}
            final += [
                {"client": client, "model": model, "split": "test", "metric": k, "value": v} for k, v in scores.items()
            ]
    folder.write_metrics(final)
    if private:
        folder.write_label(label_of(clients, spread))
    folder.write_model({"skip.weight": np.zeros((24, 168), np.float32)})
    folder.write_examples(examples_of(clients[:4], rng))
    folder.update_status(
        status="done",
        seconds=247.9,
    )


def label_of(clients: tuple[str, ...], spread: dict[str, float]) -> dict[str, object]:
    return {
        "unit": "reading",
        "relation": "zero-out",
        "delta": 1e-5,
        "ladder": {"reading": 7.96, "day": 9.81, "week": 19.4, "month": 61.2, "meter": 1203.0},
        "ladders": {
            "zero-out": {"reading": 7.96, "day": 9.81, "week": 19.4, "month": 61.2, "meter": 1203.0},
            "replace-one": {"reading": 14.2, "day": 17.9, "week": 39.9, "month": 130.0, "meter": None},
        },
        "committed": {c: 7.96 * spread[c] for c in clients},
        "nominal": {c: 7.96 * spread[c] for c in clients},
        "max_epsilon": 7.96,
        "seeded": True,
        "mode": "simulation",
        "mechanism": {
            c: {
                "noise_multiplier": 4.9 + 0.1 * i,
                "sampling_prob": 0.467,
                "steps_total": 300,
                "clipper": "psac",
                "bound": 1.0,
                "sampler": "random-phase-tiling",
                "window": 192,
            }
            for i, c in enumerate(clients)
        },
        "side_releases": [],
        "public": ["number of meters and calendar span", "sampling rate", "the model before training"],
        "adversary": "server and other clients, who see every update; not the owner of the client's machine",
        "accountant": "PLD, dp-accounting 0.6.0, grid 1e-3",
    }


def examples_of(clients: tuple[str, ...], rng: np.random.Generator) -> ForecastExamples:
    count, context, horizon = len(clients), 168, 24
    hours = np.arange(context + horizon)
    shape = 3200 + 900 * np.sin(2 * np.pi * (hours - 7) / 24) + 300 * np.sin(4 * np.pi * hours / 24)
    series = shape * rng.uniform(0.4, 3.0, (count, 1)) + rng.normal(0, 60, (count, context + horizon))
    series[0, 130:136] = np.nan
    truth = series[:, context:]
    point = truth * rng.normal(1.01, 0.02, truth.shape)
    width = np.linspace(0.02, 0.07, horizon) * truth.mean(1, keepdims=True)
    start = np.datetime64("2024-03-08T05:00", "s")
    stamps = start + np.arange(context + horizon) * np.timedelta64(3600, "s")
    return ForecastExamples(
        client=np.array(clients),
        stamps=np.broadcast_to(stamps, (count, context + horizon)),
        context=series[:, :context],
        truth=truth,
        point=point,
        quantiles=np.stack([point - 1.6 * width, point, point + 1.6 * width], axis=1),
        levels=np.array([0.05, 0.5, 0.95]),
        baseline=series[:, context - 24 : context],
        unit="MW",
    )


@pytest.fixture(scope="session")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with its page; drawn once, for tests that only read."""
    folder = RunFolder.create(tmp_path_factory.mktemp("written") / "run", scenario_of())
    fill(folder)
    write_report(folder.path)
    return folder


@pytest.fixture
def finished_run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", scenario_of())
    fill(folder)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """make_run(name, private=..., finished=..., upto=..., clients=...)."""

    def make(name: str = "made", *, private: bool = True, **parts: object) -> RunFolder:
        folder = RunFolder.create(tmp_path / name, scenario_of(private=private))
        fill(folder, **parts)  # type: ignore[arg-type]
        return folder

    return make
