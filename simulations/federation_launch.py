"""`fedpriv federation run`: a SuperLink for real nodes, the ServerApp in it, and what the run leaves behind.

The same ServerApp as in a simulation runs here in mode `deployment`: it waits for the nodes that the scenario expects,
asks each for its rounds, takes refusals as answers, and writes the run folder. No reading and no exact score is ever
here; the label repeats what the clients say of their own ledgers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import tomli_w

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.windows import day_steps
from fedpriv.errors import BudgetExceeded, CheckFailed, InputError, LedgerError
from fedpriv.messages import SIMULATION_VARIABLE
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.label_page import write_label_page
from fedpriv.reports.model_card import ModelFacts, write_card
from fedpriv.signals import terminable
from fedpriv.training import LocalWorker
from simulations.federation_setup import NODES, SUPERLINK, Federation
from simulations.flower_launch import (
    environment,
    grace,
    nested,
    raise_outcome,
    read_status,
    take_down,
    tool_path,
    wait_until_up,
    write_bundle,
)
from simulations.processes import end, marked
from strategies.progress import Listener, Progress

_CONNECTION = "fedpriv"
_POLL = 0.25
_END = ("done", "failed", "refused")
WORDS = {
    "budget-exceeded": "its privacy budget does not allow this run",
    "ledger-missing": "its ledger is missing; it stops until the owner has put it back",
    "ledger-conflict": "its ledger cannot be used (another copy, another request, or damaged)",
    "source-mismatch": "it runs another version of fedpriv than this server",
    "scenario-mismatch": "its owner has not agreed to this scenario, or its ledger is about another unit or delta",
    "bad-request": "its settings do not allow the request (step, channels, or a file that only the server has)",
    "no-data": "its data cannot be read, or no window fits",
    "internal": "it failed inside; its own log says why",
    "lost": "it was charged for this round before, and its reply is lost; it goes on with the next",
    "not-configured": "it has no usable node file",
    "node-lost": "it ended or lost its connection",
}

Say = Callable[[str], None]


def run(
    folder: Path,
    *,
    superlink: str | None = None,
    resume: bool = False,
    patience: float = 3600.0,
    listener: Listener | None = None,
    say: Say = lambda text: None,
) -> RunFolder:
    """Runs the federation of `folder` to its end, and writes label, model card and report.

    Args:
        folder: made by `fedpriv federation init`.
        superlink: HOST:PORT of a SuperLink that runs on this machine already; None: one is started and ended.
        resume: go on with an interrupted run.
        patience: seconds to wait for the nodes; then the run starts with federation.quorum of them, or not at all.
        listener: told about every round.
        say: takes sentences for the person at the terminal: who is there, who refuses and why.

    Raises:
        InputError: bad input or configuration; nothing was started.
        BudgetExceeded, LedgerError: every client refuses; what was trained before is in the folder.
        CheckFailed: the run could not be completed; see the message.
    """
    federation = Federation.open(folder)
    if superlink is not None:
        check_superlink(superlink)
    for name in ("flwr", "flower-superlink"):
        tool_path(name)
    scenario = federation.scenario.override({"run.out": str(federation.run_folder)})
    target = RunFolder.create(federation.run_folder, scenario, resume=resume)
    if target.finished:
        if not (target.path / "report.html").exists():  # the write-up was cut off
            write_up(scenario, target)
        return target
    target.update_status(engine="deployment", patience=patience)
    with target.lock(), terminable():
        try:
            _Launch(federation, scenario, target, superlink, listener, say).complete()
        except (BudgetExceeded, LedgerError):
            if (target.path / "model.safetensors").exists():
                write_up(scenario, RunFolder.open(target.path))
            raise
        finished = RunFolder.open(target.path)
        write_up(scenario, finished)
    return finished


def check_superlink(address: str) -> None:
    """Raises InputError where an address is not HOST:PORT of this machine.

    The federation runs inside the SuperLink's process and writes its run folder to the disk there; here it is read.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--superlink {address!r} is not HOST:PORT; nothing was started.")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"--superlink {address!r}: the host is not known ({error.strerror}); nothing was started."
        ) from None
    for family, kind, proto, _, place in places:
        with socket.socket(family, kind, proto) as probe, contextlib.suppress(OSError):
            probe.bind((place[0], 0))  # only addresses of this machine can be bound
            return
    raise InputError(
        f"--superlink {address!r} is another machine. The federation runs inside the SuperLink and writes its run "
        "folder to the disk there, so run `fedpriv federation run` on that machine. Nothing was started."
    )


class _Launch:
    """One call of `run`."""

    def __init__(
        self,
        federation: Federation,
        scenario: Scenario,
        target: RunFolder,
        superlink: str | None,
        listener: Listener | None,
        say: Say,
    ) -> None:
        self.federation, self.scenario, self.target = federation, scenario, target
        self.superlink, self.listener, self.say = superlink, listener, say
        self.base = federation.folder / SUPERLINK
        self.home = self.base / "home"
        self.env = environment(self.home)
        del self.env[SIMULATION_VARIABLE]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._there: list[str] = []
        self._refused: dict[str, str] = {}
        self._round = -1

    def complete(self) -> None:
        """Starts what is needed, follows the run to its end, and takes down what was started."""
        own, server = [os.getpid()], self.federation.server
        end(marked("FLWR_HOME", str(self.home)) - set(own))  # what an earlier call left when it was killed
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(prefix="fedpriv-federation-"))
        with os.fdopen(
            os.open(self.base / "superlink.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab"
        ) as log:
            try:
                self._connection()
                if self.superlink is None:
                    self._start_superlink(log, scratch)
                    self.say(f"listening on {server.host}:{server.port}" + (" without TLS" if server.insecure else ""))
                self._admit(scratch)
                self._submit(log, scratch)
                self._follow()
                raise_outcome(self.target.path)
            except CheckFailed as error:
                raise CheckFailed(str(error).replace("flower.log", "../superlink/superlink.log")) from None
            except KeyboardInterrupt:
                self._end_all(own)
                RunFolder.open(self.target.path).update_status(status="interrupted", reason="stopped by the user")
                raise
            finally:
                self._end_all(own)
                shutil.rmtree(scratch, ignore_errors=True)

    def _connection(self) -> None:
        """Tells Flower's tools where the SuperLink is."""
        server = self.federation.server
        host = "127.0.0.1" if server.host in ("0.0.0.0", "::", "") else server.host
        address = self.superlink or f"{host}:{server.port}"
        connection: dict[str, Any] = {"address": address, "insecure": server.insecure}
        if not server.insecure:
            connection = {"address": address, "root-certificates": server.ca}
        content = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self.home / "config.toml").write_text(tomli_w.dumps(content), encoding="utf-8")

    def _start_superlink(self, log: IO[bytes], scratch: Path) -> None:
        server = self.federation.server
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.host, server.port))
            except OSError as error:
                raise InputError(
                    f"{server.host}:{server.port} cannot be listened on ({error.strerror}); choose another port in "
                    f"{self.federation.folder / 'federation.toml'}, or give --superlink. Nothing was started."
                ) from None
        words = [tool_path("flower-superlink"), "--host", server.host, "--port", str(server.port)]
        words += ["--isolation", "subprocess", "--database", str(self.base / "state.db")]
        words += ["--disable-runtime-dependency-installation"]
        if server.insecure:
            words.append("--insecure")
        else:
            words += ["--ssl-ca-certfile", server.ca, "--ssl-certfile", server.certificate, "--ssl-keyfile", server.key]
        if server.authenticate:
            words.append("--enable-supernode-auth")
        self.processes.append(self._start(words, log, scratch))
        host = "127.0.0.1" if server.host in ("0.0.0.0", "") else server.host
        url = f"http{'' if server.insecure else 's'}://{host}:{server.port}"
        context = None
        if not server.insecure:
            context = ssl.create_default_context(cafile=server.ca)
            context.check_hostname = False  # the certificate is for the names that nodes use
        wait_until_up(self.processes[0], url, self.base / "superlink.log", context)

    def _admit(self, scratch: Path) -> None:
        """Registers the keys of admitted nodes; those that are known already stay."""
        if not self.federation.server.authenticate:
            return
        keys = sorted((self.federation.folder / NODES).glob("*.pub"))
        if len(keys) < self.scenario.partition.clients:
            self.say(f"{len(keys)} of {self.scenario.partition.clients} nodes are admitted; see `federation admit`")
        for key in keys:
            words = [tool_path("flwr"), "supernode", "register", str(key), _CONNECTION, "--name", key.stem]
            done = subprocess.run(
                [*words, "--format", "json"], cwd=scratch, env=self.env, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            said = done.stdout + done.stderr
            if done.returncode and "already" not in said:
                last = said.strip().splitlines()[-1] if said.strip() else f"exit code {done.returncode}"
                raise InputError(f"the key {key} was not accepted by Flower ({last}); no round was started.")

    def _submit(self, log: IO[bytes], scratch: Path) -> None:
        app = write_bundle(scratch / "fedpriv")
        (scratch / "config.toml").write_bytes(tomli_w.dumps(nested(self.scenario)).encode())
        words = [tool_path("flwr"), "run", str(app), _CONNECTION, "--stream", "-c", str(scratch / "config.toml")]
        self.processes.append(self._start(words, log, scratch))

    def _start(self, words: list[str], log: IO[bytes], scratch: Path) -> subprocess.Popen[bytes]:
        neutral = scratch / "cwd"
        neutral.mkdir(exist_ok=True)
        return subprocess.Popen(
            words, cwd=neutral, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def _follow(self) -> None:
        """Waits for the end; passes on what run.json says."""
        submitted = self.processes[-1]
        while True:
            status = read_status(self.target.path)
            self._tell(status)
            if status.get("status") in _END:
                grace(submitted.poll, 20.0)
                return
            if any(process.poll() is not None for process in self.processes):
                grace(lambda: 0 if read_status(self.target.path).get("status") in _END else None, 5.0)
                self._tell(read_status(self.target.path))
                return
            time.sleep(_POLL)

    def _tell(self, status: dict[str, Any]) -> None:
        waiting = status.get("waiting")
        if isinstance(waiting, dict) and sorted(waiting["there"]) != self._there:
            self._there = sorted(waiting["there"])
            self.say(f"{len(self._there)} of {waiting['expected']} nodes are there: {', '.join(self._there)}")
        refusals = status.get("refusals")
        for client, word in (refusals if isinstance(refusals, dict) else {}).items():
            if self._refused.get(client) != word:
                self._refused[client] = word
                self.say(
                    f"round {status.get('round')}: {client} refused ({word}): {WORDS.get(word, 'see its own log')}"
                )
        number = status.get("round")
        if self.listener is not None and isinstance(number, int) and number != self._round:
            self._round = number
            epsilon = status.get("epsilon")
            asked, rounds = int(status.get("asked", 0)), self.scenario.federation.rounds
            known = float(epsilon) if isinstance(epsilon, int | float) else None
            self.listener(Progress("round", number, rounds, asked or self.scenario.partition.clients, epsilon=known))

    def _end_all(self, keep: list[int]) -> None:
        take_down(self.processes, self.base, keep)


def write_up(scenario: Scenario, folder: RunFolder) -> None:
    """Label, model card and page of a deployed run, from public facts and what the clients stated."""
    from fedpriv.privacy.label import build_stated_label
    from fedpriv.reports.page import write_report

    public, status = roster(scenario), folder.status
    stated, run_id = status.get("stated"), str(status.get("run_id", ""))
    worker = LocalWorker.for_scenario(scenario)
    contract = worker.commitments.contract(run_id) if run_id else None
    if isinstance(stated, dict) and stated and contract is not None:
        contracts = [contract, *worker.commitments.side_contracts(run_id)]
        label = build_stated_label(scenario, contracts, stated, steps_per_day=day_steps(public.step))
        folder.write_label(json.loads(json.dumps(label)))
        write_label_page(folder.path / "label.html", label, name=scenario.run.name)
    clients = status.get("clients")
    write_card(
        folder,
        ModelFacts(
            step=public.step,
            channels=public.channels,
            unit=public.unit,
            timezone="",
            clients=tuple(str(c) for c in clients) if isinstance(clients, list) else (),
            start=None,
            stop=None,
        ),
    )
    write_report(folder.path)
