"""The loop around the rounds: refusals, quorum, deadline, bad replies, budgets; always with the real ClientApp."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from clients import client_app
from fedpriv.cli import main
from fedpriv.errors import BudgetExceeded, CheckFailed, InputError, LedgerError
from fedpriv.messages import Refusal, decode_model, encode_model
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.reports.folder import RunFolder
from fedpriv.training import LocalWorker
from simulations.inline_grid import FIRST_NODE, InlineGrid
from strategies.aggregation import FedAvg
from strategies.base import FederatedStrategy
from strategies.federation import federation
from strategies.roster import Member
from strategies.state import Settings

BAD = FIRST_NODE + 1  # the second of three clients


def tampering(change, *, node=BAD, kind="train", rounds=range(1, 100)):
    """The real app, with the replies of one client changed."""

    def app(message, context):
        reply = client_app.app(message, context)
        mine = message.metadata.dst_node_id == node and message.metadata.message_type == kind
        if mine and int(message.metadata.group_id or 0) in rounds:
            return change(reply, message)
        return reply

    return app


def with_model(array):
    def change(reply, message):
        reply.content["model"] = ArrayRecord({"flat": Array(array(reply.content["model"]["flat"].numpy()))})
        return reply

    return change


def with_number(reply, message):
    reply.content["numbers"]["train_loss"] = 0.5
    return reply


def with_record(reply, message):
    reply.content["secret"] = MetricRecord({"mean": 1.0})
    return reply


def with_keys(reply, message):
    reply.content["model"] = ArrayRecord({"weights": encode_model(np.zeros(416, np.float32))["flat"]})
    return reply


def with_round(reply, message):
    reply.content["numbers"]["round"] = 99
    return reply


BAD_REPLIES = {
    "nan": with_model(lambda a: np.full_like(a, np.nan)),
    "one-inf": with_model(lambda a: np.concatenate([a[:-1], np.array([np.inf], np.float32)])),
    "short": with_model(lambda a: a[:-1]),
    "matrix": with_model(lambda a: a.reshape(1, -1)),
    "float64": with_model(lambda a: a.astype(np.float64)),
    "integers": with_model(lambda a: a.astype(np.int32)),
    "more-numbers": with_number,
    "more-records": with_record,
    "other-keys": with_keys,
    "other-round": with_round,
}


@pytest.mark.parametrize("name", list(BAD_REPLIES))
def test_a_bad_reply_is_rejected_and_the_others_count(tiny, run_inline, name):
    """The model is then the one of a run in which that client's updates are absent."""
    seen = []
    scenario = tiny(federation__rounds=2, federation__quorum=2)
    listener = lambda p: seen.append(p.report) if p.report else None  # noqa: E731
    model, folder = run_inline(scenario, app=tampering(BAD_REPLIES[name]), listener=listener)
    assert np.isfinite(model).all()
    assert [r.valid for r in seen] == [("utility-000", "utility-002")] * 2
    assert all(r.counted and r.refused == {"utility-001": Refusal.INTERNAL} for r in seen)
    assert folder.finished

    def silent(message, context):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == BAD:
            return Message(Error(1, "unknown"), reply_to=message)
        return client_app.app(message, context)

    absent, _ = run_inline(tiny("absent", federation__rounds=2, federation__quorum=2), app=silent)
    assert np.array_equal(model, absent)


def test_without_the_quorum_the_model_stays_and_three_such_rounds_end_the_run(tiny, run_inline, kept):
    scenario = tiny(federation__quorum=3)
    with pytest.raises(CheckFailed, match=r"3 rounds in a row.*2 of 3; refused: utility-001: internal"):
        run_inline(scenario, app=tampering(BAD_REPLIES["nan"], rounds=range(3, 100)))
    folder = RunFolder.open(scenario.run.out)
    assert (folder.status["status"], folder.last_round) == ("failed", 5)

    def stop(progress):
        if progress.stage == "round" and progress.round == 2:
            raise KeyboardInterrupt

    other = tiny("other", federation__quorum=3)
    with pytest.raises(KeyboardInterrupt):
        run_inline(other, listener=stop)
    assert kept(other)[0] == 2
    assert np.array_equal(kept(scenario)[1], kept(other)[1])


def test_one_missed_round_is_not_the_end(tiny, run_inline):
    seen = []
    listener = lambda p: seen.append(p.report.counted) if p.report else None  # noqa: E731
    _, folder = run_inline(tiny(), app=tampering(BAD_REPLIES["nan"], rounds=[2]), listener=listener)
    assert seen == [True, False, True, True, True, True]
    assert folder.finished


def spend(scenario, clients):
    """A folder in which another run has used the whole budget of these clients' data sets."""
    folder = RunFolder.create(scenario.run.out, scenario)
    contract = LocalWorker.for_scenario(scenario).commitments.contract("another-run")
    assert contract is not None
    for client in clients:
        with Ledger.create(
            folder.ledger_path(client),
            dataset=f"{scenario.data.source}:{client}",
            budget_epsilon=scenario.privacy.epsilon,
            delta=scenario.privacy.delta,
            unit=scenario.privacy.unit,
            relation=scenario.privacy.relation,
            mode="simulation",
        ) as ledger:
            ledger.enrol(contract)
    return folder


def test_a_client_without_budget_is_left_out_and_the_others_go_on(tiny, run_inline):
    scenario, seen = tiny(), []
    folder = spend(scenario, ["utility-001"])
    run_inline(scenario, folder=folder, listener=lambda p: seen.append(p.report) if p.report else None)
    assert seen[0].refused == {"utility-001": Refusal.BUDGET_EXCEEDED}
    assert [r.asked for r in seen[1:]] == [("utility-000", "utility-002")] * 5
    assert all(r.counted for r in seen)
    assert folder.status["retired"] == {"utility-001": "budget-exceeded"}
    # it still has scores, with the model of the others
    assert {row["client"] for row in folder.metrics()} == {"utility-000", "utility-001", "utility-002"}


def test_when_every_budget_is_spent_the_run_stops_with_a_report(tiny, run_inline):
    scenario = tiny()
    folder = spend(scenario, ["utility-000", "utility-001", "utility-002"])
    with pytest.raises(
        BudgetExceeded, match=r"no client's privacy budget allows this run; 0 of 6 rounds were trained.* of its 8"
    ):
        run_inline(scenario, folder=folder)
    status = RunFolder.open(scenario.run.out).status
    assert (status["status"], status["error"]) == ("refused", "BudgetExceeded")
    assert len(status["retired"]) == 3
    assert "privacy budget" in status["reason"]


def test_ledgers_that_vanish_stop_the_run(tiny, run_inline):
    scenario = tiny()

    def steal(progress):
        if progress.stage == "round" and progress.round == 2:
            client_app.release()
            for path in (RunFolder.open(scenario.run.out).path / "ledgers").iterdir():
                path.unlink()

    with pytest.raises(LedgerError, match=r"every client refuses \(ledger-missing\)"):
        run_inline(scenario, listener=steal)
    folder = RunFolder.open(scenario.run.out)
    assert folder.status["status"] == "refused"
    assert folder.model()  # two rounds counted: their model is kept and scored


def test_a_client_without_data_is_bad_input(tiny, run_inline, monkeypatch):
    scenario = tiny()
    load = LocalWorker.train

    def train(self, client, *args, **kwargs):
        if client == "utility-002":
            raise InputError("SECRET: /home/meters.csv has no usable window")
        return load(self, client, *args, **kwargs)

    monkeypatch.setattr(LocalWorker, "train", train)
    with pytest.raises(InputError, match=r"round 1 needs all clients.*utility-002 \(no-data") as caught:
        run_inline(scenario)
    assert "SECRET" not in str(caught.value)
    # with a quorum the others go on
    _, folder = run_inline(tiny("quorum", federation__quorum=2))
    assert folder.status["retired"] == {"utility-002": "no-data"}


def test_a_client_that_comes_too_late_is_missing(tiny, run_inline, monkeypatch):
    seen, now = [], [0.0]
    for module in ("simulations.inline_grid", "strategies.base"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(message, context):
        if message.metadata.dst_node_id == BAD and message.metadata.message_type == "train":
            now[0] += 0.6
        return client_app.app(message, context)

    scenario = tiny(federation__rounds=2, federation__quorum=2, federation__deadline=0.5)
    # one client after the other: the third has no time left
    run_inline(scenario, app=slow, listener=lambda p: seen.append(p.report) if p.report else None)
    assert [r.missing for r in seen] == [("utility-002",)] * 2
    assert all(r.counted for r in seen)


def test_a_node_that_died_is_asked_once_more_with_the_same_result(tiny, run_inline):
    died = set()

    def dies(message, context):
        key = (message.metadata.group_id, message.metadata.dst_node_id)
        if message.metadata.message_type == "train" and key[1] == BAD and key not in died:
            died.add(key)
            client_app.app(message, context)  # it trained, and died before it could answer
            return Refusal.NODE_LOST.to_message(message)
        return client_app.app(message, context)

    seen = []
    model, folder = run_inline(tiny(), app=dies, listener=lambda p: seen.append(p.report) if p.report else None)
    whole, _ = run_inline(tiny("whole"))
    assert len(died) == 6
    assert all(len(r.valid) == 3 for r in seen)
    assert np.array_equal(model, whole)
    with Ledger.open(folder.ledger_path("utility-001"), readonly=True) as ledger:
        assert ledger.spent_tokens(folder.status["run_id"]) == 6  # charged once each


def test_absent_clients_end_the_run_before_it_begins(tiny, run_inline):
    class Fewer(InlineGrid):
        def get_node_ids(self):
            return [FIRST_NODE, FIRST_NODE + 2]

    scenario = tiny(federation__deadline=0.1)
    folder = RunFolder.create(scenario.run.out, scenario)
    with pytest.raises(InputError, match="2 of 3 clients are there"):
        federation(Fewer(client_app.app, 3, scenario.flat()), scenario, folder)
    scenario = tiny("enough", federation__quorum=2, federation__rounds=1)
    folder = RunFolder.create(scenario.run.out, scenario)
    folder.update_status(patience=0.1)
    federation(Fewer(client_app.app, 3, scenario.flat()), scenario, folder)
    assert folder.status["clients"] == ["utility-000", "utility-002"]


def test_client_sampling_follows_seed_and_partition_order(tiny, run_inline):
    def who(name, seed):
        seen = []
        scenario = tiny(name, federation__clients_per_round=2, run__seed=seed, evaluation__every=6)
        run_inline(scenario, listener=lambda p: seen.append(p.report.asked) if p.report else None)
        return seen

    first = who("a", 1)
    assert all(len(asked) == 2 and list(asked) == sorted(asked) for asked in first)
    assert first == who("b", 1) != who("c", 2)


def test_a_model_that_explodes_is_not_kept(tiny, run_inline, kept):
    scenario = tiny(strategy__options={"server_learning_rate": 1e60, "momentum": 0.0})
    with pytest.raises(CheckFailed, match="not finite"):
        run_inline(scenario)
    assert np.isfinite(kept(scenario)[1]).all()


def test_public_weights(tiny, run_inline):
    weights = "utility-000:2;utility-001:1;utility-002:1"
    weighted, _ = run_inline(tiny(strategy__options={"weights": weights}))
    equal, _ = run_inline(tiny("equal"))
    assert not np.array_equal(weighted, equal)
    with pytest.raises(InputError, match=r"names A, but the clients are"):
        run_inline(tiny("bad", strategy__options={"weights": "A:1"}))


def test_the_strategy_runs_under_flowers_own_entry_point(tiny):
    """`start()` has Flower's signature and returns Flower's result."""
    scenario = tiny()
    worker = LocalWorker.for_scenario(scenario)
    settings = Settings(
        run_id="r",
        source=source_digest(),
        scenario=scenario.digest(),
        rounds=2,
        steps=1,
        seed=1,
    )
    members = [Member(i, f"utility-00{i}", FIRST_NODE + i, "simulation") for i in range(3)]
    strategy = FederatedStrategy(settings, FedAvg(), members)
    assert isinstance(strategy, Strategy)
    grid = InlineGrid(client_app.app, 3, scenario.flat())
    scored = []
    result = strategy.start(
        grid,
        encode_model(worker.initial_parameters()),
        num_rounds=2,
        evaluate_config=ConfigRecord({"part": "validation", "samples": 0}),
        evaluate_fn=lambda number, arrays: scored.append(number),
    )
    assert sorted(result.train_metrics_clientapp) == [1, 2] == scored
    assert result.evaluate_metrics_clientapp[2]["answered"] == 3
    assert decode_model(result.arrays, num_parameters=worker.num_parameters).shape == (worker.num_parameters,)


def test_no_label_leaves_out_a_client_that_answered(tiny, run_inline, capsys):
    scenario = tiny(federation__rounds=2)
    _, folder = run_inline(scenario)
    assert sorted(folder.heads()) == ["utility-000", "utility-001", "utility-002"]
    assert main(["ledger", "label", scenario.run.out]) == 0
    folder.ledger_path("utility-001").unlink()
    assert main(["ledger", "label", scenario.run.out]) != 0
    said = capsys.readouterr().err
    assert "utility-001 answered in this run" in said and "no label was written" in said
