"""Runs the ClientApp of *this* installation for each message that a SuperNode has: pinned code, imports paid once.

Flower sends a node the code that somebody submitted to the server, and its own executor unpacks and runs it. Here that
bundle is neither written nor imported: every task runs `clients.client_app` as the node's owner installed it, so that
ledger and contract are enforced by code that the owner chose. A bundle of another version is answered with a refusal
(the source digests differ). Of the bundle only the run's settings are used, by Flower itself.

Tasks run in processes of their own, as Flower's do, but forked from a server that has imported everything before: a
task then starts in a tenth of a second instead of several seconds.

Private touches of Flower 1.41, guarded by tests/unit/shell/test_executor.py: `run_superexec.get_executor` gives way to
our `Executor`, and `run_clientapp` gets the installed app in place of an unpacked one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

_LOG_FILE = "FEDPRIV_CLIENT_LOG"  # where details of refusals go; on the node only


class InstalledApp:
    """Flower's `Executor`: launches the installed ClientApp, and nothing else."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["clients.warm"])
        self._running: list[BaseProcess] = []

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """Client apps only: no agent, no model, no connector of Flower runs beside the data."""
        del supported_task_types, insecure, root_certificates_path
        return {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Starts one task."""
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed("this node runs its installed client only")
        process = self._context.Process(
            target=run_task,
            args=(spec.runtime_api_address, spec.token, spec.insecure, spec.root_certificates_path, spec.parent_pid),
        )
        process.start()
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Collects finished tasks."""
        self._running = [process for process in self._running if process.is_alive()]

    def close(self) -> None:
        """Ends what still runs: a charged round whose reply is not stored counts as spent."""
        for process in self._running:
            process.terminate()


def run_task(address: str, token: str, insecure: bool, certificates: str | None, parent: int | None) -> None:
    """One message, from Flower's queue through the installed ClientApp and back; ends the process."""
    from flwr.supercore.tls import validate_and_resolve_root_certificates
    from flwr.supernode.runtime import run_clientapp as runner

    from clients.client_app import app

    _log_to_file()
    pin(runner, app)
    runner.run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=insecure,
        certificates=validate_and_resolve_root_certificates(certificates, insecure),
        parent_pid=parent,
        runtime_dependency_install=False,
    )


def pin(runner: Any, app: ClientApp) -> None:
    """Makes Flower's `run_clientapp` module use `app`, whatever bundle came with the message."""

    def installed(*_: object, **__: object) -> object:
        return lambda *ids: app

    def not_unpacked(*_: object, **__: object) -> None:
        return None

    runner.install_from_fab = not_unpacked
    runner.get_load_client_app_fn = installed


def _log_to_file() -> None:
    """Details of refusals, which may quote the owner's data, go to a file that the owner alone can read."""
    path = os.environ.get(_LOG_FILE)
    if not path:
        return
    handler = logging.StreamHandler(os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("fedpriv.clients")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the SuperNode at an address until it ends."""
    parser = argparse.ArgumentParser(prog="clients.executor")
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--secret-file", required=True, type=Path)
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt reaches the node's supervisor, which ends us
    superexec.get_executor = lambda *_, **__: InstalledApp()  # pyright: ignore[reportPrivateImportUsage]
    superexec.run_superexec(
        runtime_api_address=options.runtime_api_address,
        insecure=True,  # on the loopback interface of this machine, with a secret
        superexec_auth_secret=options.secret_file.read_bytes(),
        parent_pid=options.parent_pid,
        runtime_dependency_install=False,
    )
