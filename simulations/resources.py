"""From cores and GPUs to client processes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedpriv.errors import InputError


@dataclass(frozen=True)
class Workers:
    """How many client processes run at a time and what each may use."""

    count: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0


def cores() -> int:
    """Cores that this process may use (a container or `taskset` may allow fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def plan(
    asked: int, clients: int, nodes: Iterable[Mapping[str, float]], *, num_cpus: float = 1.0, num_gpus: float = 0.0
) -> Workers:
    """Workers for `clients` clients on machines that have `nodes`' resources.

    Args:
        asked: run.workers; 0: as many as fit.
        clients: more workers than clients would idle.
        nodes: per machine, {"CPU": cores, "GPU": devices}; an actor never spans two machines.
        num_cpus: cores per worker.
        num_gpus: GPUs per worker, may be a fraction.

    Raises:
        InputError: not one worker fits.
    """
    machines = [dict(node) for node in nodes]
    fits = sum(_fits(machine, num_cpus, num_gpus) for machine in machines)
    if fits == 0:
        have = ", ".join(f"{m.get('CPU', 0):g} cores and {m.get('GPU', 0):g} GPUs" for m in machines) or "no machine"
        raise InputError(
            f"a client process needs {num_cpus:g} cores and run.num_gpus={num_gpus:g} GPUs, but there are {have}; "
            "nothing was started."
        )
    count = min(fits, asked) if asked else fits
    return Workers(max(1, min(count, clients)), num_cpus, num_gpus)


def _fits(machine: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    by_cpu = math.floor(machine.get("CPU", 0.0) / num_cpus + 1e-9)
    if num_gpus <= 0:
        return by_cpu
    # A fraction cannot be put together from two devices.
    devices = math.floor(machine.get("GPU", 0.0) + 1e-9)
    per_device = math.floor(1.0 / num_gpus + 1e-9) if num_gpus <= 1 else 0
    by_gpu = devices * per_device if per_device else math.floor(devices / num_gpus)
    return min(by_cpu, by_gpu)
