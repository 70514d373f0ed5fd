"""The pool on Ray: the same bytes as worker processes, and a worker that dies harms only its own run."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from safetensors.numpy import load_file

from simulations.sweep import run as launch
from simulations.sweep.ray_pool import RayPool
from simulations.sweep.spec import Spec
from simulations.sweep.task import Outcome, Task, execute

pytest.importorskip("ray")
SMALL = {
    "data": {"days": 90},
    "partition": {"clients": 2},
    "federation": {"rounds": 3},
    "model": {"depth": 0},
    "evaluation": {"windows": 4, "samples": 4},
}


def spec(**parts):
    return Spec.make({"sweep": {"name": "x", "seeds": 2}, "base": SMALL, **parts})


@pytest.mark.slow
def test_ray_gives_the_bytes_of_worker_processes(tmp_path):
    sweep = spec(grid={"privacy.clipper": ["flat", "psac"]})
    by_ray = launch.compare(sweep, out=tmp_path / "ray", engine="ray", jobs=2, page=False)
    by_processes = launch.compare(sweep, out=tmp_path / "processes", jobs=2, page=False)
    assert [entry["status"] for entry in by_ray.runs] == ["done"] * 4
    for name in ("results.parquet", "sweep.toml"):
        assert (by_ray.path / name).read_bytes() == (by_processes.path / name).read_bytes()
    for folder in (by_ray.path / "runs").iterdir():
        twin = by_processes.path / "runs" / folder.name
        assert (folder / "metrics.json").read_bytes() == (twin / "metrics.json").read_bytes()
        one, two = (load_file(place / "model.safetensors") for place in (folder, twin))
        assert {name: part.tobytes() for name, part in one.items()} == {n: part.tobytes() for n, part in two.items()}


@pytest.mark.slow
def test_a_ray_worker_that_dies_is_replaced_and_its_run_goes_on(tmp_path):
    """One killed once is tried again and comes to its end; one killed every time is a failure, the others are done."""
    scenario = spec(set={"federation.rounds": 400}).scenario()
    tasks = [
        Task(name, str(tmp_path / name), scenario.override({"run.seed": seed, **rounds}).flat())
        for name, seed, rounds in (
            ("once", 1, {}),
            ("always", 2, {}),
            ("never", 3, {"federation.rounds": 3}),
        )
    ]
    killed: dict[str, set[int]] = {"once": set(), "always": set()}
    stop = threading.Event()

    def kill(name: str, times: int) -> None:
        """Whoever holds the lock of a run that has begun to train."""
        lock, checkpoint = tmp_path / name / ".lock", tmp_path / name / "checkpoint.safetensors"
        while not stop.is_set() and len(killed[name]) < times:
            time.sleep(0.02)
            if not checkpoint.exists():
                continue
            try:
                words = lock.read_text().split()  # pid 123 on HOST
            except OSError:
                continue
            pid = int(words[1]) if len(words) > 1 else os.getpid()
            if pid not in killed[name] and pid != os.getpid():
                killed[name].add(pid)
                os.kill(pid, signal.SIGKILL)

    threads = [threading.Thread(target=kill, args=args, daemon=True) for args in (("once", 1), ("always", 2))]
    with RayPool(2) as pool:
        for thread in threads:
            thread.start()
        found = {event.run: event for event in pool.run(tasks) if isinstance(event, Outcome)}
    stop.set()
    for thread in threads:
        thread.join()
    assert (len(killed["once"]), len(killed["always"])) == (1, 2)
    assert {name: outcome.status for name, outcome in found.items()} == {
        "once": "done", "always": "failed", "never": "done",
    }  # fmt: skip
    assert "the Ray worker died" in found["always"].error
    assert Outcome.read(tmp_path / "always") is None  # --resume tries it again
    undisturbed = scenario.override({"run.seed": 1})
    quiet = execute(Task("quiet", str(tmp_path / "quiet"), undisturbed.flat()), lambda done, rounds: None)
    assert quiet.status == "done"
    assert (tmp_path / "once" / "metrics.json").read_bytes() == (tmp_path / "quiet" / "metrics.json").read_bytes()
