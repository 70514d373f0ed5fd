"""The loop where data, model, diffusion and privacy meet, on small generated utilities."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from fedpriv.config import OptimizerConfig, Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.errors import InputError
from fedpriv.mechanisms import make_recipe
from fedpriv.privacy.optimizers import make_optimizer
from fedpriv.resolving import resolve
from fedpriv.tallies import scores
from fedpriv.training import LocalWorker, pick_device

SMALL = {
    "data.days": 120,
    "partition.clients": 2,
    "task.context": 48,
    "task.horizon": 24,
    "federation.rounds": 20,
    "diffusion.multiplicity": 2,
    "evaluation.windows": 12,
    "privacy.sampling_prob": 0.5,
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return resolve(Scenario().override(SMALL))


def train(scenario: Scenario, *, round: int = 1, steps: int = 1, client: int = 0) -> np.ndarray:
    worker = LocalWorker(scenario)
    name = roster(scenario).names[client]
    result = worker.train(name, worker.initial_parameters(), round=round, steps=steps, mode="simulation")
    return getattr(result, "parameters", result)


def test_the_noise_is_what_an_independent_accountant_asks_for(scenario):
    privacy = scenario.privacy
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    step = dp_event.PoissonSampledDpEvent(privacy.sampling_prob, dp_event.GaussianDpEvent(privacy.noise_multiplier))
    accountant.compose(dp_event.SelfComposedDpEvent(step, scenario.steps_total))
    epsilon = accountant.get_epsilon(privacy.delta)
    assert epsilon <= privacy.epsilon * 1.001
    assert epsilon >= privacy.epsilon * 0.98


def test_a_round_is_a_function_of_parameters_client_and_round_alone(scenario):
    once = train(scenario, round=3, steps=2)
    assert np.array_equal(once, train(scenario, round=3, steps=2))
    assert not np.array_equal(once, train(scenario, round=4, steps=2))
    assert not np.array_equal(once, train(scenario, round=3, steps=2, client=1))
    assert not np.array_equal(once, train(scenario.override({"run.seed": 9}), round=3, steps=2))


def test_a_deployed_client_does_not_repeat_itself(scenario):
    worker = LocalWorker(scenario)
    name = roster(scenario).names[0]
    draws = [
        worker.train(name, worker.initial_parameters(), round=1, steps=1, mode="deployment").parameters
        for _ in range(2)
    ]
    assert not np.array_equal(*draws)


def test_the_released_step_carries_the_noise_it_claims(scenario):
    """All rows dropped by a rate of almost zero: what is left is the noise, of known size."""
    quiet = scenario.override(
        {"privacy.sampling_prob": 1e-9, "optimizer.learning_rate": 1.0, "optimizer.decay": "none"}
    )
    worker = LocalWorker(quiet)
    name = roster(quiet).names[0]
    data = load_client(quiet, name)
    result = worker.train(name, worker.initial_parameters(), round=1, steps=1, mode="simulation")
    moved = result.parameters - worker.initial_parameters()
    span = data.train.stop - data.train.start
    denominator = 1e-9 * (span - 72 + 1) / 72
    stddev = quiet.privacy.noise_multiplier / denominator
    assert moved.std() == pytest.approx(stddev, rel=5 / np.sqrt(2 * len(moved)))


def test_training_without_privacy_beats_the_seasonal_naive_forecast(scenario):
    plain = resolve(
        Scenario().override({**SMALL, "privacy.enabled": False, "federation.rounds": 60, "model.skip_rank": 4})
    )
    worker = LocalWorker(plain)
    name = roster(plain).names[0]
    parameters = worker.initial_parameters()
    before = scores(worker.evaluate(name, parameters, part="test", samples=0))
    assert before["federated"].finalize()["mse"] == pytest.approx(before["seasonal-naive"].finalize()["mse"])
    for round in range(1, 61):
        parameters = worker.train(name, parameters, round=round, steps=1, mode="simulation").parameters
    after = scores(worker.evaluate(name, parameters, part="test", samples=20))
    assert after["federated"].finalize()["mse"] < 0.95 * after["seasonal-naive"].finalize()["mse"]
    assert set(after["federated"].finalize()) >= {"mse", "mae", "crps", "coverage90"}


@pytest.mark.parametrize("kind", ["forecast", "imputation", "mixed"])
@pytest.mark.parametrize("trainable", ["skip", "all"])
def test_every_task_trains_and_scores(kind, trainable):
    scenario = resolve(
        Scenario().override(
            {**SMALL, "task.kind": kind, "model.trainable": trainable, "model.width": 16, "model.depth": 1}
        )
    )
    worker = LocalWorker(scenario)
    name = roster(scenario).names[0]
    start = None
    assert (worker.one_round is not None) is (kind != "forecast")  # 48 steps of context are too few for the ridge
    if worker.one_round is not None:
        released = [worker.release_statistics(each, mode="simulation") for each in roster(scenario).names]
        start = worker.fit_reference(released)
    initial = worker.initial_parameters()
    moved = worker.train(name, initial, round=1, steps=1, mode="simulation", reference=start).parameters
    assert np.isfinite(moved).all() and not np.array_equal(moved, initial)
    found = scores(worker.evaluate(name, moved, part="validation", samples=2, reference=start))
    assert found["federated"].finalize()["mse"] > 0
    assert ("gaussian" in found) is (start is not None)


def test_the_learning_rate_falls_with_the_noise(scenario):
    loud = resolve(Scenario().override({**SMALL, "privacy.epsilon": 0.5}))
    assert loud.privacy.noise_multiplier > scenario.privacy.noise_multiplier
    assert 0 < loud.optimizer.learning_rate < scenario.optimizer.learning_rate


def test_a_scenario_that_is_not_resolved_is_refused():
    with pytest.raises(InputError, match="resolve the scenario first"):
        LocalWorker(Scenario().override(SMALL))


def test_a_gpu_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="no usable GPU"):
        pick_device("cuda:0")


def test_warm_up_scales_the_steps_of_the_run(scenario):
    """The first of 4 steps moves a quarter, also where a round begins in the middle; afterwards all is as without."""
    quiet = {"optimizer.decay": "none"}
    start = LocalWorker(scenario).initial_parameters()
    full = train(scenario.override(quiet), round=2) - start  # step 1 of the run, counted from 0
    warm = train(scenario.override(quiet | {"optimizer.warmup": 4}), round=2) - start
    np.testing.assert_allclose(warm, 0.5 * full, rtol=1e-4, atol=1e-7)
    late = train(scenario.override(quiet | {"optimizer.warmup": 2}), round=2)
    assert np.array_equal(late, train(scenario.override(quiet), round=2))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "lamb"])
def test_every_optimizer_is_linear_in_its_learning_rate(name):
    """Warm-up takes a share of each step: that is a step with this share of the learning rate."""
    params, grads = torch.randn(50), torch.randn(3, 50)
    configs = [OptimizerConfig(name=name, learning_rate=rate, weight_decay=0.1) for rate in (0.02, 0.005)]  # pyright: ignore
    full, quarter = (make_optimizer(config) for config in configs)
    for grad in grads:
        want = quarter.step(params, grad)
        torch.testing.assert_close(params.lerp(full.step(params, grad), 0.25), want, rtol=1e-5, atol=1e-6)


def test_windows_without_context_train_like_any_other(scenario):
    dropped = scenario.override({"diffusion.condition_dropout": 0.5})
    assert np.isfinite(train(dropped)).all() and not np.array_equal(train(dropped), train(scenario))
    assert np.array_equal(train(dropped), train(dropped))


@pytest.mark.parametrize("changes", [{"model.tightness": "too-tight"}, {"model.bounded": "condition"}])
def test_bounds_change_neither_noise_nor_event_nor_clipping(scenario, changes):
    """They tame gradients; they never lower the noise (arXiv:2602.22610 leaves DP-SGD unchanged)."""
    vanilla = Scenario().override(SMALL | {"model.trainable": "transformer"})
    aware = vanilla.override({"model.modulation": "dp-aware"} | changes)
    resolved = [resolve(each) for each in (vanilla, aware)]
    assert resolved[0].privacy == resolved[1].privacy and resolved[0].optimizer == resolved[1].optimizer
    recipes = [make_recipe(each, each.privacy.noise_multiplier) for each in resolved]
    assert recipes[0].event() == recipes[1].event() and recipes[0].mechanism == recipes[1].mechanism
