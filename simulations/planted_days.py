"""Days planted in the files of clients, for the attack on a whole federation (`simulations/end_to_end.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpriv.config import Scenario
from simulations.launch import prepare

Array = NDArray[np.float64]


CONTEXT, WINDOW = 2, 128  # days; of a window's places only the first two do not show a planted day
MOST = WINDOW - 1  # days planted at one client: one for each place, and the beacon's
READING = 10.0  # of a planted day, where bounds of -1 and 1 are declared
RATE = 0.01  # learning rate: small, so that the model hardly moves
_PARTS = (3, 3, 3)  # train, validation and test, windows; a gap of one follows each boundary


def scenario_of(data: Path, epsilon: float, rounds: int, sigma: float | None, seed: int) -> Scenario:
    """The default model on daily readings; small only in the transformer, which does not train."""
    train, validation, _ = _PARTS
    settings: dict[str, object] = {
        "data.source": "csv",
        "data.path": str(data),
        "data.scaling": "bounds",
        "data.low": -1.0,
        "data.high": 1.0,
        "data.train_fraction": train / sum(_PARTS),
        "data.validation_fraction": validation / sum(_PARTS),
        "partition.clients": 0,
        "task.context": CONTEXT,
        "task.horizon": WINDOW - CONTEXT,
        "model.width": 16,
        "model.depth": 1,
        "model.heads": 2,
        "privacy.unit": "day",
        "privacy.epsilon": epsilon,
        "federation.rounds": rounds,
        "federation.local_steps": 1,
        "optimizer.learning_rate": RATE,
        "optimizer.decay": "none",
        "evaluation.every": rounds,
        "evaluation.windows": 1,
        "evaluation.samples": 2,
        "run.seed": seed,
    }
    if sigma is not None:
        settings["privacy.noise_multiplier"] = sigma
    return Scenario().override(settings)


def beacons_of(epsilon: float, rounds: int, sigma: float | None, place: Path) -> int:
    """Meters of the beacon: half of those expected stand out from the noise, and fewer are rarely drawn."""
    if sigma is None:
        probe = Layout(1, 1, 1)
        probe.write(place / "probe", np.ones(1, dtype=bool))
        sigma = prepare(scenario_of(place / "probe", epsilon, rounds, None, 0)).privacy.noise_multiplier or 1.0
    return math.ceil((8 + 12 * sigma) / Scenario().privacy.sampling_prob)


@dataclass(frozen=True)
class Layout:
    """Which day is planted where: canary i is day WINDOW + 1 + i // clients of client i % clients.

    Attributes:
        canaries, clients: how many.
        beacons: meters of each client that always read day WINDOW.
    """

    canaries: int
    clients: int
    beacons: int

    @property
    def names(self) -> list[str]:
        """Of the clients, in partition order."""
        return [f"client{k:03d}" for k in range(self.clients)]

    def of(self, client: int) -> NDArray[np.int64]:
        """Numbers of a client's canaries; the j-th lies j + 1 days after the beacon."""
        return np.arange(client, self.canaries, self.clients)

    def write(self, folder: Path, kept: NDArray[np.bool_]) -> None:
        """One file per client, one column per meter; the training part holds the planted days alone."""
        folder.mkdir()
        steps = sum(_PARTS) * WINDOW
        stamps = pd.date_range("2020-01-01", periods=steps, freq="D")
        later = np.where(np.arange(steps) < _PARTS[0] * WINDOW, np.nan, np.sin(np.arange(steps)))
        for k, name in enumerate(self.names):
            columns: dict[str, Array] = {}
            days = [(WINDOW, True)] * self.beacons
            days += [(WINDOW + 1 + j, bool(kept[i])) for j, i in enumerate(self.of(k))]
            for j, (day, there) in enumerate(days):
                column = later.copy()
                if there:
                    column[day] = READING
                columns[f"meter{j:04d}"] = column
            # Simulated clients need a window with readings on both sides; this one is never a target.
            columns["meter0000"][1] = 0.0
            pd.DataFrame({"time": stamps, **columns}).to_csv(folder / f"{name}.csv", index=False)
