"""A sweep that is killed gives the tables of one that is not: `python benchmarks/sweep_kill.py [SWEEP] [--full]`.

The sweep (by default the quick version of `clippers-noniid`) runs once undisturbed and once with its whole process
group, workers included, killed by SIGKILL at random moments, each time resumed. Then every table is compared byte by
byte: results.parquet, sweep.toml, tuning.json, comparison.json, and runs.json without times. Both folders are kept.

One JSON object says what was seen: wall and CPU time of both passes and of every session, when it was killed, runs that
were half done then, the load of the machine, and which tables are the same. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("results.parquet", "sweep.toml", "tuning.json", "comparison.json")
_TIMES = ("seconds", "startup")


def main() -> None:
    """Runs both passes and compares; prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", default="clippers-noniid")
    parser.add_argument("--full", action="store_true", help="not the quick version")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("sweep-kill"))
    parser.add_argument("--jobs", type=int, default=0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "fedpriv", "compare", arguments.sweep, *([] if arguments.full else ["--quick"])]
    command += ["--jobs", str(arguments.jobs)] if arguments.jobs else []
    arguments.out.mkdir(parents=True, exist_ok=True)

    quiet = session([*command, "--out", str(arguments.out / "quiet")], arguments.out / "quiet.log", after=None)
    say(f"undisturbed: {quiet['wall']:.0f} s")
    # the last kill falls well before the end: a session begins anew with what it had half done
    rng = random.Random(arguments.seed)
    moments = sorted(rng.uniform(0.05, 0.9) * quiet["wall"] for _ in range(arguments.kills))
    lengths = [moment - before for before, moment in zip([0.0, *moments], moments, strict=False)]
    killed_folder = arguments.out / "killed"
    sessions: list[dict[str, Any]] = []
    for length in [*lengths, None]:
        resumed = ["--resume"] if (killed_folder / "sweep.toml").exists() else []
        log = arguments.out / f"killed-{len(sessions) + 1}.log"
        sessions.append(session([*command, "--out", str(killed_folder), *resumed], log, after=length))
        sessions[-1]["half_done"] = half_done(killed_folder)
        say(f"session {len(sessions)}: {sessions[-1]}")
    there = [name for name in TABLES if name != "tuning.json" or (arguments.out / "quiet" / "tuning").exists()]
    same = {name: digest(arguments.out / "quiet" / name) == digest(killed_folder / name) for name in there}
    same["runs.json without times"] = outcomes(arguments.out / "quiet") == outcomes(killed_folder)
    result = {
        "command": command[1:],
        "cores": len(os.sched_getaffinity(0)),
        "undisturbed": quiet,
        "killed": {
            "wall": sum(one["wall"] for one in sessions),
            "cpu": sum(one["cpu"] for one in sessions),
            "sessions": sessions,
        },
        "runs": len(outcomes(killed_folder)),
        "same": same,
    }
    print(json.dumps(result, indent=1))
    sys.exit(0 if all(same.values()) and quiet["code"] == sessions[-1]["code"] == 0 else 1)


def session(command: list[str], log: Path, *, after: float | None) -> dict[str, Any]:
    """One call of the command, in a process group of its own that is killed `after` so many seconds.

    Workers notice within a quarter of a second that their parent is gone; here they die with it, in mid-write.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began, used, load = time.monotonic(), children(), os.getloadavg()[0]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        killed = 0.0
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            killed = workers_cpu(process.pid)  # nobody will wait for them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {
        "wall": round(time.monotonic() - began, 1),
        "cpu": round(children() - used + killed, 1),
        "killed": killed > 0,
        "code": process.returncode,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def workers_cpu(group: int) -> float:
    """CPU seconds so far of the living processes of a group but its leader (Linux)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group and int(stat.parent.name) != group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children() -> float:
    """CPU seconds of processes that have ended and been waited for, with those that they waited for."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def half_done(folder: Path) -> int:
    """Runs (of tuning too) that have begun and are not through."""
    begun = [*folder.glob("runs/*/scenario.toml"), *folder.glob("tuning/runs/*/scenario.toml")]
    return sum(not (path.parent / "result.json").is_file() for path in begun)


def digest(path: Path) -> str:
    """Of a file; its name if it is missing, so that nothing is equal to a missing file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else f"{path} is missing"


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """runs.json without what depends on the clock."""
    entries = json.loads((folder / "runs.json").read_text())["runs"]
    return [{k: v for k, v in entry.items() if k not in _TIMES} for entry in entries]


def say(text: str) -> None:
    """To standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
