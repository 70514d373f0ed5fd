"""Throughput of a sweep against single runs: `python benchmarks/sweep.py [--jobs N] [--runs N]`.

Three numbers, all from the same scenario on the same machine in turn:

    single     runs per second of one worker process that does nothing else, its first run (imports, data, accounting)
               left out
    sweep      runs per second of N workers, from the first to the last outcome of steady work
    startup    seconds from the task to the first round in a warm worker; with a warm start (eia-8) the round of
               statistics is in it: 0.5 s of CPU time there, where a run from scratch takes 0.04 s

The share `sweep / (cores x single)` should be at least 0.9 on an idle machine. Other work on the machine hits both
sides alike, but not at the same moment: the single runs are timed before and after the sweep, and CPU seconds per run
are given beside wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from simulations.launch import prepare
from simulations.resources import cores
from simulations.scenarios import load
from simulations.sweep.pool import ProcessPool
from simulations.sweep.task import Outcome, Task

SETTINGS = {"federation.rounds": 60, "evaluation.windows": 48}


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="eia-8")
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--runs", type=int, default=8, help="per worker")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        before = measure(folder / "before", arguments.scenario, 1, max(2, arguments.runs // 2))
        sweep = measure(folder / "sweep", arguments.scenario, arguments.jobs, arguments.runs)
        after = measure(folder / "after", arguments.scenario, 1, max(2, arguments.runs // 2))
    single = statistics.fmean([before["runs_per_second"], after["runs_per_second"]])
    result = {
        "scenario": arguments.scenario,
        "settings": SETTINGS,
        "jobs": arguments.jobs,
        "single": [before, after],
        "sweep": sweep,
        "share": sweep["runs_per_second"] / (arguments.jobs * single),
        "share_by_cpu": statistics.fmean([before["cpu_per_run"], after["cpu_per_run"]]) / sweep["cpu_per_run"],
        "load": os.getloadavg(),
    }
    print(json.dumps(result, indent=1))


def measure(folder: Path, name: str, jobs: int, each: int) -> dict[str, float]:
    """Runs `each` warm runs on each of `jobs` workers, after a first one that warms it."""
    folder.mkdir()
    scenario = prepare(load(name), SETTINGS, out="unused")

    def tasks(seeds: range) -> list[Task]:
        made = [scenario.override({"run.seed": seed}) for seed in seeds]
        return [Task(f"{seed}", str(folder / f"{seed}"), one.flat()) for seed, one in zip(seeds, made, strict=True)]

    with ProcessPool(jobs, folder / "workers.log") as pool:
        for _ in pool.run(tasks(range(1, jobs + 1))):
            pass
        pids = [worker.process.pid for worker in pool.workers]
        began, used = time.monotonic(), sum(map(cpu_seconds, pids))
        found = [o for o in pool.run(tasks(range(100, 100 + jobs * each))) if isinstance(o, Outcome)]
        seconds, used = time.monotonic() - began, sum(map(cpu_seconds, pids)) - used
    assert all(outcome.status == "done" for outcome in found), [outcome.error for outcome in found]
    return {
        "runs": len(found),
        "runs_per_second": len(found) / seconds,
        "cpu_per_run": used / len(found),
        "startup": statistics.median(outcome.startup for outcome in found),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux)."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
