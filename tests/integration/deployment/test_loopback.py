"""Real processes: SuperLink, SuperNodes, forked tasks; nodes that refuse, die and come back; a server that dies."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from clients.checkup import check
from fedpriv.config import Scenario
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.signing import verify_label
from fedpriv.training import LocalWorker
from simulations.launch import Run

pytestmark = pytest.mark.slow


def spend_all(node, scenario: Scenario) -> None:
    """An earlier run of the same cost, so that nothing is left."""
    contract = LocalWorker.for_scenario(scenario).commitments.contract("an-earlier-run")
    assert contract is not None
    content = (node / "node.toml").read_text()
    dataset = next(line.split('"')[1] for line in content.splitlines() if line.startswith("dataset"))
    with Ledger.open(node / "ledger.sqlite", dataset=dataset) as ledger:
        ledger.enrol(contract)


def test_a_federation_survives_refusal_and_death(site, chain, spent, leaks):
    site.serve(clients=3, federation__rounds=6, federation__quorum=1)
    north, south, east = site.join("North"), site.join("South"), site.join("East", epsilon=4.0)
    scenario = Scenario.from_toml(site.fed / "scenario.toml")
    spend_all(east, scenario)
    nodes = [
        site.start("node", "run", node, "--superlink", f"127.0.0.1:{site.port}", "--insecure")
        for node in (north, south, east)
    ]
    server = site.start("federation", "run", site.fed)
    site.wait(lambda: site.status().get("round", 0) >= 2, "round 2", alive=(server, *nodes))
    assert site.status()["retired"] == {"East": "budget-exceeded"}

    site.kill(north / "flower")  # its supervisor starts it again, under another node id
    reached = site.status()["round"]
    before = spent(north)
    site.wait(
        lambda: site.status().get("round", 0) > reached or site.status().get("status") == "done", "the next round",
        alive=(server,),
    )  # fmt: skip

    server.send_signal(signal.SIGKILL)  # and with it SuperLink and ServerApp, as in a power cut
    site.kill(site.fed / "superlink" / "home")
    server.wait()
    again = site.start("federation", "run", site.fed, "--resume", "--json")
    site.wait(lambda: again.poll() is not None, "the end")
    assert again.returncode == 0, site.output()

    status = site.status()
    assert (status["status"], status["round"]) == ("done", 6)
    assert set(status["stated"]) >= {"North", "South"} and status["retired"] == {"East": "budget-exceeded"}
    # Every round was paid for at most once, East paid for none of them, and no client sent more than its contract.
    assert spent(east) == 0 and "refused" in {row["kind"] for row in chain(east)}
    assert spent(south) <= scenario.steps_total and before <= spent(north) <= scenario.steps_total
    assert spent(north) > before  # it came back and trained on
    label = json.loads((site.fed / "run" / "label.json").read_text())
    assert label["mode"] == "deployment" and not label["seeded"]
    assert label["committed"]["North"] == pytest.approx(4.0, rel=1e-3) and label["max_epsilon"] <= 8.0
    assert "budget-exceeded" in site.output() and (site.fed / "run" / "report.html").exists()
    for path in site.fed.rglob("*"):  # SuperLink's database of messages, its log, the run folder
        assert "SECRET" not in path.name
        if path.is_file():
            assert not leaks(path.read_bytes()), path
    assert not leaks("\n".join(p.read_text() for p in site.home.glob("federation-*.out")).encode())
    own = json.loads(site.fedpriv("ledger", "label", south / "node.toml", "--json"))
    verify_label(own, public_key=check(south).facts["label_key"])
    assert own["mode"] == "deployment" and own["max_epsilon"] == pytest.approx(label["committed"]["South"])


def test_tls_and_admitted_nodes_only(site, spent):
    """And a client that is asked for final scores of a private personal model pays, keeps it, and sends nothing."""
    personal = {"personal__kind": "private", "personal__steps": 3}
    site.serve(clients=1, tls=("localhost", "127.0.0.1"), federation__rounds=1, **personal)
    north, stranger = site.join("North"), site.join("Stranger")
    site.fedpriv("federation", "admit", site.fed, north / "auth.key.pub", "--name", "North")
    reach = ("--superlink", f"127.0.0.1:{site.port}", "--root-certificates", site.fed / "tls" / "ca.crt")
    server = site.start("federation", "run", site.fed)
    site.wait(lambda: "listening" in site.output(), "the server", alive=(server,))
    site.start("node", "run", stranger, *reach)
    site.start("node", "run", north, *reach)
    site.wait(lambda: server.poll() is not None, "the end")
    assert server.returncode == 0, site.output()
    assert site.status()["clients"] == ["North"] and spent(north) == 2 + 3 and spent(stranger) == 0
    own = north / "ledger.personal.safetensors"
    assert own.stat().st_mode & 0o777 == 0o600 and not (stranger / own.name).exists()
    run = Run.open(site.fed / "run")
    assert "the promise covers them" in run.label["personal_models"]
    assert run.label["committed"]["North"] == pytest.approx(4.0, rel=1e-3)
    shared, kept = run.model, load_file(own)
    moved = [name for name in shared if not np.array_equal(shared[name], kept[name])]
    assert moved and run.personal(own).model is not None
    sent = [path.read_bytes() for path in site.fed.rglob("*") if path.is_file()]
    assert not any(kept[name].tobytes() in content for name in moved for content in sent if kept[name].size > 3)
    assert set(run.metrics["model"]) == {"ledger"}  # accounts, and no score
    context = ssl.create_default_context(cafile=str(site.fed / "tls" / "ca.crt"))
    assert context.cert_store_stats()["x509_ca"] == 1
    refused = subprocess.run(
        ["grep", "-c", "No SuperNode found\\|ended with code", *map(str, site.home.glob("node-*.out"))],
        capture_output=True, text=True,
    )  # fmt: skip
    assert any(int(line.rpartition(":")[2]) for line in refused.stdout.splitlines())
