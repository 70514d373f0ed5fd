"""What an engine costs: time per client and round without local work, and how two workers compare with one.

    python benchmarks/engines.py [--flower] [--json FILE]

Overhead: a model of about 0.35 million parameters travels to every client and back, `federation.local_steps=0`, the
whole loop included (requests, checks, aggregation, checkpoint), evaluation left out. Work: the private training step
of the same model on all clients, ray with one and with two workers, alternating. Medians of rounds; state of the
machine (load) is printed, for on shared cores only ratios mean something. Flower's own engine is timed on request.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FEDPRIV_SIMULATION"] = "1"

import torch

from clients.client_app import app, release
from fedpriv.config import Scenario
from fedpriv.reports.folder import RunFolder
from fedpriv.training import LocalWorker
from simulations.inline_grid import InlineGrid
from simulations.launch import prepare, simulate
from simulations.ray_grid import RayGrid
from strategies import federation as server

MODEL = {
    "model.trainable": "all",
    "model.width": 64,
    "model.depth": 4,
    "model.patch": 8,
    "optimizer.learning_rate": 0.01,
    "data.days": 200,
    "run.name": "engine-benchmark",
}


def rounds_of(scenario: Scenario, grid: Any) -> list[float]:
    """Seconds between the ends of consecutive rounds; the first ones, which load and compile, are left out."""
    ends: list[float] = []
    folder = RunFolder.create(scenario.run.out, scenario)
    server.federation(
        grid, scenario, folder, listener=lambda p: ends.append(time.perf_counter()) if p.stage == "round" else None
    )
    return [b - a for a, b in pairwise(ends)][2:]


def timed(engine: str, scenario: Scenario, *, workers: int = 2) -> list[float]:
    """Round times on one engine."""
    clients = scenario.partition.clients
    with tempfile.TemporaryDirectory() as base:
        scenario = scenario.override({"run.out": str(Path(base) / "run")})
        try:
            if engine == "inline":
                return rounds_of(scenario, InlineGrid(app, clients, scenario.flat()))
            with RayGrid(clients, scenario.flat(), workers=workers) as grid:
                return rounds_of(scenario, grid)
        finally:
            release()


def flower_rounds(scenario: Scenario) -> float:
    """Seconds per round of Flower's engine: the difference of two runs' lengths over the difference in rounds."""
    times: list[float] = []
    for rounds in (2, 12):
        with tempfile.TemporaryDirectory() as base:
            start = time.perf_counter()
            simulate(scenario, {"federation.rounds": rounds}, engine="flower", out=Path(base) / "run")
            times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / 10


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", action="store_true", help="also time Flower's own engine (minutes)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for owner, step in ((server.Evaluation, "run"), (server._Federation, "_results")):
        setattr(owner, step, lambda *_: [])  # the engine alone is timed; Flower's processes import their own code
    empty = prepare(Scenario(), {**MODEL, "federation.local_steps": 0, "federation.rounds": options.rounds})
    size = LocalWorker.for_scenario(empty).num_parameters
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"model of {size:,} parameters; ms per client and round, no local work (median, 10th to 90th percentile)")
    results: dict[str, Any] = {"parameters": size, "load": os.getloadavg()[0]}
    for engine, clients, goal in (("inline", 8, 2), ("inline", 32, 2), ("ray", 8, 5), ("ray", 32, 5)):
        scenario = empty.override({"partition.clients": clients})
        times = sorted(1000 * t / clients for t in timed(engine, scenario))
        middle, low, high = statistics.median(times), times[len(times) // 10], times[-len(times) // 10]
        results[f"{engine}-{clients}"] = middle
        print(f"  {engine:7s} {clients:3d} clients  {middle:6.2f}  ({low:.2f} to {high:.2f})   goal {goal}")
    if options.flower:
        value = 1000 * flower_rounds(empty.override({"partition.clients": 8})) / 8
        results["flower-8"] = value
        print(f"  flower    8 clients  {value:6.2f}")
    work = prepare(Scenario(), {**MODEL, "federation.local_steps": 4, "federation.rounds": 8, "partition.clients": 8})
    one, two = [], []
    for _ in range(2):  # alternating, so that a busy machine slows both
        one += timed("ray", work, workers=1)
        two += timed("ray", work, workers=2)
    ratio = statistics.median(one) / statistics.median(two)
    results |= {"one-worker": statistics.median(one), "two-workers": statistics.median(two), "speed-up": ratio}
    print(f"ray, 8 clients x 4 private steps: {results['one-worker']:.2f} s with one worker,", end=" ")
    print(f"{results['two-workers']:.2f} s with two")
    print(f"  speed-up {ratio:.2f}   goal 1.7")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
