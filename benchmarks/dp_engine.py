"""Cost of per-row clipping: each gradient engine against the non-private step of the same model.

    python benchmarks/dp_engine.py --patches 1 4 8 --repeats 15 --out table.json

Steps alternate in one process and one thread, so that a busy machine slows all alike; the figure is the median of
CPU time, as a ratio to the non-private forward and backward pass. Model: the project's transformer, 7 channels, 96
steps, depth 4 (patch 1 = 96 tokens, 4 = 24, 8 = 12). `--allocator` applies `keep_freed_memory` first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedpriv.config import Scenario
from fedpriv.diffusion.loss import make_loss
from fedpriv.models.denoiser import build_denoiser
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.allocator import keep_freed_memory

CHANNELS, FEATURES, WINDOW = 7, 7, 96


def steps(patch: int, width: int, batch: int, draws: int, engines: list[str]) -> dict[str, Callable[[], object]]:
    """The timed functions for one setting."""
    scenario = Scenario().override(
        {
            "task.context": 72,
            "task.horizon": 24,
            "model.patch": patch,
            "model.width": width,
            "model.trainable": "all",
            "diffusion.multiplicity": draws,
        }
    )
    generator = torch.Generator().manual_seed(0)
    model = build_denoiser(scenario, channels=CHANNELS, calendar_features=FEATURES, generator=generator)
    randomised(model, generator, 0.02)
    loss = make_loss(scenario.diffusion)
    examples, noise = made_up(
        batch,
        generator,
        draws=draws,
        length=WINDOW,
        channels=CHANNELS,
        features=FEATURES,
        times=scenario.diffusion.steps,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    clipper = make_clipper("auto-s", bound=1.0)
    made = {name: make_engine(name, model, loss) for name in engines}

    def non_private() -> object:
        return torch.autograd.grad(loss(model, examples, noise).mean(), parameters)

    def private(name: str) -> Callable[[], object]:
        return lambda: made[name].clipped_sum(examples, noise, clipper)

    return {"non-private": non_private} | {name: private(name) for name in engines}


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, run in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measures, prints a table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=1, help="diffusion draws per row")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=["ghost", "functional", "opacus", "single"])
    parser.add_argument("--allocator", action="store_true", help="keep freed memory in the process (glibc)")
    parser.add_argument("--out", type=Path, help="write the table here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    allocator = "glibc, thresholds raised" if args.allocator and keep_freed_memory() else "default"
    table: list[dict[str, object]] = []
    print(f"width {args.width}, batch {args.batch}, draws {args.draws}, threads {args.threads}, allocator {allocator}")
    print("patch  non-private ms  " + "  ".join(f"{name:>10}" for name in args.engines))
    for patch in args.patches:
        seconds = measure(steps(patch, args.width, args.batch, args.draws, args.engines), args.repeats)
        base = seconds["non-private"]
        ratios = {name: seconds[name] / base for name in args.engines}
        print(f"{patch:5d}  {1e3 * base:14.1f}  " + "  ".join(f"{ratios[name]:10.2f}" for name in args.engines))
        table.append({"patch": patch, "non_private_ms": 1e3 * base, "ratios": ratios})
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "patches", "engines")}
        machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        description = {**settings, "allocator": allocator, **machine}
        args.out.write_text(json.dumps({"description": description, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
