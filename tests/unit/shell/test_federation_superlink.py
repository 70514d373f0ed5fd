"""`fedpriv federation run --superlink`: a SuperLink of this machine, and no other."""

from __future__ import annotations

import socket

import pytest

from fedpriv.cli import main
from fedpriv.config import Scenario
from fedpriv.errors import InputError
from simulations import federation_setup
from simulations.federation_launch import check_superlink


@pytest.mark.parametrize("address", ["127.0.0.1:9093", "localhost:9093", "[::1]:9093", "127.8.9.10:1"])
def test_addresses_of_this_machine(address):
    if address.startswith("[") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    check_superlink(address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1", "is not HOST:PORT"),
        (":9093", "is not HOST:PORT"),
        ("localhost:70000", "is not HOST:PORT"),
        ("localhost:x", "is not HOST:PORT"),
        ("no-such-host.invalid:9093", "the host is not known"),
        ("192.0.2.1:9093", "is another machine"),  # RFC 5737: an address that no machine has
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(tmp_path, address, words, capsys):
    with pytest.raises(InputError, match=words):
        check_superlink(address)
    scenario = Scenario().override({"task.context": 48, "federation.rounds": 1, "privacy.noise_multiplier": 50.0})
    federation_setup.init(tmp_path / "fed", scenario, clients=1, port=9093, tls=(), insecure=True)
    assert main(["federation", "run", str(tmp_path / "fed"), "--superlink", address]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "nothing was started" in said.lower()
    assert not (tmp_path / "fed" / "run").exists()
