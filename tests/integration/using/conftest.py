"""Two tiny trained runs, made once: one that forecasts, one that also fills gaps; and a table of three feeders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulations.launch import Run, simulate

TINY = {
    "data.days": 60,
    "partition.clients": 2,
    "task.context": 72,
    "model.depth": 0,
    "diffusion.multiplicity": 2,
    "privacy.sampling_prob": 0.3,
    "federation.rounds": 3,
    "evaluation.windows": 4,
    "evaluation.samples": 2,
}
PERSONAL = {"personal.kind": "local", "personal.steps": 2}


@pytest.fixture(scope="session")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(None, TINY | PERSONAL, out=tmp_path_factory.mktemp("runs") / "forecaster")


@pytest.fixture(scope="session")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(
        None,
        TINY | PERSONAL | {"task.kind": "mixed", "personal.kind": "private"},
        out=tmp_path_factory.mktemp("runs") / "filler",
    )


@pytest.fixture
def load() -> pd.DataFrame:
    """Six weeks of three feeders, hourly, without gaps."""
    index = pd.date_range("2024-05-01", periods=42 * 24, freq="1h", name="when")
    hour = np.arange(len(index))
    rng = np.random.default_rng(3)
    columns = {
        f"feeder {name}": size * (3 + np.sin(2 * np.pi * (hour - 7) / 24)) + 0.1 * size * rng.normal(size=len(hour))
        for name, size in (("A", 100.0), ("B", 2.0), ("C", 1e6))
    }
    return pd.DataFrame(columns, index=index)


@pytest.fixture
def gappy(load: pd.DataFrame) -> pd.DataFrame:
    """The same with single steps, a lost day, a lost week and an end that is missing."""
    frame = load.mask(np.random.default_rng(4).random(load.shape) < 0.03)
    frame.iloc[100:124, 0] = np.nan
    frame.iloc[300:468, 1] = np.nan
    frame.iloc[-5:, 2] = np.nan
    return frame


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.reset_index().to_parquet(path)
    else:
        frame.to_csv(path)
    return path


@pytest.fixture
def write_table():
    return write
