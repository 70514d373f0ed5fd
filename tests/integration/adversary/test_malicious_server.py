"""A server that wants more than was agreed: each attempt gets its code, and the ledger is never under-charged."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message, RecordDict

from clients import client_app
from clients.client_app import app
from clients.node import forget
from fedpriv.messages import COUNT, CountRequest, Refusal, encode_model, read_count, refusal_of
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.training import LocalWorker

NODE = 7


def model(server, value):
    return encode_model(np.full(server.worker.num_parameters, value, np.float32))


def test_the_honest_run_goes_through(owner, server):
    honest = server()
    seq, head = 0, ""
    for round in range(1, 7):
        reply = honest.trained(round=round, ledger_seq=seq, ledger_head=head)
        seq, head = reply.ledger_seq, reply.ledger_head
    assert owner.paid() == 6
    assert not np.array_equal(honest.trained(round=6).parameters, honest.worker.initial_parameters())
    assert owner.paid() == 6  # the last question was a repetition


# ---- less noise, more steps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__noise_multiplier": 1e-6, "privacy__epsilon": 1e6},
        {"privacy__noise_multiplier": 0.5, "privacy__epsilon": 1e6},
        {"federation__rounds": 10_000, "privacy__epsilon": 1e6, "privacy__noise_multiplier": 1.5},
        {"federation__local_steps": 100, "privacy__epsilon": 1e6, "privacy__noise_multiplier": 1.5},
        {"privacy__sampling_prob": 1.0, "privacy__epsilon": 1e6, "privacy__noise_multiplier": 1.0},
        {"privacy__epsilon": 8.0},
        {"privacy__noise_multiplier": 1e-6, "privacy__epsilon": 1e6, "privacy__noise": "discrete-gaussian"},
        {"privacy__accountant": "rdp", "privacy__epsilon": 8.0},
        {"privacy__release_count": 1e-3, "privacy__noise_multiplier": 5.0, "privacy__epsilon": 1e6},
        {"privacy__release_metrics": 0.1, "privacy__noise_multiplier": 5.0, "privacy__epsilon": 1e6},
    ],
    ids=lambda c: "-".join(c).replace("privacy__", "").replace("federation__", ""),
)
def test_what_costs_more_than_the_owner_allows_is_refused(owner, server, no_data, changes):
    evil = server(**changes)
    no_data()
    assert evil.refused(steps=evil.scenario.federation.local_steps) is Refusal.BUDGET_EXCEEDED
    rows = owner.rows()
    assert [row["kind"] for row in rows] == ["genesis", "refused"]
    reason = rows[-1]["body"]["reason"]
    assert "> 4 at delta=1e-05" in reason or "inf > 1e+06 at delta=1e-05" in reason


def test_a_scenario_that_promises_less_than_it_takes(owner, server, no_data):
    """Its own epsilon field does not help: the event is composed, not believed."""
    evil = server(privacy__noise_multiplier=0.5, privacy__epsilon=3.9)
    no_data()
    assert evil.refused() is Refusal.BUDGET_EXCEEDED
    assert "> 3.9" in owner.rows()[-1]["body"]["reason"]


@pytest.mark.parametrize(
    "config",
    [
        {"privacy.noise_multiplier": 0.0},
        {"privacy.noise_multiplier": -1.0},
        {"privacy.noise_multiplier": float("nan")},
        {"privacy.delta": 1.0},
        {"privacy.bound": -1.0},
        {"privacy.clipper": "none-at-all"},
        {"privacy.no_such_key": 1},
        {"model.warm_start": "/etc/passwd"},
    ],
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()),
)
def test_a_scenario_that_is_none(owner, server, no_data, config):
    honest = server()
    no_data()
    context = owner.context({**honest.scenario.flat(), **config})
    reply = app(Message(honest.request().to_record(), NODE, "train"), context)
    assert refusal_of(reply) in (Refusal.BAD_REQUEST, Refusal.SCENARIO_MISMATCH)
    assert [row["kind"] for row in owner.rows()] == ["genesis"]


def test_without_privacy_nothing_is_trained(owner, server, no_data):
    evil = server(privacy__enabled=False)
    no_data()
    assert evil.refused() is Refusal.NOT_CONFIGURED
    assert evil.evaluate().error.code == Refusal.NOT_CONFIGURED
    assert [row["kind"] for row in owner.rows()] == ["genesis"]


@pytest.mark.parametrize("changes", [{"steps": 2}, {"steps": 0}, {"round": 7}])
def test_other_steps_than_agreed(owner, server, no_data, changes):
    honest = server()
    no_data()
    assert honest.refused(**changes) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


def test_a_second_run_does_not_get_a_second_budget(owner, server, no_data):
    honest = server()
    honest.trained()
    no_data()
    assert honest.refused(run_id="run-2") is Refusal.BUDGET_EXCEEDED
    assert owner.paid() == 1


# ---- the same question again ------------------------------------------------------------------------


def test_a_replay_gets_the_same_bytes_and_costs_nothing(owner, server, no_data):
    honest = server()
    first = honest.trained()
    no_data()
    for _ in range(3):
        assert np.array_equal(honest.trained().parameters, first.parameters)
    assert owner.paid() == 1


def test_the_same_round_with_other_weights(owner, server, no_data):
    honest = server()
    honest.trained()
    no_data()
    assert honest.refused(model=model(honest, 0.5)) is Refusal.LEDGER_CONFLICT
    assert owner.paid() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__bound": 100.0},
        {"privacy__clipper": "psasc"},
        {"privacy__clipper_options": "gamma=0.5"},
        {"privacy__sampling_prob": 0.2},
        {"task__context": 96},
        {"federation__rounds": 5},
        {"privacy__controller": "quantile", "privacy__clipper": "flat"},
        {"privacy__release_count": 5.0},
        {"privacy__noise": "discrete-gaussian"},
    ],
    ids=lambda c: "-".join(c),
)
def test_other_terms_under_the_same_run(owner, server, no_data, changes):
    honest = server()
    honest.trained()
    evil = server(privacy__noise_multiplier=honest.scenario.privacy.noise_multiplier, **changes)
    no_data()
    extra = {}
    if (state := evil.worker.initial_rule_state()) is not None:
        extra = {"rule": encode_model(state)}
    got = evil.refused(round=2, **extra)
    assert got in (Refusal.LEDGER_CONFLICT, Refusal.BUDGET_EXCEEDED)
    if got is Refusal.BUDGET_EXCEEDED:
        assert "privacy__release_count" in changes  # the main contract is the same; the new one does not fit
    assert owner.paid() == 1


# ---- crafted weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(owner, server, no_data, value):
    honest = server()
    no_data()
    assert honest.refused(model=model(honest, value)) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


@pytest.mark.parametrize("value", [1e10, 3e38])
def test_huge_weights_are_clipped_like_any_other_and_charged(owner, server, value):
    honest = server()
    start = np.full(honest.worker.num_parameters, value, np.float32)
    reply = honest.train(model=encode_model(start))
    if not reply.has_error():  # float32 may swallow the step; what comes out is finite and paid for
        trained = honest.trained(model=encode_model(start)).parameters
        assert np.isfinite(trained).all()
    assert owner.paid() == 1


@pytest.mark.parametrize("rule", [np.zeros(5, np.float32), np.full(1, np.nan, np.float32)])
def test_a_crafted_memory_of_rules(owner, server, no_data, rule):
    honest = server()
    no_data()
    assert honest.refused(rule=encode_model(rule)) is Refusal.BAD_REQUEST  # these rules keep nothing
    assert owner.paid() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_crafted_bound_of_a_controller(owner, server, no_data, value):
    honest = server(privacy__controller="quantile", privacy__clipper="flat")
    state = honest.worker.initial_rule_state()
    assert state is not None
    no_data()
    assert honest.refused(rule=encode_model(np.full_like(state, value))) is Refusal.BAD_REQUEST
    assert owner.paid() == 0


def test_a_huge_bound_of_a_controller_moves_the_noise_with_it(owner, server):
    """The bound in force is the server's word, and noise is in units of it: the charge covers the round."""
    honest = server(privacy__controller="quantile", privacy__clipper="flat")
    state = honest.worker.initial_rule_state()
    assert state is not None
    honest.train(rule=encode_model(np.full_like(state, 1e6)))
    assert owner.paid() == 1


# ---- other promises, other code, other ledger -------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"privacy__unit": "day"}, {"privacy__relation": "replace-one"}, {"privacy__delta": 1e-3}]
)
def test_another_unit_relation_or_delta(owner, server, no_data, changes):
    evil = server(**changes)
    no_data()
    assert evil.refused() is Refusal.SCENARIO_MISMATCH
    assert [row["kind"] for row in owner.rows()] == ["genesis"]


def test_other_code_and_another_scenario_than_it_says(owner, server, no_data):
    honest = server()
    no_data()
    assert honest.refused(source="0" * 64) is Refusal.SOURCE_MISMATCH
    assert honest.refused(scenario="0" * 64) is Refusal.SCENARIO_MISMATCH
    assert [row["kind"] for row in owner.rows()] == ["genesis"]


def test_another_data_set_behind_the_same_ledger(owner, server, no_data):
    honest = server()
    honest.trained()
    owner.write_node(dataset="meters-of-beta")
    client_app.release()
    no_data()
    assert honest.refused(round=2) is Refusal.LEDGER_CONFLICT
    assert owner.paid() == 1


def test_the_servers_paths_are_not_followed(owner, server):
    honest = server()
    context = owner.context({**honest.scenario.flat(), "data.path": "/etc/passwd", "data.source": "csv"})
    node = client_app.identify(context.node_config, context.run_config)
    assert node.local.data.path == str(owner.data)
    assert node.ledger == owner.ledger


def test_a_step_that_the_federation_did_not_agree_on(owner, server, no_data):
    """The server's label counts the steps of a day on the agreed calendar; a node's own file may say otherwise."""
    honest = server(data__source="nodes", data__frequency="1h", task__period=24)  # models of one size
    assert honest.trained().ledger_seq > 0
    owner.node.write_text(owner.node.read_text() + 'frequency = "2h"\n')
    forget()
    client_app.release()
    no_data()
    assert honest.refused(round=2) is Refusal.BAD_REQUEST
    assert owner.paid() == 1


def test_an_old_copy_of_the_ledger_file(owner, server, no_data):
    honest = server()
    honest.trained()
    client_app.release()
    old = owner.home / "old.sqlite"
    shutil.copy(owner.ledger, old)
    honest.trained(round=2)
    client_app.release()
    shutil.copy(old, owner.ledger)
    no_data()
    assert honest.refused(round=3) is Refusal.LEDGER_CONFLICT  # behind its high-water mark


def test_an_old_copy_of_the_whole_folder(owner, server, no_data):
    """A restored snapshot takes the high-water mark along; the head that the server echoes gives it away."""
    honest = server()
    honest.trained()
    client_app.release()
    snapshot = owner.home.with_name("snapshot")
    shutil.copytree(owner.home, snapshot)
    second = honest.trained(round=2)
    client_app.release()
    shutil.rmtree(owner.home)
    shutil.copytree(snapshot, owner.home)
    no_data()
    head = {"ledger_seq": second.ledger_seq, "ledger_head": second.ledger_head}
    assert honest.refused(round=3, **head) is Refusal.LEDGER_CONFLICT
    assert owner.paid() == 1  # the copy's own count; nothing was released on top of it


@pytest.mark.parametrize("after", [0, 1])
def test_a_deleted_ledger(owner, server, no_data, after):
    honest = server()
    for round in range(1, after + 1):
        honest.trained(round=round)
    client_app.release()
    for file in owner.home.glob("alpha.sqlite*"):
        file.unlink()
    no_data()
    assert honest.refused(round=after + 1) is Refusal.LEDGER_MISSING
    assert honest.send(RecordDict(), "query.budget").error.code == Refusal.LEDGER_MISSING
    assert not owner.ledger.exists()


def test_a_ledger_that_others_can_read(owner, server, no_data):
    honest = server()
    owner.ledger.chmod(0o644)
    no_data()
    assert honest.refused() is Refusal.LEDGER_CONFLICT


# ---- the owner's word -------------------------------------------------------------------------------


def test_the_owners_lower_epsilon_wins(owner, server, no_data):
    owner.write_node(epsilon=1.0)
    honest = server()  # asks for 4, and the ledger was once made for 4
    no_data()
    assert honest.refused() is Refusal.BUDGET_EXCEEDED
    assert "> 1 at" in owner.rows()[-1]["body"]["reason"]


def test_the_owners_higher_epsilon_does_not_change_an_old_ledger(owner, server, no_data):
    owner.write_node(epsilon=100.0)
    evil = server(privacy__epsilon=50.0)
    no_data()
    assert evil.refused() is Refusal.BUDGET_EXCEEDED
    assert "> 4 at" in owner.rows()[-1]["body"]["reason"]


def test_an_owner_who_lowers_epsilon_later_stops_the_run(owner, server, no_data):
    honest = server()
    honest.trained()
    client_app.release()
    owner.write_node(epsilon=1.0)
    no_data()
    assert honest.refused(round=2) is Refusal.BUDGET_EXCEEDED
    assert owner.paid() == 1


def test_scores_of_a_restored_ledger(owner, server, no_data):
    """The head is echoed with questions about scores and counts, too."""
    honest = server(privacy__release_metrics=20.0)
    honest.evaluated()
    client_app.release()
    snapshot = owner.home.with_name("snapshot")
    shutil.copytree(owner.home, snapshot)
    later = honest.evaluated(round=3)
    assert later.ledger_seq > 0
    client_app.release()
    shutil.rmtree(owner.home)
    shutil.copytree(snapshot, owner.home)
    no_data()
    head = {"ledger_seq": later.ledger_seq, "ledger_head": later.ledger_head}
    assert refusal_of(honest.evaluate(round=6, **head)) is Refusal.LEDGER_CONFLICT


def test_the_owners_delta_must_be_that_of_the_ledger(owner, server, no_data):
    owner.write_node(delta=1e-6)
    honest = server()
    no_data()
    assert honest.refused() is Refusal.LEDGER_CONFLICT


def test_a_smaller_run_fits_a_smaller_budget(owner, server):
    owner.write_node(epsilon=1.0)
    server(privacy__epsilon=0.9).trained()
    assert owner.paid() == 1


# ---- everything but training ------------------------------------------------------------------------


def test_scores_are_withheld(owner, server, no_data):
    honest = server()
    no_data()
    for round in (0, 3):
        reply = honest.evaluated(round=round, part="test")
        assert (reply.withheld, dict(reply.sums), dict(reply.released)) == (1, {}, {})
    count = CountRequest(run_id="run-1", source=source_digest(), scenario=honest.scenario.digest())
    assert refusal_of(honest.send(count.to_record(), COUNT)) is Refusal.BAD_REQUEST
    assert [row["kind"] for row in owner.rows()] == ["genesis"]


def test_noisy_scores_are_paid_for_and_end(owner, server, monkeypatch):
    honest = server(privacy__release_metrics=20.0)
    seen = []
    load = LocalWorker.release_metrics

    def look(self, *args, **kwargs):
        with Ledger.open(owner.ledger, readonly=True) as ledger:
            seen.append(ledger.spent_tokens("run-1#metrics"))
        return load(self, *args, **kwargs)

    monkeypatch.setattr(LocalWorker, "release_metrics", look)
    first = honest.evaluated()
    assert set(first.released) == {"window-mse", "window-mae"}
    assert all(0 <= value <= 4.0 for value in first.released.values())
    assert dict(honest.evaluated().released) == dict(first.released)  # the stored bytes
    assert refusal_of(honest.evaluate(model=model(honest, 0.1))) is Refusal.LEDGER_CONFLICT
    for round, part in ((3, "validation"), (6, "validation"), (6, "test")):
        honest.evaluated(round=round, part=part)
    assert refusal_of(honest.evaluate(round=5)) is Refusal.BUDGET_EXCEEDED
    assert seen == [1, 2, 3, 4]  # reserved before the rows were read
    with Ledger.open(owner.ledger, readonly=True) as ledger:
        assert ledger.committed() <= 4.0
        assert [c.run_id for c in ledger.contracts()] == ["run-1", "run-1#metrics"]
    honest.trained()  # the training contract was enrolled with them


def test_a_noisy_count_is_paid_for_once(owner, server, no_data):
    honest = server(privacy__release_count=50.0)
    request = CountRequest(run_id="run-1", source=source_digest(), scenario=honest.scenario.digest())
    first = read_count(honest.send(request.to_record(), COUNT), request)
    assert 0 < first.count < 60 * 24
    no_data()
    assert read_count(honest.send(request.to_record(), COUNT), request).count == first.count
    assert refusal_of(honest.send(replace(request, run_id="run-2").to_record(), COUNT)) is Refusal.BUDGET_EXCEEDED
    assert owner.paid() == 1


def test_a_filter_pays_by_divergence(owner, server):
    honest = server(privacy__accountant="rdp")
    honest.trained()
    client_app.release()
    with Ledger.open(owner.ledger, readonly=True) as ledger:
        (contract,) = ledger.filters()
        assert 0 < ledger.spent_tokens("run-1") < contract.tokens
        assert ledger.nominal() < ledger.committed() <= 4.0
    for round in range(2, 7):
        honest.trained(round=round)  # all that was planned fits
    forget()


def test_hardened_rounds_run_in_deployment(owner, server):
    honest = server(privacy__noise="discrete-gaussian", privacy__sampling_prob=1.0)
    assert not np.array_equal(honest.trained().parameters, honest.worker.initial_parameters())
    client_app.release()
    with Ledger.open(owner.ledger, readonly=True) as ledger:
        assert 3.9 < ledger.committed() <= 4.0


# ---- whether a client answers must not follow from its readings -----------------------------------------


@pytest.mark.parametrize("part", ["all", "training", "all but one reading"])
@pytest.mark.parametrize("changes", [{}, {"privacy__release_count": 20.0, "privacy__release_metrics": 200.0}])
def test_a_client_that_read_nothing_answers_and_pays_like_any_other(owner, server, part, changes):
    honest = server(**changes)
    table = pd.read_csv(owner.data)
    blank = slice(0, len(table) * 6 // 10) if part == "training" else slice(int(part == "all but one reading"), None)
    table.iloc[blank, 1:] = np.nan
    table.to_csv(owner.data, index=False)
    reply = honest.trained()
    assert np.isfinite(reply.parameters).all()
    assert not np.array_equal(reply.parameters, honest.worker.initial_parameters())  # noise
    assert owner.paid() == 1
    if changes:
        request = CountRequest(run_id="run-1", source=source_digest(), scenario=honest.scenario.digest(),
                               ledger_seq=reply.ledger_seq, ledger_head=reply.ledger_head)  # fmt: skip
        assert np.isfinite(read_count(honest.send(request.to_record(), COUNT), request).count)
        seq, head = owner_head(owner)
        assert honest.evaluated(ledger_seq=seq, ledger_head=head).released


def owner_head(owner):
    client_app.release()
    with Ledger.open(owner.ledger, readonly=True) as ledger:
        return ledger.head()
