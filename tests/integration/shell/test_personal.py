"""Personal models: local ones cost and send nothing, private ones are charged; the same on every engine."""

from __future__ import annotations

import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpriv.errors import InputError
from fedpriv.models.parameters import trainable_names
from fedpriv.privacy.ledger import Ledger
from fedpriv.trained import Trained
from fedpriv.training import LocalWorker
from fedpriv.training.fine_tuning import personalise
from simulations.launch import simulate

CLIENTS = ("utility-000", "utility-001", "utility-002")
LOCAL = {"personal__kind": "local", "personal__steps": 5}
PRIVATE = {"personal__kind": "private", "personal__steps": 5}


def files(folder):
    return {c: load_file(folder.ledger_path(c).with_name(f"{c}.personal.safetensors")) for c in CLIENTS}


def scores(folder, model="personal"):
    return {(r["client"], r["metric"]): r["value"] for r in folder.metrics() if r["model"] == model}


def same(a, b):
    return all(np.array_equal(a[c][name], b[c][name]) for c in CLIENTS for name in a[c])


def test_a_local_run_costs_nothing_more_and_says_so(tiny):
    plain, run = simulate(tiny("plain")), simulate(tiny("local", **LOCAL))
    assert all(np.array_equal(plain.model[name], run.model[name]) for name in plain.model)
    assert run.label["committed"] == plain.label["committed"]
    assert "NOT COVERED" in run.label["personal_models"] and "personal_models" not in plain.label
    assert not scores(plain.folder)
    assert {c for c, _ in scores(run.folder)} == set(CLIENTS)
    assert {m for _, m in scores(run.folder)} == {m for _, m in scores(run.folder, "federated")}
    page = (run.path / "report.html").read_text()
    assert 'id="personal"' in page and "Simulation only: these models were fine-tuned without noise" in page
    assert 'id="personal"' not in (plain.path / "report.html").read_text()
    assert (run.path / "figures" / "personal.png").exists()


def test_each_client_goes_on_from_the_final_model_on_its_own_readings(tiny):
    """The same by hand: ordinary steps of one client from the model of the folder."""
    run = simulate(tiny("local", **LOCAL))
    found = files(run.folder)
    for client, weights in found.items():
        assert set(weights) == set(run.model)
        assert any(not np.array_equal(weights[name], run.model[name]) for name in weights)
        path = run.folder.ledger_path(client).with_name(f"{client}.personal.safetensors")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        own = Trained.load(run.path, weights=path)  # ready for forecasts
        assert all(np.array_equal(p.detach().numpy(), weights[n]) for n, p in own.model.named_parameters())
    with pytest.raises(InputError, match="cannot be read"):
        Trained.load(run.path, weights=run.path / "nowhere.safetensors")
    assert not same(found, dict.fromkeys(CLIENTS, found[CLIENTS[0]]))
    alone = run.scenario.override(
        {
            "personal.kind": "none", "privacy.enabled": False, "federation.rounds": 7, "federation.local_steps": 5,
            "optimizer.decay": "none", "optimizer.learning_rate": run.scenario.personal.learning_rate,
        }
    )  # fmt: skip
    worker = LocalWorker(alone)
    names = [name for name, _ in trainable_names(worker.model)]
    start = np.concatenate([run.model[name].ravel() for name in names])
    by_hand = worker.train(CLIENTS[1], start, round=7, steps=5, mode="simulation").parameters
    assert np.array_equal(by_hand, np.concatenate([found[CLIENTS[1]][name].ravel() for name in names]))


def test_private_fine_tuning_is_charged_and_planned_with_the_run(tiny):
    scenario = tiny("private", **PRIVATE)
    assert scenario.privacy.noise_multiplier > tiny("plain").privacy.noise_multiplier
    longer = tiny("longer", federation__rounds=11)  # the same eleven steps, all of them sent
    assert scenario.privacy.noise_multiplier == pytest.approx(longer.privacy.noise_multiplier, rel=1e-9)
    run = simulate(scenario)
    label = run.label
    assert 7.99 < label["max_epsilon"] <= 8.0
    assert label["nominal"] == pytest.approx(label["committed"])
    assert "the promise covers them" in label["personal_models"]
    assert label["side_releases"] == []
    whole = simulate(longer).label
    assert label["ladder"] == pytest.approx(whole["ladder"], rel=1e-6)
    assert {m["steps_total"] for m in label["mechanism"].values()} == {6}
    with Ledger.open(run.folder.ledger_path(CLIENTS[0]), readonly=True) as ledger:
        run_id = run.status["run_id"]
        assert [c.run_id for c in ledger.contracts()] == [run_id, f"{run_id}#personal"]
        assert ledger.spent_tokens(f"{run_id}#personal") == 5
        kinds = [(r["kind"], r["run_id"]) for r in ledger.rows()]
        assert kinds.index(("contract", f"{run_id}#personal")) < kinds.index(("reserve", run_id))
        assert ledger.verify() == []
    assert "These steps are private steps" in (run.path / "report.html").read_text()
    again = simulate(tiny("again", **PRIVATE))
    assert same(files(run.folder), files(again.folder)) and scores(run.folder) == scores(again.folder)


@pytest.mark.parametrize("changes", [{"privacy__accountant": "rdp"}, {"privacy__noise": "discrete-gaussian"}])
def test_under_a_filter_and_in_hardened_mode(tiny, changes):
    run = simulate(tiny("run", **PRIVATE, **changes))
    assert run.label["max_epsilon"] <= 8.0 and run.status["status"] == "done"
    assert {c for c, _ in scores(run.folder)} == set(CLIENTS)


def test_noise_of_the_fine_tuning_is_not_that_of_a_round(tiny):
    """Streams are named by round: fine-tuning is a round after the last."""
    scenario = tiny("run", **PRIVATE, privacy__noise_multiplier=200.0)  # what moves a model is noise
    worker = LocalWorker.for_scenario(scenario)
    start = worker.initial_parameters()
    personal = personalise(worker, CLIENTS[0], start, mode="simulation") - start
    for round in range(1, 7):
        moved = worker.train(CLIENTS[0], start, round=round, steps=5, mode="simulation").parameters - start
        assert abs(np.corrcoef(personal, moved)[0, 1]) < 0.5


@pytest.mark.parametrize("which", ["scale", "bias", "all", "skip"])
def test_only_the_chosen_parameters_move(tiny, run_inline, which):
    small = {"model__depth": 1, "model__width": 16, "model__heads": 2, "federation__rounds": 2}
    _, folder = run_inline(tiny("run", **LOCAL, **small, personal__parameters=which))
    shared = folder.model()
    moved = {n for weights in files(folder).values() for n in weights if (weights[n] != shared[n]).any()}
    assert moved
    belongs = {
        "scale": lambda n: n.startswith("log_scale."), "bias": lambda n: n.endswith(".bias"),
        "all": lambda n: True, "skip": lambda n: not n.startswith("transformer."),
    }[which]  # fmt: skip
    assert all(belongs(name) for name in moved)
    assert which != "all" or any(n.startswith("transformer.") for n in moved)
    assert scores(folder) != scores(folder, "federated")


@pytest.mark.parametrize("kind", ["local", "private"])
def test_a_run_that_was_cut_short_makes_the_same_personal_models(tiny, run_inline, kind):
    changes = {"personal__kind": kind, "personal__steps": 4}
    whole_scenario, scenario = tiny("whole", **changes), tiny("cut", **changes)
    _, whole = run_inline(whole_scenario)

    def dies(progress):
        if progress.stage == "done" or (progress.stage == "evaluation" and progress.rows[0]["split"] == "test"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after the personal models were made and charged
        run_inline(scenario, listener=dies)
    _, folder = run_inline(scenario, resume=True)
    assert same(files(whole), files(folder)) and scores(whole) == scores(folder)
    with Ledger.open(folder.ledger_path(CLIENTS[0]), readonly=True) as ledger:
        assert sum(r["tokens"] for r in ledger.rows() if r["kind"] == "reserve") == 6 + (4 if kind == "private" else 0)


@pytest.mark.slow
def test_ray_makes_the_same_personal_models(tiny):
    pytest.importorskip("ray")
    inline = simulate(tiny("inline", **PRIVATE), engine="inline")
    ray = simulate(tiny("ray", **PRIVATE, run__workers=1), engine="ray")
    assert same(files(inline.folder), files(ray.folder)) and scores(inline.folder) == scores(ray.folder)


def test_a_run_without_privacy_has_personal_models_too(tiny, run_inline):
    _, folder = run_inline(tiny("open", **LOCAL, privacy__enabled=False))
    assert {c for c, _ in scores(folder)} == set(CLIENTS) and set(files(folder)) == set(CLIENTS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"personal__kind": "private", "privacy__enabled": False}, "personal.kind=private needs a private run"),
        ({"personal__kind": "local", "personal__steps": 0}, "personal.steps=0"),
        ({"personal__kind": "local", "personal__learning_rate": -1.0}, "is not positive"),
        ({"personal__kind": "local", "personal__parameters": "transformer"}, "there is no transformer"),
        (
            {"personal__kind": "local", "personal__parameters": "bias", "model__trainable": "lora", "model__depth": 1},
            "adapters are fine-tuned as they are",
        ),
        ({"personal__kind": "shared"}, "personal.kind='shared'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny, changes, words):
    with pytest.raises(InputError, match=words):
        tiny("bad", **changes)
