"""Cost of per-row clipping: every engine against the non-private step of the same model, in time and memory.

    python benchmarks/dp_engine.py --patches 1 4 8 --engines ghost native opacus-hooks --repeats 25
    python benchmarks/dp_engine.py --patches 8 --engines ghost --memory --append
    python benchmarks/dp_engine.py --grid --minutes 25
    python benchmarks/dp_engine.py --report

Steps alternate in one process, so that a busy machine slows all alike; a figure is the median, over the rounds, of a
step's CPU time over that of the non-private forward and backward pass of the same round. Model: the project's
transformer, 7 channels, 96 steps, depth 4 (patch 1 = 96 tokens, 4 = 24, 8 = 12). `whole-*` adds noise and the
optimiser on both sides. `--memory` measures peak memory above the resting process instead, each engine in a process
of its own. Freed memory is kept in the process (`keep_freed_memory`), as client processes do; `--default-allocator`
leaves that out. `--grid` measures every engine in every cell (patch, width, batch, threads), the standard ones first;
it leaves out what is stored of the same engines' code and stops after `--minutes`, so that it can be run again and
again until it is through. Results are added to benchmarks/results/dp_engine.json; `--report` writes the table beside
it and the figure in docs/figures.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import itertools
import json
import math
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that spins while it waits would count as busy

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from dp_engine_steps import BASE, ENGINES, WHOLE_BASE, Cell, Step, make_step, make_task, steps  # noqa: E402

from fedpriv.privacy.engines.allocator import keep_freed_memory  # noqa: E402

RESULTS = HERE / "results" / "dp_engine.json"
LEAST = 3  # rounds
SLOW = ("single",)  # measured in cells of the standard width and batch only


def measure(functions: dict[str, Step], repeats: int, seconds: float = math.inf) -> dict[str, list[float]]:
    """CPU seconds of each, run in turn after a round to warm up; no new round, once three are done, after `seconds`."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    begin = time.monotonic()
    for done in range(repeats):
        if done >= LEAST and time.monotonic() - begin > seconds:
            break
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name].append(time.process_time() - start)
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over rounds of each step's time over the yardstick's in the same round."""
    return {
        name: statistics.median(map(operator.truediv, values, seconds[_base(name)]))
        for name, values in seconds.items()
        if name not in (BASE, WHOLE_BASE)
    }


def _base(name: str) -> str:
    return WHOLE_BASE if name.startswith("whole-") else BASE


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


def run(cell: Cell, args: argparse.Namespace, engines: Sequence[str], seconds: float = math.inf) -> dict[str, Any]:
    """One row of the table."""
    allocator = "default" if args.default_allocator else "freed memory kept"
    row: dict[str, Any] = asdict(cell) | {
        "allocator": allocator,
        "code": code(),
        "load": round(os.getloadavg()[0], 1),
    }
    if args.memory:
        return row | {"peak_mb": memory([BASE, *engines], cell, keep=not args.default_allocator)}
    torch.set_num_threads(cell.threads)
    taken = measure(steps(engines, cell), args.repeats, seconds)
    base = {name: 1e3 * statistics.median(taken[name]) for name in (BASE, WHOLE_BASE) if name in taken}
    return row | {"rounds": len(taken[BASE]), "base_ms": base, "ratios": ratios(taken)}


@lru_cache(maxsize=1)
def code() -> str:
    """Of the measured code: a digest of the engines' sources, which decide the figures."""
    total = hashlib.sha256()
    for path in sorted((HERE.parent / "fedpriv" / "privacy" / "engines").glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:7]


def grid(args: argparse.Namespace) -> None:
    """Every cell, the standard ones first; what is stored of this code is left out."""
    end = time.monotonic() + 60 * args.minutes
    cells = [Cell(*setting) for setting in itertools.product((8, 4, 1), (64, 128), (64, 256), (1,), args.threads)]
    cells.sort(key=lambda c: (c.width * c.batch, c.threads))
    for cell in cells:
        standard = cell.width == cell.batch == 64
        wanted = [name for name in args.engines if standard or name not in SLOW]
        stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        known = {n for r in stored if r["code"] == code() and _setting(r) == _setting(asdict(cell) | KEPT)
                 for n in r.get("ratios", {})}  # fmt: skip
        wanted = [name for name in wanted if name not in known]
        if time.monotonic() > end:
            print(f"not measured: {cell} {' '.join(wanted)}", flush=True)
        elif wanted:
            show(cell, run(cell, args, wanted, args.seconds), args)


KEPT = {"allocator": "freed memory kept"}


def _setting(row: Mapping[str, Any]) -> list[Any]:
    return [row.get(key) for key in (*Cell.__dataclass_fields__, "allocator")]


def show(cell: Cell, row: dict[str, Any], args: argparse.Namespace) -> None:
    """Prints a row and stores it."""
    found = row.get("peak_mb") or row["base_ms"] | row["ratios"]
    figures = "  ".join(f"{name} {value:.3g}" for name, value in found.items())
    print(f"{cell} rounds {row.get('rounds', 1)} load {row['load']}: {figures}", flush=True)
    if not args.dry:
        add(row)


def add(row: dict[str, Any]) -> None:
    """Adds a row to the stored results; older figures of its setting and engines go, whatever code they are of.

    Rows of one setting are kept apart: each has the load, the rounds and the yardstick of its own run.
    """
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    stored["machine"] = machine()
    kinds = [kind for kind in ("ratios", "peak_mb") if kind in row]
    for old in stored["rows"]:
        for kind in kinds:
            if _setting(old) == _setting(row) and kind in old:
                old[kind] = {name: value for name, value in old[kind].items() if name == BASE or name not in row[kind]}
    stored["rows"] = [r for r in stored["rows"] if r.get("ratios") or set(r.get("peak_mb", {})) - {BASE}]
    stored["rows"].append(row)
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
    parser.add_argument("--grid", action="store_true", help="all cells, as far as --minutes go")
    parser.add_argument("--minutes", type=float, default=25.0, help="of the grid: no cell is begun later")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a cell, once three rounds are done")
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
    if args.grid:
        grid(args)
        return
    settings = itertools.product(args.patches, args.widths, args.batches, args.draws, args.threads)
    for setting in settings:
        cell = Cell(*setting, args.microbatch)
        show(cell, run(cell, args, args.engines, args.seconds), args)


if __name__ == "__main__":
    main()
