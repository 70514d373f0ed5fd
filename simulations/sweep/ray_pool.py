"""The same pool on Ray: an actor for each worker, with a share of a GPU if the scenario asks for one.

On a cluster the sweep folder (and the data) must lie where all machines see them.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from fedpriv.errors import InputError
from simulations.resources import plan
from simulations.sweep.pool import ATTEMPTS, Step
from simulations.sweep.task import Outcome, Task, execute


class _Actor:
    """The body of an actor; Ray makes it remote."""

    def execute(self, task: dict[str, Any]) -> Outcome:
        """One run, as `simulations.sweep.worker` does it."""
        import torch

        torch.set_num_threads(1)
        return execute(Task(**task), lambda done, rounds: None)


class RayPool:
    """Actors on Ray; use it as a context manager.

    Args:
        jobs: how many; fewer if fewer fit.
        num_gpus: GPUs per worker, may be a fraction.
        address: of an existing cluster; empty: a local Ray, shut down at the end.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or no worker fits on it.
    """

    def __init__(self, jobs: int, *, num_gpus: float = 0.0, address: str = "") -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError(
                "--engine ray needs Ray, which is not installed here; use --engine processes, or install it. Nothing "
                "was started."
            )
        import ray

        from simulations.ray_grid import connect

        self._stop_ray = connect(address, jobs, num_gpus)
        nodes = [node["Resources"] for node in ray.nodes() if node.get("Alive", True) and node.get("Resources")]
        self._workers = plan(jobs, jobs, nodes, num_cpus=1.0, num_gpus=num_gpus)
        self._actors: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._stop_ray:
            ray.shutdown()

    def run(self, tasks: Sequence[Task]) -> Iterator[Step | Outcome]:
        """Every task's outcome, in the order in which they end; Ray tells no steps on the way."""
        import ray
        from ray.exceptions import RayError

        waiting, tries = deque(tasks), dict.fromkeys((task.run for task in tasks), 0)
        while len(self._actors) < min(self._workers.count, len(tasks)):
            self._actors.append(self._new())
        idle, running = list(self._actors), cast("dict[Any, tuple[Any, Task]]", {})
        while waiting or running:
            while waiting and idle:
                actor, task = idle.pop(), waiting.popleft()
                tries[task.run] += 1
                running[actor.execute.remote(task.to_json())] = (actor, task)
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                actor, task = running.pop(reference)
                try:
                    yield cast(Outcome, ray.get(reference))
                except RayError as error:
                    self._actors.remove(actor)
                    actor = self._new()
                    self._actors.append(actor)
                    if tries[task.run] < ATTEMPTS:
                        waiting.appendleft(task)
                    else:
                        text = f"the Ray worker died ({type(error).__name__})"
                        yield Outcome(run=task.run, status="failed", seconds=0.0, error=text)
                idle.append(actor)

    def _new(self) -> Any:
        import ray

        options = {"num_cpus": self._workers.num_cpus, "num_gpus": self._workers.num_gpus}
        return ray.remote(_Actor).options(**options).remote()
