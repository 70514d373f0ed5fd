"""Persistent worker processes, one thread each. A worker that dies is replaced and its run is tried once more."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

from fedpriv.errors import CheckFailed
from fedpriv.provenance import source_root
from simulations.processes import end
from simulations.sweep.task import Outcome, Task

SINGLE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ATTEMPTS = 2


@dataclass(frozen=True)
class Step:
    """A run has come to this round."""

    run: str
    round: int
    rounds: int


class Pool(Protocol):
    """Runs tasks; `processes` here, Ray in `simulations.sweep.ray_pool`."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Step | Outcome]:
        """Every task's outcome, in the order in which they end, with steps on the way."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    buffer: bytes = b""
    task: Task | None = None
    ready: bool = False
    pipe: int = field(init=False)

    def __post_init__(self) -> None:
        assert self.process.stdout is not None
        self.pipe = self.process.stdout.fileno()

    def lines(self) -> list[dict[str, Any]] | None:
        """What it has said since; None when it is gone."""
        data = os.read(self.pipe, 1 << 16)
        if not data:
            return None
        *whole, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in whole if line.strip()]

    def send(self, task: Task) -> None:
        assert self.process.stdin is not None
        self.task = task
        try:
            self.process.stdin.write(json.dumps(task.to_json()).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; its closed output says so in a moment


class ProcessPool:
    """Worker processes on this machine; use it as a context manager.

    Args:
        jobs: how many.
        log: where their standard error goes.

    Attributes:
        workers: the processes at work.
    """

    def __init__(self, jobs: int, log: Path) -> None:
        self.jobs = jobs
        self._log: IO[bytes] = log.open("ab")
        self._selector = selectors.DefaultSelector()
        self.workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.process.stdin is not None:
                worker.process.stdin.close()
        end([worker.process.pid for worker in self.workers], wait=2.0)
        for worker in self.workers:
            worker.process.wait()
            if worker.process.stdout is not None:
                worker.process.stdout.close()
        self.workers = []
        self._selector.close()
        self._log.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[Step | Outcome]:
        """Every task's outcome, in the order in which they end, with steps on the way."""
        waiting, left, tries = deque(tasks), len(tasks), dict.fromkeys((task.run for task in tasks), 0)
        while len(self.workers) < min(self.jobs, len(tasks)):
            self._start()
        for worker in self.workers:
            if worker.ready and worker.task is None and waiting:
                self._give(worker, waiting, tries)
        while left:
            for key, _ in self._selector.select():
                worker: _Worker = key.data
                said = worker.lines()
                if said is None:
                    outcome = self._died(worker, waiting, tries)
                    if outcome is not None:
                        left -= 1
                        yield outcome
                    continue
                for message in said:
                    match message.pop("kind"):
                        case "ready":
                            worker.ready = True
                        case "progress":
                            yield Step(**message)
                            continue
                        case _:
                            worker.task = None
                            left -= 1
                            yield Outcome(**message)
                    if waiting:
                        self._give(worker, waiting, tries)

    def _give(self, worker: _Worker, waiting: deque[Task], tries: dict[str, int]) -> None:
        task = waiting.popleft()
        tries[task.run] += 1
        worker.send(task)

    def _start(self) -> None:
        env = {**os.environ, **dict.fromkeys(SINGLE_THREAD, "1"), "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(source_root()), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        worker = _Worker(process)
        self.workers.append(worker)
        self._selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _died(self, worker: _Worker, waiting: deque[Task], tries: dict[str, int]) -> Outcome | None:
        """Replaces a worker; the outcome of its run if that has been tried often enough."""
        self._selector.unregister(worker.pipe)
        self.workers.remove(worker)
        code, task = worker.process.wait(), worker.task
        if task is None and not worker.ready:
            raise CheckFailed(
                f"a worker process ended with code {code} before it was ready; its last words are in {self._log.name}. "
                "Finished runs are kept."
            )
        self._start()
        if task is None:
            return None
        if tries[task.run] < ATTEMPTS:
            waiting.appendleft(task)
            return None
        return Outcome(run=task.run, status="failed", seconds=0.0, error=f"the worker process died ({_cause(code)})")


def _cause(code: int) -> str:
    if code == -9:
        return "killed by signal 9; perhaps there was not enough memory for so many workers: try fewer --jobs"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
