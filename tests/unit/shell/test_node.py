"""Who am I: simulated only when our launchers say so, deployed only with the operator's file, else nobody."""

from __future__ import annotations

import os

import pytest

from clients.node import NotConfigured, forget, identify
from fedpriv.config import Scenario
from fedpriv.errors import InputError


@pytest.fixture(autouse=True)
def _fresh():
    forget()
    yield
    forget()


@pytest.fixture
def run_config(tmp_path):
    return Scenario().override({"run.out": str(tmp_path / "run"), "partition.clients": 3}).flat()


@pytest.fixture
def node_file(tmp_path):
    def write(text="", **changes):
        path = tmp_path / "node.toml"
        fields = {"client": "Utility A", "ledger": "/l/a.sqlite", "dataset": "meters", "epsilon": 4.0, "delta": 1e-5}
        lines = [f"{k} = {v!r}".replace("'", '"') for k, v in {**fields, **changes}.items() if v is not None]
        path.write_text("\n".join([*lines, text or '[data]\nsource = "csv"\npath = "/d/own.csv"\n']))
        path.chmod(0o600)
        return {"fedpriv-node": str(path)}

    return write


def test_simulated_needs_the_variable_and_a_partition(monkeypatch, run_config, tmp_path):
    where = {"partition-id": 1, "num-partitions": 3}
    monkeypatch.delenv("FEDPRIV_SIMULATION", raising=False)
    with pytest.raises(NotConfigured):
        identify(where, run_config)
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    with pytest.raises(NotConfigured):
        identify({}, run_config)
    node = identify(where, run_config)
    assert (node.client, node.mode, node.partition, node.partitions) == ("utility-001", "simulation", 1, 3)
    assert node.ledger.parent == tmp_path / "run" / "ledgers"
    assert node.digest == Scenario.from_flat(run_config).digest()


def test_identifying_again_costs_next_to_nothing(monkeypatch, run_config):
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    first = identify({"partition-id": 0, "num-partitions": 3}, run_config)
    assert identify({"partition-id": 0, "num-partitions": 3}, dict(run_config)) is first


@pytest.mark.parametrize("partition", [3, -1, "0"])
def test_partition_out_of_range(monkeypatch, run_config, partition):
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    with pytest.raises(InputError, match="partition-id"):
        identify({"partition-id": partition}, run_config)


def test_a_server_cannot_redirect_a_deployed_node(monkeypatch, run_config, node_file):
    """Neither the run config nor the simulation variable alone changes whose data are read."""
    monkeypatch.delenv("FEDPRIV_SIMULATION", raising=False)
    run_config |= {"data.source": "csv", "data.path": "/etc/passwd", "data.train_fraction": 0.5, "data.clients": "x"}
    node = identify(node_file() | {"partition-id": 0}, run_config)
    assert (node.client, node.mode, node.epsilon) == ("Utility A", "deployment", 4.0)
    assert (node.local.data.source, node.local.data.path) == ("csv", "/d/own.csv")
    assert node.local.data.clients == ()
    assert node.local.data.train_fraction == 0.5  # an agreement of the federation
    assert str(node.ledger) == "/l/a.sqlite"


def test_the_operator_has_the_last_word(node_file, run_config):
    text = '[data]\nsource = "csv"\npath = "/d/own.csv"\ntrain_fraction = 0.7\n'
    assert identify(node_file(text), run_config).local.data.train_fraction == 0.7


def test_without_privacy_a_deployed_node_does_nothing(node_file, run_config):
    with pytest.raises(NotConfigured, match="privacy only"):
        identify(node_file(), run_config | {"privacy.enabled": False})


@pytest.mark.parametrize("changes", [{"client": None}, {"ledger": None}, {"more": 1}, {"epsilon": None}])
def test_missing_and_unknown_keys(node_file, run_config, changes):
    with pytest.raises(NotConfigured, match="unknown or missing keys"):
        identify(node_file(**changes), run_config)


@pytest.mark.parametrize("line", ["epsilon = nan", "epsilon = inf", "epsilon = 0", "epsilon = true", 'epsilon = "4"',
                                  "delta = nan", "delta = 1.0", "delta = 0.0"])  # fmt: skip
def test_a_budget_that_is_none(node_file, run_config, line, tmp_path):
    config, name = node_file(), line.split()[0]
    path = tmp_path / "node.toml"
    lines = [line if each.startswith(f"{name} =") else each for each in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(NotConfigured, match=f"says {name}="):
        identify(config, run_config)


def test_a_file_that_others_can_write(node_file, run_config):
    config = node_file()
    os.chmod(config["fedpriv-node"], 0o666)
    with pytest.raises(NotConfigured, match="go-w"):
        identify(config, run_config)


def test_no_file_and_no_toml(tmp_path, run_config):
    with pytest.raises(NotConfigured, match="cannot be read"):
        identify({"fedpriv-node": str(tmp_path / "absent.toml")}, run_config)
    (tmp_path / "bad.toml").write_text("= =")
    with pytest.raises(NotConfigured, match="cannot be read"):
        identify({"fedpriv-node": str(tmp_path / "bad.toml")}, run_config)
