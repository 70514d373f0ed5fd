"""A run that was cut short goes on to the same model, bit for bit, with the same ledgers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from clients import client_app
from fedpriv.errors import InputError
from fedpriv.privacy.ledger import Ledger
from fedpriv.reports.folder import RunFolder
from strategies import federation as server
from strategies.aggregation import moving_average

CLIENTS = ("utility-000", "utility-001", "utility-002")


def ledgers(folder):
    """Client -> (tokens spent, problems, kinds of rows)."""
    found = {}
    for name in CLIENTS:
        with Ledger.open(folder.ledger_path(name), readonly=True) as ledger:
            kinds = [row["kind"] for row in ledger.rows()]
            found[name] = (ledger.spent_tokens(str(folder.status["run_id"])), ledger.verify(), kinds.count("contract"))
    return found


def _checkpoint(scenario):
    found = RunFolder.open(scenario.run.out).load_checkpoint()
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_at_round_k(tiny, run_inline, name, kind):
    options = {"server_learning_rate": 0.01} if name == "fedadam" else {}
    scenario = tiny(strategy__name=name, strategy__options=options)
    whole, _ = run_inline(tiny("whole", strategy__name=name, strategy__options=options))

    def dies(progress):
        if progress.stage == "round" and progress.round == 4:
            raise kind

    with pytest.raises(kind):
        run_inline(scenario, listener=dies)
    stopped = RunFolder.open(scenario.run.out)
    assert (stopped.status["status"], stopped.last_round) == ("interrupted", 4)
    rounds = []
    resumed, folder = run_inline(scenario, resume=True, listener=lambda p: rounds.append(p.round) if p.report else None)
    assert rounds == [5, 6]
    assert np.array_equal(resumed, whole)
    assert ledgers(folder) == dict.fromkeys(CLIENTS, (6, [], 1))


def test_the_average_of_models_is_evaluated_saved_and_resumed(tiny, run_inline, monkeypatch):
    """It is the moving average of the very models that a run without it goes through, and costs nothing."""
    monkeypatch.setattr(server, "_CHECKPOINT_EVERY", -1.0)
    models, plain = [], tiny("plain")
    run_inline(plain, listener=lambda p: models.append(_checkpoint(plain)["model"]) if p.report else None)
    whole, folder = run_inline(tiny("whole", model__ema=0.5))
    want = None
    for n, model in enumerate(models):
        want = moving_average(want, model, 0.5, n)
    assert len(models) == 6 and want is not None
    assert np.array_equal(whole, want.astype(np.float32)) and not np.array_equal(whole, models[-1])
    first = load_file(folder.path / "model.safetensors")["skip.linear.weight"]
    assert np.array_equal(first.numpy().ravel(), whole[: first.numel()])
    scenario = tiny("cut", model__ema=0.5)

    def dies(progress):
        if progress.stage == "round" and progress.round == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run_inline(scenario, listener=dies)
    resumed, folder = run_inline(scenario, resume=True)
    assert np.array_equal(resumed, whole)
    assert ledgers(folder) == dict.fromkeys(CLIENTS, (6, [], 1))


def test_a_round_that_was_under_way_is_not_charged_twice(tiny, run_inline):
    """Two of three clients had answered round 3 when the server died: they send again what they had sent."""
    scenario = tiny()
    whole, _ = run_inline(tiny("whole"))

    def app(message, context):
        if message.metadata.message_type == "train" and int(message.metadata.group_id) == 3:
            app.answered += 1
            if app.answered == 3:
                raise KeyboardInterrupt
        return client_app.app(message, context)

    app.answered = 0
    with pytest.raises(KeyboardInterrupt):
        run_inline(scenario, app=app)
    assert RunFolder.open(scenario.run.out).last_round == 2
    resumed, folder = run_inline(scenario, resume=True)
    assert np.array_equal(resumed, whole)
    assert ledgers(folder) == dict.fromkeys(CLIENTS, (6, [], 1))


def test_an_old_checkpoint_gives_the_same_model(tiny, run_inline, monkeypatch):
    """Rounds after the checkpoint are computed again: their replies are no longer stored, their noise is the same."""
    monkeypatch.setattr(server, "_CHECKPOINT_EVERY", 1e9)  # the first round only
    monkeypatch.setattr("fedpriv.privacy.ledger.KEPT_REPLIES", 1)
    scenario = tiny()
    whole, _ = run_inline(tiny("whole"))

    def dies(progress):
        if progress.stage == "round" and progress.round == 5:
            # as if killed: nothing is saved on the way out
            monkeypatch.setattr(RunFolder, "checkpoint", lambda *_: None)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "checkpoint", RunFolder.checkpoint)
        run_inline(scenario, listener=dies)
    monkeypatch.undo()
    monkeypatch.setenv("FEDPRIV_SIMULATION", "1")
    assert RunFolder.open(scenario.run.out).last_round == 1
    resumed, folder = run_inline(scenario, resume=True)
    assert np.array_equal(resumed, whole)
    assert ledgers(folder) == dict.fromkeys(CLIENTS, (6, [], 1))
    frame = folder.rounds()
    assert sorted(frame[frame["split"] == "validation"]["round"].unique()) == [0, 3, 6]


def test_a_finished_run_is_left_alone_and_another_scenario_is_refused(tiny, run_inline):
    scenario = tiny()
    run_inline(scenario)
    with pytest.raises(InputError, match="finished"):
        RunFolder.create(scenario.run.out, scenario)
    with pytest.raises(InputError, match="another scenario"):
        RunFolder.create(scenario.run.out, scenario.override({"run.seed": 2}), resume=True)
    assert RunFolder.create(scenario.run.out, scenario, resume=True).finished


SCRIPT = """
import sys, time
from pathlib import Path
from simulations.launch import simulate
from fedpriv.config import Scenario
scenario = Scenario.from_toml(Path(sys.argv[1]))
def slowly(progress):
    if progress.stage == "round":
        print(progress.round, flush=True)
        time.sleep(0.3)
simulate(scenario, out=sys.argv[2], resume=True, progress=slowly)
"""


@pytest.mark.slow
def test_sigkill(tiny, run_inline, tmp_path):
    scenario = tiny(federation__rounds=12)
    whole, _ = run_inline(tiny("whole", federation__rounds=12))
    file, out = tmp_path / "scenario.toml", Path(scenario.run.out)
    file.write_text(scenario.to_toml())
    root = Path(server.__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for kill_after in (3, 8, None):
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(file), str(out)], env=env, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            if kill_after is not None and int(line) >= kill_after:
                time.sleep(0.15)
                child.send_signal(signal.SIGKILL)
                break
        child.wait(timeout=600)
        child.stdout.close()
    folder = RunFolder.open(out)
    found = folder.load_checkpoint()
    assert folder.finished
    assert found is not None
    assert np.array_equal(found[1]["model"], whole)
    for tokens, problems, contracts in ledgers(folder).values():
        assert (tokens, problems, contracts) == (12, [], 1)
    assert (out / "label.json").exists()
    assert (out / "report.html").exists()
