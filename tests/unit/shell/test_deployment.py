"""A node and a federation on disk: what is made, what is refused, and that both sides mean the same run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict

from clients import client_app, executor
from clients.checkup import check, node_content
from clients.client_app import app
from clients.enrolment import Owner, agree, init, read_auth_public
from clients.node import forget, identify
from clients.supernode import Link, command, environment
from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.errors import InputError, LedgerError
from fedpriv.messages import Refusal, TrainRequest, encode_model
from fedpriv.privacy.label import build_stated_label
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.resolving import resolve
from fedpriv.training import LocalWorker
from simulations import federation_setup
from simulations.flower_internals import become_server
from simulations.launch import simulate
from strategies.lobby import Lobby
from strategies.roster import Member

SMALL = {
    "data.days": 90, "task.context": 48, "model.depth": 0, "diffusion.multiplicity": 2, "privacy.sampling_prob": 0.3,
    "privacy.epsilon": 4.0, "federation.rounds": 3, "evaluation.windows": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("FEDPRIV_SIMULATION", raising=False)
    become_server()
    forget()
    client_app.release()
    yield
    client_app.release()
    forget()


@pytest.fixture
def federation(tmp_path):
    return federation_setup.init(tmp_path / "fed", Scenario().override(SMALL), clients=2, insecure=True)


@pytest.fixture
def owner(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=90 * 24, freq="h")
    level = 50 + 20 * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24)
    frame = pd.DataFrame({"time": stamps, "m1": level, "m2": level + 5, "other": 1.0})
    frame.to_csv(tmp_path / "load.csv", index=False)

    def make(**changes) -> Owner:
        data = {"source": "csv", "path": str(tmp_path / "load.csv"), "group": "North", "clients": ["m1", "m2"]}
        return Owner(**{"client": "North", "data": data, "epsilon": 8.0, **changes})

    return make


@pytest.fixture
def node(tmp_path, federation, owner):
    folder = tmp_path / "node"
    init(folder, owner(), [federation.folder / "scenario.toml"])
    return folder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- the node -----------------------------------------------------------------------------------------


def test_what_is_made_is_the_owners_alone(node):
    assert mode_of(node) == 0o700
    for name in ("node.toml", "label.key", "auth.key", "ledger.sqlite"):
        assert mode_of(node / name) == 0o600, name
    with Ledger.open(node / "ledger.sqlite", dataset="North", mode="deployment") as ledger:
        assert (ledger.budget_epsilon, ledger.unit, ledger.delta) == (8.0, "reading", 1e-5)
    assert read_auth_public(node / "auth.key.pub").startswith("ecdsa-sha2-nistp384 ")


def test_both_sides_mean_the_same_run(node, federation):
    found = identify({"fedpriv-node": str(node / "node.toml")}, federation.scenario.flat())
    assert found.agreed == (federation.scenario.digest(),) == (found.digest,)
    worker, here = LocalWorker.for_scenario(federation.scenario), LocalWorker.for_scenario(found.local)
    assert worker.num_parameters == here.num_parameters
    assert worker.commitments.contract("r") == here.commitments.contract("r")
    data = load_client(found.local, "North")  # by its public name; columns are meters
    assert data.meters == ("m1", "m2") and data.name == "North"


def test_check_tells_what_is_read_promised_and_left(node, federation):
    report = check(node)
    assert report.problems == () and report.facts["ledger"]["left"] == 8.0
    assert report.facts["data"]["meters"] == 2 and report.facts["data"]["step"] == "1h"
    (fit,) = report.fits
    assert (fit.digest, fit.joined, fit.objection) == (federation.scenario.digest(), False, "")
    assert fit.epsilon == pytest.approx(4.0, abs=0.01) and fit.total == pytest.approx(fit.epsilon)


def test_a_spent_budget_is_seen_before_the_server_asks(node, federation):
    worker = LocalWorker.for_scenario(federation.scenario.override({"privacy.noise_multiplier": 0.7}))
    with Ledger.open(node / "ledger.sqlite", dataset="North") as ledger:
        contract = worker.commitments.contract("earlier")
        assert contract is not None
        ledger.enrol(type(contract)(**{**contract.to_json(), "epsilon": 8.0}))
    (fit,) = check(node).fits
    assert fit.total > 8 and "is left" in fit.objection


def test_a_joined_run_is_not_counted_twice(node, federation):
    with Ledger.open(node / "ledger.sqlite", dataset="North") as ledger:
        ledger.enrol(LocalWorker.for_scenario(federation.scenario).commitments.contract("the-run"))
    (fit,) = check(node).fits
    assert fit.joined and fit.total == pytest.approx(4.0, abs=0.01) and not fit.objection


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epsilon": 2.0}, "costs epsilon 4"),
        ({"unit": "day"}, "about unit reading"),
        ({"delta": 1e-6}, "delta 1e-06"),
        ({"epsilon": 0.0}, "not positive"),
        ({"unit": "year"}, "reading, day or week"),
        ({"client": "a\nb"}, "printable"),
    ],
)
def test_what_cannot_be_promised_is_refused_and_nothing_is_made(tmp_path, federation, owner, changes, says):
    with pytest.raises(InputError, match=says):
        init(tmp_path / "node", owner(**changes), [federation.folder / "scenario.toml"])
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"clients": ["m9"]}, "the nearest is"),
        ({"path": "/nowhere/load.csv"}, "does not exist"),
        ({"channels": ["m1", "m2"], "clients": []}, "2 in steps"),
        ({"group": "", "clients": ["m1", "m2"]}, "describes 2 clients"),
    ],
)
def test_data_are_checked_first(tmp_path, federation, owner, data, says):
    section = {**owner().data, **data}
    section = {k: v for k, v in section.items() if v}
    with pytest.raises(InputError, match=says):
        init(tmp_path / "node", owner(data=section), [federation.folder / "scenario.toml"])
    assert not (tmp_path / "node").exists()


def test_a_node_is_never_overwritten(node, federation, owner):
    before = (node / "ledger.sqlite").read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        init(node, owner(), [federation.folder / "scenario.toml"])
    assert (node / "ledger.sqlite").read_bytes() == before


def test_consent_is_asked_for(tmp_path, owner):
    with pytest.raises(InputError, match="no scenario was given"):
        init(tmp_path / "node", owner(), [])
    init(tmp_path / "node", owner(), [], any_scenario=True)
    assert "scenarios" not in node_content(tmp_path / "node")


def test_an_open_scenario_is_not_agreed_to(tmp_path, node):
    (tmp_path / "open.toml").write_text('[data]\nsource = "nodes"\nfrequency = "1h"\n')
    with pytest.raises(InputError, match="noise multiplier"):
        agree(node, tmp_path / "open.toml")


def request(scenario: Scenario) -> RecordDict:
    worker = LocalWorker.for_scenario(scenario)
    asked = TrainRequest(
        run_id="r", round=1, steps=scenario.federation.local_steps, source=source_digest(), scenario=scenario.digest(),
        ledger_seq=0, ledger_head="", model=encode_model(worker.initial_parameters()),
    )  # fmt: skip
    return asked.to_record()


def ask(node: Path, scenario: Scenario) -> Message:
    config = {"fedpriv-node": str(node / "node.toml")}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config=scenario.flat())
    return app(Message(request(scenario), 7, "train"), context)


def test_only_agreed_scenarios_are_served(tmp_path, node, federation):
    other = resolve(federation.scenario.override({"federation.rounds": 2, "privacy.noise_multiplier": 4.0}))
    reply = ask(node, other)
    assert reply.error.code == Refusal.SCENARIO_MISMATCH
    with Ledger.open(node / "ledger.sqlite", readonly=True) as ledger:
        assert [row["kind"] for row in ledger.rows()] == ["genesis"]
    (tmp_path / "other.toml").write_text(other.to_toml())
    assert agree(node, tmp_path / "other.toml").objection == ""
    forget()
    assert not ask(node, other).has_error()


def test_a_missing_ledger_is_never_made_again(node, federation):
    for path in node.glob("ledger.sqlite*"):
        path.unlink()
    assert ask(node, federation.scenario).error.code == Refusal.LEDGER_MISSING
    assert not (node / "ledger.sqlite").exists()
    with pytest.raises(LedgerError, match="no ledger"):
        check(node)


def test_files_that_others_can_read_are_named(node):
    os.chmod(node / "auth.key", 0o644)
    assert any("auth.key is open" in problem for problem in check(node).problems)


# ---- its processes ------------------------------------------------------------------------------------


def test_the_installed_client_is_what_runs():
    """The names that are replaced are there in this Flower, and what replaces them ignores the bundle."""
    import inspect

    from flwr.supercore.superexec import run_superexec
    from flwr.supernode.runtime import run_clientapp

    assert callable(run_superexec.get_executor)
    source = inspect.getsource(run_clientapp.run_clientapp)
    assert "install_from_fab(fab.content, skip_prompt=True)" in source and "load_client_app_fn(" in source

    class Fake:
        install_from_fab = run_clientapp.install_from_fab
        get_load_client_app_fn = run_clientapp.get_load_client_app_fn

    executor.pin(Fake, app)
    assert Fake.install_from_fab(b"no bundle at all", skip_prompt=True) is None
    assert Fake.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("a", "b", "c") is app


def test_no_other_kind_of_task_runs_beside_the_data():
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus

    made = executor.InstalledApp()
    assert made.get_eligible_capacity(set(TaskType)) == ({TaskType.CLIENT_APP}, set())
    for kind in set(TaskType) - {TaskType.CLIENT_APP}:
        spec = ExecutionSpec(kind, "127.0.0.1:1", "t", True, None, False, None, True, 1)
        assert made.launch(spec).status == LaunchResultStatus.FAILED


def test_the_command_and_its_environment(node, monkeypatch):
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    monkeypatch.setenv("FLWR_TRACE", "x")
    env = environment(node)
    assert "FEDPRIV_SIMULATION" not in env and "FLWR_TRACE" not in env and env["FLWR_TELEMETRY_ENABLED"] == "0"
    secret = node / "secret"
    words = command(node, Link(address="h:1", certificates=node / "ca.crt"), port=5, secret=secret)
    assert (
        "--insecure" not in words
        and str(node / "auth.key") in words
        and words[words.index("--host") + 1] == "127.0.0.1"
    )
    open_words = command(node, Link(address="h:1", insecure=True), port=5, secret=secret)
    assert "--insecure" in open_words and "--auth-supernode-private-key" not in open_words


# ---- the federation -----------------------------------------------------------------------------------


def test_a_servers_scenario_names_no_place(tmp_path):
    scenario = Scenario().override({**SMALL, "data.dir": "/srv/data", "run.out": "/srv/out"})
    made = federation_setup.for_nodes(scenario, clients=3)
    assert (made.data.source, made.data.frequency, made.partition.clients) == ("nodes", "1h", 3)
    assert (made.data.dir, made.data.path, made.run.out) == ("", "", "")
    assert len(roster(made).names) == 3
    with pytest.raises(InputError, match="lie at the nodes"):
        load_client(made, "node-000")
    with pytest.raises(InputError, match="federation"):
        simulate(made, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy.enabled": False}, "with privacy only"),
        ({"partition.kind": "iid"}, "each node has its own"),
        ({"model.warm_start": "/w.safetensors"}, "no file that a server names"),
    ],
)
def test_scenarios_that_no_node_would_serve(changes, says):
    with pytest.raises(InputError, match=says):
        federation_setup.for_nodes(Scenario().override(changes), clients=2)


def test_certificates_hold_for_the_names_given(tmp_path):
    from cryptography import x509

    made = federation_setup.init(
        tmp_path / "fed", Scenario().override(SMALL), clients=1, tls=["grid.example", "10.0.0.7"]
    )
    assert made.server.authenticate and not made.server.insecure
    leaf = x509.load_pem_x509_certificate(Path(made.server.certificate).read_bytes())
    root = x509.load_pem_x509_certificate(Path(made.server.ca).read_bytes())
    leaf.verify_directly_issued_by(root)
    held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert held.get_values_for_type(x509.DNSName) == ["grid.example"]
    assert [str(a) for a in held.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert mode_of(Path(made.server.key)) == 0o600 and mode_of(made.folder / "tls" / "ca.key") == 0o600


def test_tls_or_not_is_said(tmp_path):
    for choice in ({}, {"tls": ["a"], "insecure": True}):
        with pytest.raises(InputError, match="not both"):
            federation_setup.init(tmp_path / "fed", Scenario().override(SMALL), clients=1, **choice)


def test_nodes_are_admitted_by_key(tmp_path, node, federation):
    path = federation_setup.admit(federation.folder, node / "auth.key.pub", "North")
    assert path.read_text().strip() == read_auth_public(node / "auth.key.pub")
    with pytest.raises(InputError, match="no EC public key"):
        federation_setup.admit(federation.folder, node / "label.key", "South")
    with pytest.raises(InputError, match="letters, digits"):
        federation_setup.admit(federation.folder, node / "auth.key.pub", "../x")


class Nodes:
    """The part of a grid that a lobby uses."""

    def __init__(self, *online: int) -> None:
        self.online = set(online)

    def get_node_ids(self):
        return self.online


def test_a_client_that_comes_back_takes_its_place(monkeypatch):
    who = {1: "North", 2: "South", 3: "North"}
    asked: list[int] = []

    def ask_who(grid, node_ids, *, source, timeout):
        asked.extend(node_ids)
        return [Member(-1, who[n], n, "deployment") for n in node_ids], {}

    monkeypatch.setattr("strategies.lobby.ask_who", ask_who)
    lobby, members = Lobby("s", {1, 2}), [Member(-1, "North", 1, "deployment"), Member(-1, "South", 2, "deployment")]
    grid = Nodes(1, 2, 3)
    # A second node that says it is North changes nothing while the first one answers.
    assert lobby.refresh(grid, members, ()) == members and asked == [3]
    assert lobby.refresh(grid, members, ["South"]) == members
    # The first one fell silent: now it does. And it is asked who it is only once.
    assert [m.node_id for m in lobby.refresh(grid, members, ["North"])] == [3, 2] and asked == [3]
    grid.online = {2, 3}
    lobby = Lobby("s", {1, 2})
    assert [m.node_id for m in lobby.refresh(grid, members, ())] == [3, 2]


def test_a_servers_label_claims_no_more_than_was_stated(federation):
    worker = LocalWorker.for_scenario(federation.scenario)
    account = {"committed": 3.9, "nominal": 1.0, "budget": 8.0, "delta": 1e-5}
    contract = worker.commitments.contract("r")
    label = build_stated_label(federation.scenario, [contract], {"North": account}, steps_per_day=24)
    assert (label["mode"], label["seeded"], label["max_epsilon"]) == ("deployment", False, 3.9)
    assert label["ladder"]["reading"] == pytest.approx(4.0, abs=0.01) and label["ladder"]["day"] > 4
    # A client with other runs: their cost in other units is unknown here, so those rungs stay open.
    more = {"North": account, "South": {**account, "committed": 7.0}}
    label = build_stated_label(federation.scenario, [contract], more, steps_per_day=24)
    assert label["max_epsilon"] == 7.0 == label["ladder"]["reading"]
    assert label["ladder"]["day"] is None and set(label["ladders"]["replace-one"].values()) == {None}
    with pytest.raises(InputError, match="stated its account"):
        build_stated_label(federation.scenario, [contract], {}, steps_per_day=24)
