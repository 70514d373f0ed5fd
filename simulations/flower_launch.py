"""The `flower` engine: `flwr run` from a neutral directory, with an own SuperLink that ends with the run.

What is done here against known traps of Flower 1.41: a fresh FLWR_HOME and port (an old daemon keeps the
environment of its first run), a bundle made of the very sources that run here (checked by digest in the client),
no dependency installation, no telemetry, no update check, and a process tree that is taken down by process id.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import tomli_w

from fedpriv.config import Scenario
from fedpriv.errors import BudgetExceeded, CheckFailed, FedprivError, InputError, LedgerError
from fedpriv.provenance import PACKAGES, source_root
from fedpriv.reports.folder import RunFolder
from simulations.processes import descendants, end, marked
from simulations.resources import cores, plan
from strategies.progress import Listener, Progress

_START_TIMEOUT = 90.0  # seconds until the SuperLink must answer
_POLL = 0.25
_CONNECTION = "fedpriv"
_ERRORS: Mapping[str, type[FedprivError]] = {
    kind.__name__: kind for kind in (InputError, BudgetExceeded, LedgerError, CheckFailed)
}


def environment(home: Path) -> dict[str, str]:
    """The variables of every process of a Flower simulation: offline, quiet, one thread per client, marked as ours."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "PYTHONPATH", "RAY_"))}
    env |= {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "FEDPRIV_SIMULATION": "1",
        # The installation that runs this, before any other on the PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    if "FEDPRIV_DATA_DIR" in env:  # the processes start in another directory
        env["FEDPRIV_DATA_DIR"] = str(Path(env["FEDPRIV_DATA_DIR"]).expanduser().resolve())
    return env


def write_bundle(target: Path) -> Path:
    """A Flower app at `target`: the sources that run here and a pyproject with the complete default scenario."""
    target.mkdir(parents=True)
    root = source_root()
    for package in PACKAGES:
        shutil.copytree(root / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    project = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {"name": "fedpriv", "version": "0.0.0", "dependencies": [], "license": {"text": "Apache-2.0"}},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedpriv",
                    "components": {"serverapp": "strategies.server_app:app", "clientapp": "clients.client_app:app"},
                    "config": nested(Scenario()),
                }
            }
        },
    }
    (target / "pyproject.toml").write_bytes(tomli_w.dumps(project).encode())
    return target


def run_flower(scenario: Scenario, folder: RunFolder, *, clients: int, listener: Listener | None = None) -> None:
    """Runs `scenario` with `flwr run` into `folder`; returns when it is done.

    Raises:
        InputError: Flower or Ray is not installed, does not start, or no client process fits on this machine.
        FedprivError: what the ServerApp ended with, by the kind that it wrote into run.json.
    """
    for tool in ("flwr", "flower-superlink"):
        tool_path(tool)
    workers = plan(
        scenario.run.workers,
        clients,
        [{"CPU": max(cores(), scenario.run.workers), "GPU": _gpus()}],
        num_gpus=scenario.run.num_gpus,
    )
    base = Path(tempfile.mkdtemp(prefix="fedpriv-flower-"))
    started = [os.getpid()]
    processes: list[subprocess.Popen[bytes]] = []
    log = (folder.path / "flower.log").open("ab")
    try:
        app = write_bundle(base / "fedpriv")
        (base / "config.toml").write_bytes(tomli_w.dumps(nested(scenario)).encode())
        env = environment(base / "home")
        port = free_port()
        processes.append(_superlink(base, env, port, log))
        wait_until_up(processes[0], f"http://127.0.0.1:{port}", folder.path / "flower.log")
        resources = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus={workers.count}"
        if scenario.run.num_gpus:
            resources += f" client-resources-num-gpus={scenario.run.num_gpus}"
        command = [tool_path("flwr"), "run", str(app), _CONNECTION, "--stream"]
        command += ["--federation-config", resources, "-c", str(base / "config.toml")]
        neutral = base / "cwd"
        neutral.mkdir(exist_ok=True)
        processes.append(
            subprocess.Popen(command, cwd=neutral, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
        _follow(processes[1], processes[0], folder.path, scenario, clients, listener)
        raise_outcome(folder.path)
    except KeyboardInterrupt:
        take_down(processes, base, started)
        RunFolder.open(folder.path).update_status(status="interrupted", reason="stopped by the user")
        raise
    finally:
        take_down(processes, base, started)
        log.close()
        shutil.rmtree(base, ignore_errors=True)


# ---- pieces --------------------------------------------------------------------------------------------


def nested(scenario: Scenario) -> dict[str, dict[str, Any]]:
    """Flower's run config: nested tables of scalars, lists as JSON text."""
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in scenario.flat().items():
        section, _, key = dotted.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def tool_path(name: str) -> str:
    """Where a command of Flower's is: beside this Python, else on the PATH.

    Raises:
        InputError: nowhere.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InputError(f"the command {name} of Flower is needed and not installed. Nothing was started.")
    return found


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _superlink(base: Path, env: dict[str, str], port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    home, neutral = base / "home", base / "cwd"
    home.mkdir()
    neutral.mkdir(exist_ok=True)
    connection = {"default": _CONNECTION, _CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}
    (home / "config.toml").write_bytes(tomli_w.dumps({"superlink": connection}).encode())
    command = [tool_path("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return subprocess.Popen(
        command, cwd=neutral, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path, context: ssl.SSLContext | None = None) -> None:
    """Waits until the SuperLink at `url` answers.

    Raises:
        InputError: it ended, or said nothing for a minute and a half.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InputError(
                f"Flower's SuperLink ended with code {process.returncode}; see {log}. Nothing was started."
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1.0, context=context) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL)
    raise InputError(f"Flower's SuperLink did not answer within {_START_TIMEOUT:g} s; see {log}. Nothing was started.")


def _follow(
    run: subprocess.Popen[bytes],
    superlink: subprocess.Popen[bytes],
    folder: Path,
    scenario: Scenario,
    clients: int,
    listener: Listener | None,
) -> None:
    """Waits for the end; passes on what run.json says about rounds."""
    shown = -1
    while run.poll() is None:
        status = read_status(folder)
        number = status.get("round")
        if listener is not None and isinstance(number, int) and number != shown:
            shown = number
            epsilon = status.get("epsilon")
            listener(
                Progress(
                    "round",
                    number,
                    scenario.federation.rounds,
                    clients,
                    epsilon=float(epsilon) if isinstance(epsilon, int | float) else None,
                )
            )
        if superlink.poll() is not None or status.get("status") in ("done", "failed", "refused"):
            grace(run.poll, 20.0)
            return
        time.sleep(_POLL)


def grace(ended: Callable[[], int | None], seconds: float) -> None:
    """Gives a process some seconds to end by itself."""
    deadline = time.monotonic() + seconds
    while ended() is None and time.monotonic() < deadline:
        time.sleep(_POLL)


def read_status(folder: Path) -> dict[str, Any]:
    """run.json as it stands; empty where there is none yet."""
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def raise_outcome(folder: Path) -> None:
    """Returns when run.json says `done`; otherwise raises what the ServerApp ended with."""
    status = read_status(folder)
    state, log = status.get("status"), folder / "flower.log"
    if state == "done":
        return
    reason = str(status.get("reason", ""))
    if state in ("failed", "refused"):
        raise _ERRORS.get(str(status.get("error")), CheckFailed)(reason)
    raise _from_log(log.read_text(encoding="utf-8", errors="replace")[-20_000:], log)


def _from_log(text: str, log: Path) -> FedprivError:
    """What Flower's own output says, in words that help."""
    for sign, error in (
        (
            "ActorPool is empty",
            InputError("no client process fits on this machine; lower run.num_gpus. Nothing was trained."),
        ),
        ("not present in the main dictionary", CheckFailed("the bundle and the scenario have different keys.")),
        ("No module named", CheckFailed("a package is missing in Flower's processes; is this environment complete?")),
        ("Exit Code: 608", CheckFailed("Flower tried to install dependencies; a variable of the launcher was lost.")),
        ("Exit Code: 305", CheckFailed("Flower refused the connection between its own processes.")),
    ):
        if sign in text:
            return type(error)(f"{error} See {log}.")
    return CheckFailed(f"Flower ended without finishing the run; see {log}. Add --resume to go on from the checkpoint.")


def take_down(processes: list[subprocess.Popen[bytes]], base: Path, keep: list[int]) -> None:
    """Ends what this launch started: children of the SuperLink by descent, Ray's by the variable that marks them."""
    pids: set[int] = set()
    for process in processes:
        pids |= {process.pid, *descendants(process.pid)} if process.poll() is None else set()
    pids |= marked("FLWR_HOME", str(base / "home"))
    end(pids - set(keep), signal.SIGTERM, wait=5.0)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
