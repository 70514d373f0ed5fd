"""The one-round statistics of a deployed client: paid once, sent again from the outbox, and never for less noise."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message

from clients.client_app import app
from fedpriv.messages import STATISTICS, Refusal, StatisticsRequest, encode_model, read_statistics, refusal_of
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest

NODE = 7
WARM = {"task__context": 72, "model__warm_start": "ridge"}


def ask(owner, server, **changes) -> tuple[StatisticsRequest, Message]:
    fields = {"run_id": "run-1", "source": source_digest(), "scenario": server.scenario.digest()}
    request = StatisticsRequest(**{**fields, **changes})
    return request, app(Message(request.to_record(), NODE, STATISTICS), owner.context(server.scenario.flat()))


def test_statistics_are_paid_once_and_stored(owner, server, no_data):
    honest = server(**WARM)
    request, reply = ask(owner, honest)
    first = read_statistics(reply, request, size=honest.worker.one_round.statistics)
    assert first.ledger_seq > 0
    no_data()
    again = read_statistics(ask(owner, honest)[1], request, size=first.statistics.size)
    np.testing.assert_array_equal(again.statistics, first.statistics)
    kinds = [(row["kind"], row["run_id"]) for row in owner.rows() if row["run_id"]]
    assert kinds == [
        ("contract", "run-1"), ("contract", "run-1#statistics"), ("reserve", "run-1#statistics"),
        ("reply", "run-1#statistics"),
    ]  # fmt: skip


def test_a_lost_reply_is_not_made_anew(owner, server, monkeypatch):
    honest = server(**WARM)
    monkeypatch.setattr(Ledger, "store_reply", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    assert refusal_of(ask(owner, honest)[1]) is Refusal.INTERNAL
    monkeypatch.undo()
    assert refusal_of(ask(owner, honest)[1]) is Refusal.LOST
    assert owner.paid() == 1


def test_no_statistics_where_the_scenario_pays_for_none(owner, server, no_data):
    plain = server(task__context=72, model__warm_start="")
    no_data()
    assert refusal_of(ask(owner, plain)[1]) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


@pytest.mark.parametrize("changes", [{"privacy__warm_start_noise": 1e-3}, {"privacy__warm_start_noise": 0.3}])
def test_less_noise_than_the_budget_asks_for(owner, server, no_data, changes):
    evil = server(**WARM, privacy__noise_multiplier=50.0, privacy__epsilon=1e6, **changes)
    no_data()
    assert refusal_of(ask(owner, evil)[1]) is Refusal.BUDGET_EXCEEDED
    assert owner.paid() == 0


def test_an_unresolved_scenario_releases_nothing(owner, server, no_data):
    honest = server(**WARM)
    flat = {**honest.scenario.flat(), "privacy.warm_start_noise": ""}
    no_data()
    scenario = honest.scenario.override({"privacy.warm_start_noise": None})
    request = StatisticsRequest(run_id="run-1", source=source_digest(), scenario=scenario.digest())
    reply = app(Message(request.to_record(), NODE, STATISTICS), owner.context(flat))
    assert refusal_of(reply) in (Refusal.LEDGER_CONFLICT, Refusal.BAD_REQUEST, Refusal.NO_DATA)
    assert owner.paid() == 0


def test_the_same_run_with_another_scenario(owner, server, no_data):
    other = server(**WARM, federation__rounds=5)
    ask(owner, server(**WARM))
    no_data()
    assert refusal_of(ask(owner, other)[1]) is Refusal.LEDGER_CONFLICT


@pytest.mark.parametrize("state", [None, np.ones(59, np.float32), -np.ones(60, np.float32)])
def test_training_needs_the_fitted_model_that_the_scenario_says(owner, server, no_data, state):
    honest = server(**WARM)
    no_data()
    changes = {} if state is None else {"reference": encode_model(state)}
    assert honest.refused(**changes) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


def test_a_state_that_is_no_covariance_is_refused_before_any_reading(owner, server, no_data):
    # Whether its conditionals can be computed could depend on which readings are missing.
    honest = server(task__context=72, model__warm_start="gaussian")
    lags = np.full(honest.worker.one_round.state_size, 1.0, np.float32)
    lags[0] = 1e-3  # correlations of 1000
    no_data()
    assert honest.refused(reference=encode_model(lags)) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


def test_training_without_one_refuses_one(owner, server, no_data):
    honest = server()
    no_data()
    assert honest.refused(reference=encode_model(np.ones(60, np.float32))) is Refusal.BAD_REQUEST


def test_another_reference_is_another_request(owner, server):
    honest = server(**WARM)
    state = honest.worker.one_round.fit(np_total(honest), stddev=1.0).numpy()
    honest.trained(reference=encode_model(state))
    other = state.copy()
    other[0] += 1.0
    assert honest.refused(reference=encode_model(other)) is Refusal.LEDGER_CONFLICT
    assert owner.paid() == 1


def np_total(server):
    import torch

    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, server.worker.one_round.statistics))
