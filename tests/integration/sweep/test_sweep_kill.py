"""A sweep that is killed again and again gives the tables of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SWEEP = """
[sweep]
name = "killed"
seeds = 2

[base.data]
days = 150
[base.partition]
clients = 2
[base.federation]
rounds = 80
[base.model]
depth = 0
[base.evaluation]
windows = 8
samples = 4
[base.diffusion]
sampling_steps = 4

[grid]
"privacy.clipper" = ["flat", "psac", "auto-s", "nsgd"]
"""


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedpriv", "compare", str(folder.parent / "sweep.toml"), "--out", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--jobs", "2", *more], env=env, cwd=folder.parent, stderr=subprocess.DEVNULL)


def marks(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}


def checkpoints(folder: Path) -> int:
    return len(list(folder.glob("runs/*/checkpoint.safetensors")))


@pytest.mark.slow
def test_three_kills_change_no_byte_of_the_table(tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    assert start(quiet).wait(1200) == 0

    for finished in (1, 3, 5):
        process = start(killed, *(["--resume"] if killed.exists() else []))
        end = time.monotonic() + 600
        # kill in mid-run: as many are through, and another one has begun
        while len(marks(killed)) < finished or checkpoints(killed) <= len(marks(killed)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        before = marks(killed)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "results.parquet").exists()
    assert start(killed, "--resume").wait(1200) == 0

    assert (killed / "results.parquet").read_bytes() == (quiet / "results.parquet").read_bytes()
    assert (killed / "sweep.toml").read_bytes() == (quiet / "sweep.toml").read_bytes()
    assert before.items() <= marks(killed).items()  # what was through has not been run again
    states = [json.loads(path.read_text()) for path in killed.glob("runs/*/run.json")]
    assert len(states) == 8 and all(state["status"] == "done" for state in states)
    assert any(state.get("resumed") for state in states)  # and a half-done run went on
    entries = json.loads((killed / "runs.json").read_text())["runs"]
    assert [entry["status"] for entry in entries] == ["done"] * 8

    again = subprocess.run(start(killed).args, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert again.returncode == 2 and b"add --resume" in again.stderr
