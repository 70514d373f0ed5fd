"""A federation of real processes on the loopback interface, started by the commands that people type."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.enrolment import Owner, init
from fedpriv.config import Scenario
from fedpriv.privacy.ledger import Ledger
from simulations import federation_setup
from simulations.processes import end, marked

WORD, NUMBER = "SECRET-4711", 471147.0625  # planted in file and column names, and in readings
SLOW = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # how much longer everything takes on a busy machine
PATIENCE = 120.0 * SLOW  # seconds
SCENARIO = {
    "data.days": 90, "task.context": 48, "model.depth": 0, "diffusion.multiplicity": 2, "diffusion.sampling_steps": 2,
    "privacy.sampling_prob": 0.3, "privacy.epsilon": 4.0, "federation.local_steps": 2, "run.name": "loopback",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Site:
    """Everything of one test: a server, its nodes, and the processes that were started."""

    def __init__(self, home: Path) -> None:
        self.home, self.fed = home, home / "fed"
        self.port = free_port()
        self.started: list[subprocess.Popen] = []

    def fedpriv(self, *words: object) -> str:
        """A command that must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "fedpriv", *map(str, words)], capture_output=True, text=True, cwd=self.home
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *words: object) -> subprocess.Popen:
        """A command that goes on; its output is in FILE.out."""
        out = (self.home / f"{words[0]}-{words[1]}-{len(self.started)}.out").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "fedpriv", *map(str, words)], stdout=out, stderr=out, cwd=self.home
        )
        self.started.append(process)
        return process

    def serve(self, *, clients: int, tls: tuple[str, ...] = (), **changes: object) -> None:
        """The server's folder; made in this process, because each start of Python costs seconds."""
        changes.setdefault("federation__deadline", 15.0 * SLOW)
        scenario = Scenario().override({**SCENARIO, **{k.replace("__", "."): v for k, v in changes.items()}})
        federation_setup.init(self.fed, scenario, clients=clients, port=self.port, tls=tls, insecure=not tls)

    def join(self, name: str, *, epsilon: float = 8.0) -> Path:
        """A utility with its own file, whose names and readings hold the secret."""
        folder = self.home / f"{WORD}-{name}"
        folder.mkdir()
        rng = np.random.default_rng(len(name))
        stamps = pd.date_range("2024-01-01", periods=90 * 24, freq="h")
        values = 50 + 20 * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24) + rng.normal(0, 3, len(stamps))
        values[[100, 700]] = NUMBER
        path = folder / f"{WORD}-load.csv"
        pd.DataFrame({"time": stamps, f"{WORD}-meter": values}).to_csv(path, index=False)
        owner = Owner(client=name, data={"source": "csv", "path": str(path)}, epsilon=epsilon)
        init(folder / "node", owner, [self.fed / "scenario.toml"])
        return folder / "node"

    def status(self) -> dict:
        try:
            return json.loads((self.fed / "run" / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    def wait(self, condition, what: str, *, alive: tuple[subprocess.Popen, ...] = ()) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what} did not happen; {self.status()}\n{self.output()}"
            for process in alive:
                assert process.poll() is None, f"ended while waiting for: {what}\n{self.output()}"
            time.sleep(0.1)

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.home.glob("*.out")))

    def kill(self, home: Path) -> None:
        """SIGKILL to all processes with this Flower home."""
        for pid in marked("FLWR_HOME", str(home)):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        homes = [self.fed / "superlink" / "home", *self.home.glob("*/node/flower")]
        end({pid for home in homes for pid in marked("FLWR_HOME", str(home))}, signal.SIGKILL)


def rows(node: Path) -> list[dict]:
    with Ledger.open(node / "ledger.sqlite", readonly=True) as ledger:
        assert ledger.verify() == []
        return ledger.rows()


def paid(node: Path) -> int:
    return sum(row["tokens"] for row in rows(node) if row["kind"] == "reserve")


def holds_secret(data: bytes) -> bool:
    shown = f"{NUMBER:.4f}".encode()
    patterns = [WORD.encode(), shown, np.float32(NUMBER).tobytes(), np.float64(NUMBER).tobytes()]
    return any(pattern in data for pattern in patterns)


@pytest.fixture
def chain():
    """`chain(node)`: the rows of a node's ledger, which must be sound."""
    return rows


@pytest.fixture
def spent():
    """`spent(node)`: private steps that its ledger has reserved."""
    return paid


@pytest.fixture
def leaks():
    """`leaks(data)`: whether the planted secret is in some bytes."""
    return holds_secret


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()
