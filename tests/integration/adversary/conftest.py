"""A deployed client with its own data, ledger and node file, and a server that may ask for anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict

from clients import client_app
from clients.client_app import app
from clients.node import forget
from fedpriv.config import Scenario
from fedpriv.messages import (
    EvaluateRequest,
    Refusal,
    TrainRequest,
    encode_model,
    read_evaluate_reply,
    read_train_reply,
    refusal_of,
)
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.resolving import resolve
from fedpriv.training import LocalWorker
from simulations.flower_internals import become_server

HONEST = {
    "data.days": 60,
    "task.context": 48,
    "model.depth": 0,
    "diffusion.multiplicity": 2,
    "diffusion.sampling_steps": 2,
    "privacy.sampling_prob": 0.3,
    "privacy.epsilon": 4.0,
    "federation.rounds": 6,
    "evaluation.windows": 4,
    "evaluation.samples": 2,
    "evaluation.every": 3,
}
NODE = 7


class Owner:
    """A utility: its file, its ledger, its node file."""

    def __init__(self, home: Path, *, client: str = "alpha", file: str = "own.csv", extra: tuple[str, ...] = ()):
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.client = home, client
        self.data, self.ledger, self.node = home / file, home / f"{client}.sqlite", home / "node.toml"
        rng = np.random.default_rng(len(client))
        stamps = pd.date_range("2024-01-01", periods=60 * 24, freq="h")
        level = 50 + 20 * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24)
        columns = {name: level + rng.normal(0, 3, len(stamps)) for name in (client, *extra)}
        pd.DataFrame({"time": stamps, **columns}).to_csv(self.data, index=False)
        self.write_node()

    def write_node(self, **changes) -> None:
        fields = {
            "client": self.client, "ledger": str(self.ledger), "dataset": "meters-of-alpha",
            "epsilon": 4.0, "delta": 1e-5,
        }  # fmt: skip
        lines = [f"{k} = {v!r}".replace("'", '"') for k, v in {**fields, **changes}.items()]
        text = "\n".join([*lines, "[data]", 'source = "csv"', f'path = "{self.data}"', f'clients = ["{self.client}"]'])
        self.node.write_text(text + "\n")
        self.node.chmod(0o600)
        forget()

    def make_ledger(self, **changes) -> None:
        terms = {"budget_epsilon": 4.0, "delta": 1e-5, "unit": "reading", "relation": "zero-out", "mode": "deployment"}
        Ledger.create(self.ledger, dataset="meters-of-alpha", **{**terms, **changes}).close()

    def rows(self) -> list[dict]:
        client_app.release()
        with Ledger.open(self.ledger, readonly=True) as ledger:
            assert ledger.verify() == []
            return ledger.rows()

    def paid(self) -> int:
        """Tokens of all rounds that were ever reserved."""
        return sum(row["tokens"] for row in self.rows() if row["kind"] == "reserve")

    def context(self, run_config) -> Context:
        return Context(
            run_id=1,
            node_id=NODE,
            node_config={"fedpriv-node": str(self.node)},
            state=RecordDict(),
            run_config=run_config,
        )


class Server:
    """Asks as a server would, with any scenario and any field changed."""

    def __init__(self, owner: Owner, **changes) -> None:
        self.owner = owner
        base = resolve(Scenario().override({**HONEST, **_dotted(changes)}))
        self.scenario = base
        self.worker = LocalWorker.for_scenario(base)

    def request(self, **changes) -> TrainRequest:
        fields = {
            "run_id": "run-1", "round": 1, "steps": 1, "source": source_digest(), "scenario": self.scenario.digest(),
            "ledger_seq": 0, "ledger_head": "", "model": encode_model(self.worker.initial_parameters()),
        }  # fmt: skip
        return TrainRequest(**{**fields, **changes})

    def send(self, record: RecordDict, kind: str = "train") -> Message:
        return app(Message(record, NODE, kind), self.owner.context(self.scenario.flat()))

    def train(self, **changes) -> Message:
        return self.send(self.request(**changes).to_record())

    def trained(self, **changes):
        request = self.request(**changes)
        return read_train_reply(self.send(request.to_record()), request, num_parameters=self.worker.num_parameters)

    def refused(self, **changes) -> Refusal:
        return refusal_of(self.train(**changes))

    def evaluate_request(self, **changes) -> EvaluateRequest:
        fields = {
            "run_id": "run-1", "round": 0, "part": "validation", "samples": 0, "source": source_digest(),
            "scenario": self.scenario.digest(), "model": encode_model(self.worker.initial_parameters()),
        }  # fmt: skip
        return EvaluateRequest(**{**fields, **changes})

    def evaluate(self, **changes) -> Message:
        return self.send(self.evaluate_request(**changes).to_record(), "evaluate")

    def evaluated(self, **changes):
        request = self.evaluate_request(**changes)
        return read_evaluate_reply(self.send(request.to_record(), "evaluate"), request)


def _dotted(changes) -> dict:
    return {key.replace("__", "."): value for key, value in changes.items()}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDPRIV_SIMULATION", raising=False)
    become_server()
    forget()
    client_app.release()
    yield tmp_path
    client_app.release()
    forget()


@pytest.fixture
def owner(home):
    made = Owner(home / "alpha")
    made.make_ledger()
    return made


@pytest.fixture
def server(owner):
    return lambda **changes: Server(owner, **changes)


@pytest.fixture
def no_data(monkeypatch):
    """`no_data()`: from now on any look at private rows fails the test."""

    def read(*_, **__):
        pytest.fail("private rows were read")

    return lambda: monkeypatch.setattr("fedpriv.training.worker.load_client", read)


@pytest.fixture
def actors():
    """(Owner, Server, HONEST), for tests that set the scene themselves."""
    return Owner, Server, HONEST
