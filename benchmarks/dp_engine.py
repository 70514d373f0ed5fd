"""Cost of per-row clipping: every engine against the non-private step of the same model, in time and memory.

    python benchmarks/dp_engine.py --patches 1 4 8 --engines ghost native opacus-hooks --repeats 25
    python benchmarks/dp_engine.py --patches 8 --engines ghost --memory --append
    python benchmarks/dp_engine.py --report

Steps alternate in one process, so that a busy machine slows all alike; a figure is the median of CPU time over that of
the non-private forward and backward pass. Model: the project's transformer, 7 channels, 96 steps, depth 4 (patch 1 = 96
tokens, 4 = 24, 8 = 12). `whole-*` adds noise and the optimiser on both sides. `--memory` measures peak memory above the
resting process instead, each engine in a process of its own. Freed memory is kept in the process (`keep_freed_memory`),
as client processes do; `--default-allocator` leaves that out. Results are added to benchmarks/results/dp_engine.json;
`--report` writes the table beside it and the figure in docs/figures.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from dp_engine_steps import BASE, ENGINES, WHOLE_BASE, Cell, Step, make_step, make_task, steps  # noqa: E402

from fedpriv.privacy.engines.allocator import keep_freed_memory  # noqa: E402

RESULTS = HERE / "results" / "dp_engine.json"


def measure(functions: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each, run in turn; two rounds to warm up."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for function in [*functions.values()] * 2:
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name].append(time.process_time() - start)
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the median of the yardstick of each."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: value / medians[WHOLE_BASE if name.startswith("whole-") else BASE]
        for name, value in medians.items()
        if name not in (BASE, WHOLE_BASE)
    }


def peak_memory(name: str, cell: Cell, *, keep: bool) -> float:
    """Peak MB of a step above the resting process, in this process (Linux)."""
    torch.set_num_threads(cell.threads)
    if keep:
        keep_freed_memory()
    small = Cell(**{**asdict(cell), "batch": 2})
    make_step(name, small, make_task(small))()  # libraries and their buffers
    step = make_step(name, cell, make_task(cell))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work left behind must not hide what the step needs
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    step()
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])  # kB


def memory(names: list[str], cell: Cell, *, keep: bool) -> dict[str, float]:
    """Peak memory of each step, each in a fresh process."""
    found: dict[str, float] = {}
    for name in names:
        code = (
            f"import sys; sys.path.insert(0, {str(HERE)!r}); from dp_engine import Cell, peak_memory; "
            f"print(peak_memory({name!r}, Cell(**{asdict(cell)!r}), keep={keep!r}))"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.split()[-1])
    return found


def machine() -> dict[str, object]:
    """What the numbers depend on besides the code."""
    import opacus

    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    named = [line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    vectors = [word for word in ("avx2", "avx512f", "amx_tile") if f" {word} " in f"{cpu} "]
    return {
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "vectors": " ".join(vectors),
        "c library": " ".join(platform.libc_ver()),
        "torch": torch.__version__,
        "opacus": opacus.__version__,
        "python": platform.python_version(),
    }


def run(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    allocator = "default" if args.default_allocator else "freed memory kept"
    row: dict[str, Any] = asdict(cell) | {"allocator": allocator, "load": round(os.getloadavg()[0], 1)}
    if args.memory:
        return row | {"peak_mb": memory([BASE, *args.engines], cell, keep=not args.default_allocator)}
    torch.set_num_threads(cell.threads)
    seconds = measure(steps(args.engines, cell), args.repeats)
    base = {name: 1e3 * statistics.median(seconds[name]) for name in (BASE, WHOLE_BASE) if name in seconds}
    return row | {"repeats": args.repeats, "base_ms": base, "ratios": ratios(seconds)}


def add(row: dict[str, Any]) -> None:
    """Puts a row into the stored results; an older figure of the same setting and engine is replaced."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    stored["machine"] = machine()
    keys = (*Cell.__dataclass_fields__, "allocator")
    same = next((r for r in stored["rows"] if all(r[k] == row[k] for k in keys)), None)
    if same is None:
        stored["rows"].append(row)
    else:
        for name, value in row.items():
            same[name] = same.get(name, {}) | value if isinstance(value, dict) else value
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def main() -> None:
    """Measures the chosen cells and prints them; stores them unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--widths", type=int, nargs="+", default=[64])
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--draws", type=int, nargs="+", default=[1], help="diffusion draws per row")
    parser.add_argument("--microbatch", type=int, default=0, help="rows per physical batch of the private engines")
    parser.add_argument("--engines", nargs="+", default=["ghost", "native"], choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc's thresholds as they are")
    parser.add_argument("--dry", action="store_true", help="do not store the results")
    parser.add_argument("--report", action="store_true", help="only write the table and the figure")
    args = parser.parse_args()
    if args.report:
        from dp_engine_report import write

        write(RESULTS)
        return
    if not args.default_allocator:
        keep_freed_memory()
    for patch, width, batch, threads, draws in itertools.product(
        args.patches, args.widths, args.batches, args.threads, args.draws
    ):
        row = run(Cell(patch, width, batch, draws, threads, args.microbatch), args)
        found = row.get("peak_mb") or row["base_ms"] | row["ratios"]
        figures = "  ".join(f"{name} {value:.3g}" for name, value in found.items())
        print(f"patch {patch} width {width} batch {batch} threads {threads} draws {draws}: {figures}", flush=True)
        if not args.dry:
            add(row)


if __name__ == "__main__":
    main()
