"""A secret is planted wherever a client has words or numbers of its own; not a byte of it reaches the server.

Planted: in a reading, in the file's and the folder's name, in a column's name, and in every exception that the
client's libraries could raise. Looked at: every message that the client sends, all that the server logs or prints, and
every file that the server writes. A deployed client gives its data by its own node file, so none of these words is
known to the server's configuration. In a simulation the server's own configuration names the file, so there the files
that hold it are exempt (`SIMULATORS_OWN`): scenario.toml and run.json repeat the user's own settings, and label, model
card, report, examples and figures are written by the simulator from data that it owns, not from what a client sent.
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict

from clients import client_app
from clients.client_app import app
from clients.node import forget
from fedpriv.errors import FedprivError, InputError
from fedpriv.messages import BUDGET, COUNT, HELLO, CountRequest, Refusal
from fedpriv.provenance import source_digest
from fedpriv.reports.folder import RunFolder
from simulations.inline_grid import FIRST_NODE, SimulatedGrid
from simulations.launch import prepare, simulate
from strategies.federation import federation

WORD = "SECRET-4711"
NUMBER = 471147.0625  # exact in float32, so its bytes are known in every format
SIMULATORS_OWN = {
    "scenario.toml", "run.json", "label.json", "label.html", "model.json", "report.html", "examples.npz", "figures",
}  # fmt: skip


def patterns() -> list[bytes]:
    shown = f"{NUMBER:.4f}".encode()
    return [WORD.encode(), shown, np.float32(NUMBER).tobytes(), np.float64(NUMBER).tobytes()]


def holds(data: bytes) -> bool:
    return any(p in data for p in patterns())


def plant(owner) -> None:
    frame = pd.read_csv(owner.data)
    frame.loc[[100, 700, 1200], owner.client] = NUMBER
    frame.to_csv(owner.data, index=False)


@pytest.fixture
def planted(home, actors):
    made = actors[0](home / f"{WORD}-folder", file=f"{WORD}-file.csv", extra=(f"{WORD}-column",))
    made.make_ledger()
    plant(made)
    assert holds(made.data.read_bytes())
    return made


class DeployedGrid(SimulatedGrid):
    """Deployed clients in this process; keeps every byte that they answer."""

    def __init__(self, owners, run_config) -> None:
        super().__init__(len(owners))
        self.sent: list[bytes] = []
        self._contexts = {
            FIRST_NODE + i: Context(
                run_id=1, node_id=FIRST_NODE + i, node_config={"fedpriv-node": str(owner.node)}, state=RecordDict(),
                run_config=dict(run_config),
            )
            for i, owner in enumerate(owners)
        }  # fmt: skip

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            self._stamp(message)
            reply = app(message, self._contexts[message.metadata.dst_node_id])
            self.sent.append(raw(reply))
            replies.append(reply)
        return replies


def raw(message: Message) -> bytes:
    """Every byte of a message, its metadata too."""
    return pickle.dumps(message)


def files_of(folder: Path, *, exempt: set[str] = frozenset()) -> dict[str, bytes]:
    found = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    return {name: f.read_bytes() for name, f in found.items() if name.split(os.sep)[0] not in exempt}


@pytest.mark.parametrize("extra", [{}, {"privacy.release_metrics": 20.0, "privacy.release_count": 50.0}])
def test_a_whole_deployed_run_keeps_the_secret(planted, actors, home, caplog, capfd, extra):
    changes = {"partition.clients": 1, "privacy.noise_multiplier": "", **extra}
    scenario = prepare(actors[1](planted).scenario, changes, out=home / "server")
    folder = RunFolder.create(home / "server", scenario, resume=False)
    grid = DeployedGrid([planted], scenario.flat())
    with caplog.at_level(logging.INFO):
        federation(grid, scenario, folder, mode="deployment")
    out, err = capfd.readouterr()
    assert len(grid.sent) > 6
    for sent in grid.sent:
        assert not holds(sent)
    written = files_of(home / "server")
    assert "model.safetensors" in written
    for name, content in written.items():
        assert not holds(content), name
        assert WORD not in name
    assert not holds((out + err + caplog.text).encode())


ERRORS = [
    ValueError(f"bad value {WORD} {NUMBER:.4f}"), InputError(f"file {WORD}.csv has {NUMBER:.4f}"), KeyError(WORD),
    OSError(2, "No such file", f"/home/{WORD}"), MemoryError(WORD), FedprivError(WORD), RuntimeError(WORD),
    UnicodeDecodeError("utf-8", WORD.encode(), 0, 1, WORD),
]  # fmt: skip
PLACES = [
    "fedpriv.training.worker.load_client", "fedpriv.training.worker.cut", "fedpriv.training.worker.draw",
    "clients.ledgers.Ledger.enrol", "clients.ledgers.Ledger.reserve", "clients.ledgers.Ledger.store_reply",
    "fedpriv.training.LocalWorker.train",
    "fedpriv.training.LocalWorker.release_metrics", "fedpriv.training.LocalWorker.release_count",
    "clients.client_app.source_digest", "clients.agreed.source_digest",
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", PLACES)
def test_no_exception_text_travels(planted, actors, monkeypatch, caplog, capfd, place, error):
    server = actors[1](planted, privacy__release_metrics=20.0, privacy__release_count=50.0)

    def fail(*_, **__):
        raise error

    source = source_digest()
    train = server.request(source=source).to_record()
    evaluate = server.evaluate_request(source=source).to_record()
    count = CountRequest(run_id="run-1", source=source, scenario=server.scenario.digest()).to_record()
    monkeypatch.setattr(place, fail)
    replies = []
    with caplog.at_level(logging.INFO):
        for record, kind in ((train, "train"), (evaluate, "evaluate"), (count, COUNT)):
            replies.append(server.send(record, kind))
        for kind in (HELLO, BUDGET):
            replies.append(server.send(RecordDict(), kind))
    assert any(reply.has_error() for reply in replies)
    words = {refusal.word for refusal in Refusal}
    for reply in replies:
        assert not holds(raw(reply))
        assert not reply.has_error() or reply.error.reason in words
    out, err = capfd.readouterr()
    assert not holds((out + err + caplog.text).encode())


@pytest.mark.parametrize("damage", ["missing", "columns", "text", "ledger", "node"])
def test_damaged_files_are_not_quoted(planted, actors, caplog, capfd, damage):
    """Real errors of real libraries, whose texts name files, columns and cells."""
    server = actors[1](planted)
    match damage:
        case "missing":
            planted.data.unlink()
        case "columns":
            planted.data.write_text(f"{WORD},alpha\n2024-01-01,{NUMBER}\n")
        case "text":
            planted.data.write_text(f"time,alpha\n{WORD},{NUMBER}\n" * 30)
        case "ledger":
            planted.ledger.write_bytes(WORD.encode() * 100)
        case "node":
            planted.node.write_text(f"client = {WORD}")
    forget()
    client_app.release()
    with caplog.at_level(logging.INFO):
        replies = [server.train(), server.evaluate(), *(server.send(RecordDict(), kind) for kind in (HELLO, BUDGET))]
    assert replies[0].has_error()
    for reply in replies:
        assert not holds(raw(reply))
    out, err = capfd.readouterr()
    assert not holds((out + err + caplog.text).encode())


# ---- the engines of the simulator -------------------------------------------------------------------


@pytest.fixture
def own_files(home, actors, monkeypatch):
    """A user's CSV with the secret in file, folder, another column and readings; two clients are used."""
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    made = actors[0](home / f"{WORD}-folder", file=f"{WORD}-file.csv", extra=("beta", f"{WORD}-column"))
    plant(made)
    changes = actors[2] | {
        "data.source": "csv", "data.path": str(made.data), "data.clients": "alpha,beta", "partition.clients": 2,
        "privacy.release_metrics": 30.0, "privacy.release_count": 50.0, "federation.rounds": 3, "run.workers": 1,
    }  # fmt: skip
    return changes


def kept_secret(run, text: str) -> None:
    for name, content in files_of(run.path, exempt=SIMULATORS_OWN).items():
        assert not holds(content), name
        assert WORD not in name
    assert not holds(text.encode())


def test_inline_messages_log_and_files(own_files, home, monkeypatch, caplog, capfd):
    sent: list[bytes] = []
    real = client_app._guarded

    def recorded(message, context, handler):
        reply = real(message, context, handler)
        sent.append(raw(reply))
        return reply

    monkeypatch.setattr(client_app, "_guarded", recorded)
    with caplog.at_level(logging.INFO):
        run = simulate(None, own_files, engine="inline", out=home / "run")
    out, err = capfd.readouterr()
    assert len(sent) > 8
    assert not any(holds(each) for each in sent)
    kept_secret(run, out + err + caplog.text)
    assert set(run.status["counts"]) == {"alpha", "beta"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_ray_and_flower_logs_and_files(own_files, home, caplog, capfd, engine):
    """Their messages are the same objects; here also what their own machinery prints and writes is looked at."""
    pytest.importorskip("ray")
    with caplog.at_level(logging.INFO):
        run = simulate(None, own_files, engine=engine, out=home / "run")
    out, err = capfd.readouterr()
    kept_secret(run, out + err + caplog.text)
