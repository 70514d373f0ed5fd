"""One client, asked well and badly: the order of its checks, its ledger, and that nothing private gets out."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients import client_app
from clients.client_app import app
from fedpriv.errors import InputError
from fedpriv.messages import (
    BUDGET,
    HELLO,
    EvaluateRequest,
    Refusal,
    TrainRequest,
    encode_model,
    read_budget,
    read_evaluate_reply,
    read_hello,
    read_train_reply,
    refusal_of,
)
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.training import LocalWorker, Trained
from simulations.inline_grid import FIRST_NODE, node_contexts

SECRET = "SECRET-4711"


@pytest.fixture
def asks(tiny):
    """One simulated client and `train(**changes)`, which sends it a request."""

    class Client:
        def __init__(self, **changes):
            self.scenario = tiny(**changes)
            self.context = node_contexts(3, self.scenario.flat())[FIRST_NODE]
            self.worker = LocalWorker.for_scenario(self.scenario)

        @property
        def ledger(self):
            return client_app.identify(self.context.node_config, self.context.run_config).ledger

        def request(self, **changes):
            fields = {
                "run_id": "run-1",
                "round": 1,
                "steps": 1,
                "source": source_digest(),
                "scenario": self.scenario.digest(),
                "ledger_seq": 0,
                "ledger_head": "",
                "model": encode_model(self.worker.initial_parameters()),
            }
            return TrainRequest(**{**fields, **changes})

        def send(self, record, kind="train"):
            return app(Message(record, FIRST_NODE, kind), self.context)

        def train(self, **changes):
            return self.send(self.request(**changes).to_record())

        def trained(self, **changes):
            request = self.request(**changes)
            reply = self.send(request.to_record())
            return read_train_reply(reply, request, num_parameters=self.worker.num_parameters)

    return Client


@pytest.fixture
def no_data(monkeypatch):
    """`no_data()`: from now on any look at private rows fails the test."""

    def read(*_, **__):
        pytest.fail("private rows were read")

    return lambda: monkeypatch.setattr("fedpriv.training.worker.load_client", read)


def test_a_round_is_reserved_trained_and_recorded(asks):
    client = asks()
    reply = client.trained()
    assert not np.array_equal(reply.parameters, client.worker.initial_parameters())
    with Ledger.open(client.ledger, readonly=True) as ledger:
        assert [row["kind"] for row in ledger.rows()] == ["genesis", "contract", "reserve", "reply"]
        assert ledger.head() == (reply.ledger_seq, reply.ledger_head)
        assert ledger.committed() <= 8.0


def test_the_reservation_is_on_disk_before_the_data_are_read(asks, monkeypatch):
    client = asks()
    seen = []

    def look(scenario, name):
        with Ledger.open(client.ledger, readonly=True) as ledger:
            seen.append(ledger.spent_tokens("run-1"))
        raise InputError("stop here")

    monkeypatch.setattr("fedpriv.training.worker.load_client", look)
    assert refusal_of(client.train()) is Refusal.NO_DATA
    assert seen == [1]


def test_the_same_request_again_gets_the_stored_bytes(asks, monkeypatch):
    client = asks()
    first = client.trained()
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: pytest.fail("trained twice"))
    again = client.trained()
    assert np.array_equal(first.parameters, again.parameters)
    assert (again.ledger_seq, again.ledger_head) == (first.ledger_seq, first.ledger_head)


def test_a_lost_reply_is_computed_again_in_simulation_and_refused_in_deployment(asks, monkeypatch):
    client = asks()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "store_reply", lambda *_: None)
        first = client.trained()
    again = client.trained()  # charged, nothing stored: the seeded streams give the same release
    assert np.array_equal(first.parameters, again.parameters)
    with Ledger.open(client.ledger, readonly=True) as ledger:
        assert ledger.spent_tokens("run-1") == 1
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "store_reply", lambda *_: None)
        client.trained(round=2)
    node = replace(client_app.identify(client.context.node_config, client.context.run_config), mode="deployment")
    monkeypatch.setattr(client_app, "identify", lambda *_: node)
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: pytest.fail("a second release"))
    assert refusal_of(client.train(round=2)) is Refusal.LOST


def test_another_request_under_the_same_round_is_refused(asks, no_data):
    client = asks()
    client.trained()
    no_data()
    other = encode_model(client.worker.initial_parameters() + np.float32(1))
    assert refusal_of(client.train(model=other)) is Refusal.LEDGER_CONFLICT


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"source": "0" * 64}, Refusal.SOURCE_MISMATCH),
        ({"scenario": "0" * 64}, Refusal.SCENARIO_MISMATCH),
        ({"steps": 2}, Refusal.BAD_REQUEST),
        ({"steps": 0}, Refusal.BAD_REQUEST),
        ({"round": 7}, Refusal.BAD_REQUEST),
        ({"model": encode_model(np.zeros(3, np.float32))}, Refusal.BAD_REQUEST),
        ({"model": encode_model(np.full(3, np.nan, np.float32))}, Refusal.BAD_REQUEST),
        ({"ledger_seq": 3, "ledger_head": "h"}, Refusal.LEDGER_MISSING),
    ],
)
def test_bad_requests_are_refused_before_any_ledger_or_data(asks, no_data, changes, refusal):
    client = asks()
    no_data()
    assert refusal_of(client.train(**changes)) is refusal
    assert not client.ledger.exists()


def test_an_old_copy_of_the_ledger_is_noticed(asks, monkeypatch):
    client = asks()
    client.trained()
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: pytest.fail("private rows were read"))
    assert refusal_of(client.train(round=2, ledger_seq=40, ledger_head="f" * 64)) is Refusal.LEDGER_CONFLICT
    assert refusal_of(client.train(round=2, ledger_seq=2, ledger_head="f" * 64)) is Refusal.LEDGER_CONFLICT


def test_a_ledger_that_vanished_is_not_made_anew(asks, monkeypatch):
    client = asks()
    reply = client.trained()
    client_app.release()
    for path in client.ledger.parent.iterdir():
        path.unlink()
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: pytest.fail("private rows were read"))
    asked = {"round": 2, "ledger_seq": reply.ledger_seq, "ledger_head": reply.ledger_head}
    assert refusal_of(client.train(**asked)) is Refusal.LEDGER_MISSING


def test_a_budget_that_does_not_cover_the_contract(asks, no_data):
    client = asks(privacy__noise_multiplier=0.5)
    no_data()
    assert refusal_of(client.train()) is Refusal.BUDGET_EXCEEDED


def test_zero_steps_return_the_model_without_an_event(asks, no_data):
    client = asks(federation__local_steps=0)
    no_data()
    reply = client.trained(steps=0)
    assert np.array_equal(reply.parameters, client.worker.initial_parameters())
    assert (reply.ledger_seq, reply.ledger_head) == (0, "")
    assert not client.ledger.exists()


def test_without_privacy_there_is_no_ledger(asks):
    client = asks(privacy__enabled=False)
    assert client.trained().ledger_seq == 0
    assert not client.ledger.exists()
    assert read_budget(client.send(RecordDict(), BUDGET)).enabled == 0


def test_evaluation_is_withheld_in_deployment(asks, monkeypatch):
    client = asks()
    request = EvaluateRequest(
        run_id="run-1",
        round=0,
        part="test",
        samples=2,
        source=source_digest(),
        scenario=client.scenario.digest(),
        model=encode_model(client.worker.initial_parameters()),
    )
    open_reply = read_evaluate_reply(client.send(request.to_record(), "evaluate"), request)
    assert any(key.startswith("federated/") for key in open_reply.sums)
    node = replace(client_app.identify(client.context.node_config, client.context.run_config), mode="deployment")
    monkeypatch.setattr(client_app, "identify", lambda *_: node)
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: pytest.fail("private rows were read"))
    closed = read_evaluate_reply(client.send(request.to_record(), "evaluate"), request)
    assert (closed.withheld, dict(closed.sums)) == (1, {})


def test_hello_and_budget(asks):
    client = asks()
    hello = read_hello(client.send(RecordDict(), HELLO))
    assert (hello.client, hello.partition, hello.partitions, hello.mode) == ("utility-000", 0, 3, "simulation")
    before = read_budget(client.send(RecordDict(), BUDGET))
    assert (before.committed, before.nominal, before.budget, before.ledger_seq) == (0.0, 0.0, 8.0, 0)
    client.trained()
    after = read_budget(client.send(RecordDict(), BUDGET))
    assert 0 < after.nominal < after.committed <= 8.0


def test_not_configured_fails_closed(asks, monkeypatch, no_data):
    client = asks()
    no_data()
    monkeypatch.delenv("FEDPRIV_SIMULATION")
    for record, kind in ((client.request().to_record(), "train"), (RecordDict(), HELLO), (RecordDict(), BUDGET)):
        assert refusal_of(client.send(record, kind)) is Refusal.NOT_CONFIGURED


@pytest.mark.parametrize("record", [RecordDict(), RecordDict({"words": ConfigRecord({"x": SECRET})})])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_malformed_records(asks, record, kind):
    assert refusal_of(asks().send(record, kind)) is Refusal.BAD_REQUEST


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), InputError(SECRET), MemoryError(SECRET), KeyError(SECRET), OSError(2, SECRET, SECRET)]
)
@pytest.mark.parametrize("where", ["load_client", "Ledger.enrol", "LocalWorker.train"])
def test_a_planted_secret_never_reaches_the_wire(asks, monkeypatch, caplog, capfd, error, where):
    client = asks()
    target = {
        "load_client": "fedpriv.training.worker.load_client",
        "Ledger.enrol": "clients.ledgers.Ledger.enrol",
        "LocalWorker.train": "fedpriv.training.LocalWorker.train",
    }[where]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(target, fail)
    with caplog.at_level(logging.INFO):
        reply = client.train()
    assert reply.has_error()
    assert reply.error.reason in {refusal.word for refusal in Refusal}
    assert SECRET.encode() not in pickle.dumps(reply)
    out, err = capfd.readouterr()
    assert SECRET not in out + err + caplog.text


def test_the_details_stay_with_the_clients_own_logger(asks, monkeypatch, caplog):
    client = asks()
    monkeypatch.setattr("fedpriv.training.worker.load_client", lambda *_: (_ for _ in ()).throw(ValueError(SECRET)))
    with caplog.at_level(logging.DEBUG, logger="fedpriv.clients"):
        client.train()
    assert SECRET in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_not_sent(asks, monkeypatch, bad):
    client = asks()
    monkeypatch.setattr(LocalWorker, "train", lambda self, name, p, **_: Trained(np.full_like(p, bad)))
    assert refusal_of(client.train()) is Refusal.INTERNAL
