"""`fedpriv node run`: Flower's SuperNode and our executor beside it, kept alive until the owner stops them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.checkup import AUTH_KEY, NODE_FILE, node_content
from clients.node import NODE_KEY
from fedpriv.errors import InputError
from fedpriv.messages import SIMULATION_VARIABLE
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_root
from fedpriv.signals import terminable

_WAITS = (1.0, 2.0, 5.0, 10.0, 20.0)  # seconds before the next start; a server forgets a lost node after a minute
_STEADY = 120.0  # seconds of work after which the waits begin anew


@dataclass(frozen=True, kw_only=True)
class Link:
    """How the node reaches its server.

    Attributes:
        address: HOST:PORT of the SuperLink.
        certificates: PEM file of the authority that signed the server's certificate; None: the system's.
        insecure: no TLS; for the loopback interface and closed test networks.
        authenticate: prove who this node is with auth.key; needs TLS.
    """

    address: str
    certificates: Path | None = None
    insecure: bool = False
    authenticate: bool = True


Say = Callable[[str], None]


def run(folder: Path, link: Link, *, say: Say, starts: int | None = None) -> None:
    """Runs the node until it is interrupted; a SuperNode that ends is started again.

    Args:
        folder: made by `fedpriv node init`.
        link: where the server is.
        say: takes sentences for the person at the terminal.
        starts: give up after this many; None: never.

    Raises:
        InputError: not a node, a missing certificate or key, or Flower is not installed; nothing was started.
        LedgerError: the ledger is missing or cannot be trusted; nothing was started.
    """
    folder = folder.expanduser().resolve()
    content = node_content(folder)
    Ledger.open(Path(str(content["ledger"])), dataset=str(content["dataset"]), mode="deployment").close()
    _check_link(folder, link)
    say(f"{content['client']}: connecting to {link.address}; logs are in {folder / 'node.log'}. Stop with Ctrl-C.")
    attempt = 0
    with terminable():
        while starts is None or attempt < starts:
            began = time.monotonic()
            code = _once(folder, link)
            attempt = 1 if time.monotonic() - began > _STEADY else attempt + 1
            if starts is not None and attempt >= starts:
                raise InputError(f"the node ended with code {code}; see {folder / 'node.log'}.")
            wait = _WAITS[min(attempt, len(_WAITS)) - 1]
            say(f"the node ended with code {code}; starting it again in {wait:g} s. See {folder / 'node.log'}.")
            time.sleep(wait)


def command(folder: Path, link: Link, *, port: int, secret: Path) -> list[str]:
    """Flower's SuperNode for this node; the executor is a process of its own."""
    words = [_tool("flower-supernode"), "--superlink", link.address, "--isolation", "process"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--superexec-auth-secret-file", str(secret)]
    words += ["--node-config", f'{NODE_KEY}="{folder / NODE_FILE}"']
    if link.insecure:
        return [*words, "--insecure"]
    if link.certificates is not None:
        words += ["--root-certificates", str(link.certificates.expanduser().resolve())]
    if link.authenticate:
        words += ["--auth-supernode-private-key", str(folder / AUTH_KEY)]
    return words


def environment(folder: Path) -> dict[str, str]:
    """Variables of the node's processes: deployed, offline, quiet, importing this installation."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "PYTHONPATH"))}
    env.pop(SIMULATION_VARIABLE, None)
    return env | {
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "FEDPRIV_CLIENT_LOG": str(folder / "client.log"),
        "PYTHONPATH": str(source_root()),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def _once(folder: Path, link: Link) -> int:
    """One life of the SuperNode; returns its exit code."""
    port = _free_port()
    home = Path(tempfile.mkdtemp(prefix="fedpriv-node-"))  # a secret that lives as long as these processes
    processes: list[subprocess.Popen[bytes]] = []
    with os.fdopen(os.open(folder / "node.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as log:
        try:
            secret = home / "secret"
            secret.write_bytes(secrets.token_bytes(32))
            secret.chmod(0o600)
            env = environment(folder)
            (folder / "flower").mkdir(exist_ok=True, mode=0o700)
            node = subprocess.Popen(
                command(folder, link, port=port, secret=secret),
                cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            processes.append(node)
            # Not `-m`: a task would import that module a second time, under another name.
            words = [sys.executable, "-c", "from clients.executor import main; main()"]
            words += ["--runtime-api-address", f"127.0.0.1:{port}"]
            words += ["--secret-file", str(secret), "--parent-pid", str(node.pid)]
            executor = subprocess.Popen(
                words, cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            processes.append(executor)
            while node.poll() is None and executor.poll() is None:
                time.sleep(0.2)
            return next(code for code in (node.poll(), executor.poll()) if code is not None)
        finally:
            for process in processes:
                _end(process)
            shutil.rmtree(home, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], wait: float = 5.0) -> None:
    """Ends a process that we started, with all of its session."""
    for number, seconds in ((signal.SIGTERM, wait), (signal.SIGKILL, wait)):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGKILL:
                return


def _check_link(folder: Path, link: Link) -> None:
    host, _, port = link.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--superlink {link.address!r} is not HOST:PORT; nothing was started.")
    if link.insecure and link.certificates is not None:
        raise InputError("--insecure and --root-certificates contradict each other; nothing was started.")
    if link.certificates is not None and not link.certificates.expanduser().is_file():
        raise InputError(f"the certificate file {link.certificates} does not exist; nothing was started.")
    if not link.insecure and link.authenticate and not (folder / AUTH_KEY).is_file():
        raise InputError(
            f"{folder} has no {AUTH_KEY}; use --no-auth only if the server asks for none. Nothing started."
        )
    _tool("flower-supernode")


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InputError(
            f"the command {name} is not installed; install fedpriv with its dependencies. Nothing started."
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
