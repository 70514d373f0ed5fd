"""Finding and ending the processes that a launch started, by id; nothing else is ever touched."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Children, grandchildren ... of `pid` as the system lists them now."""
    parents: dict[int, list[int]] = {}
    for child, parent in _pairs():
        parents.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def marked(name: str, value: str) -> set[int]:
    """Processes that were started with the environment variable `name` set to `value` (Linux; elsewhere none).

    Detached grandchildren lose their ancestry when their parent ends, but not their environment.
    """
    mark = f"{name}={value}".encode()
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def end(pids: Iterable[int], first: signal.Signals = signal.SIGTERM, *, wait: float = 5.0) -> None:
    """Asks the processes to end, waits up to `wait` seconds, then kills what is left."""
    left = [pid for pid in pids if _signal(pid, first)]
    deadline = time.monotonic() + wait
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if alive(pid)]
    for pid in left:
        _signal(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected by its parent does not."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()


def _pairs() -> list[tuple[int, int]]:
    """(pid, parent) of all processes."""
    if Path("/proc/self/stat").exists():
        pairs: list[tuple[int, int]] = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                after = (entry / "stat").read_text().rpartition(")")[2].split()
                pairs.append((int(entry.name), int(after[1])))
            except (OSError, IndexError, ValueError):
                continue
        return pairs
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return [(int(a), int(b)) for a, b in (line.split() for line in listed.splitlines() if len(line.split()) == 2)]


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True
