"""Which parameters a run trains when nobody says so, and how far its learning rate lets them go."""

from __future__ import annotations

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.models.denoiser import build_denoiser
from fedpriv.models.parameters import trainable_names
from fedpriv.resolving import resolve, settle_one_round
from fedpriv.training import LocalWorker

SMALL = {"model.depth": 1, "model.width": 8, "model.heads": 2, "federation.rounds": 20}


def settled(**changes: object) -> Scenario:
    return settle_one_round(Scenario().override(SMALL | {k.replace("__", "."): v for k, v in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({}, "seasons"),
        ({"privacy__enabled": False}, "skip"),  # without noise a parameter costs nothing
        ({"model__warm_start": ""}, "skip"),  # from scratch there is more to learn than the weights of days
        ({"privacy__noise_multiplier": 5.0}, "skip"),  # nothing is calibrated around a release: no warm start
        ({"model__warm_start": "gaussian"}, "seasons"),
        ({"task__kind": "imputation", "model__warm_start": "gaussian"}, "skip"),  # there are no seasons to weigh
        ({"model__trainable": "scale"}, "scale"),
        ({"privacy__enabled": False, "model__trainable": "seasons"}, "seasons"),
    ],
)
def test_what_is_trained_by_default(changes, group):
    assert settled(**changes).model.trainable == group


def test_seasons_are_the_weights_of_earlier_days_and_the_spread():
    scenario = Scenario().override(SMALL | {"model.trainable": "seasons"})
    generator = torch.Generator().manual_seed(0)
    model = build_denoiser(scenario, channels=1, calendar_features=6, generator=generator, period=24)
    assert trainable_names(model) == [("skip.seasons.weight", (1, 7)), ("log_scale.raw", (24,))]
    assert not model.run_transformer  # its output is zero and stays zero


def test_the_worker_sends_few_numbers():
    scenario = resolve(Scenario().override(SMALL))
    assert LocalWorker(scenario).num_parameters == 31


def test_after_a_warm_start_a_longer_run_goes_no_further():
    short = resolve(Scenario().override(SMALL))
    long = resolve(Scenario().override(SMALL | {"federation.rounds": 80}))
    assert short.optimizer.learning_rate and long.optimizer.learning_rate
    assert 80 * long.optimizer.learning_rate <= 20 * short.optimizer.learning_rate * 1.01


def test_fine_tuning_has_a_learning_rate_for_its_own_steps():
    def rate(rounds: int) -> float:
        changes = {"personal.kind": "private", "personal.steps": 10, "federation.rounds": rounds}
        found = resolve(Scenario().override(SMALL | changes)).personal.learning_rate
        assert found
        return found

    assert rate(10) == pytest.approx(rate(40), rel=1.0)  # the noise differs, the number of rounds does not count
