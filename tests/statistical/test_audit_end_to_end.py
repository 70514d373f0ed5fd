"""The attack of a server on days planted in the files of its clients, through the whole program."""

import json

import pytest

from fedpriv.errors import InputError
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.samplers import RandomPhaseTiling
from simulations.end_to_end import end_to_end

SMALL = {"canaries": 250, "clients": 2, "rounds": 4}


def test_without_noise_the_attacker_tells_nearly_every_day():
    found = end_to_end(canaries=120, clients=2, rounds=8, epsilon=1e4, noise_multiplier=0.2, seed=1)
    assert found.numbers["right"] >= 0.95 * 120, found.detail
    assert found.numbers["contribution_over_claimed"] == pytest.approx(1.0, abs=0.2)


def test_at_the_claim_the_attack_is_strong_and_stays_below_it():
    told = []
    found = end_to_end(**SMALL, seed=2, progress=told.append)
    numbers = found.numbers
    assert found.passed and numbers["epsilon"] == pytest.approx(8.0, rel=1e-3)
    assert numbers["exceeded_999"] == 0.0 and "MORE" not in found.detail
    assert numbers["t2"] >= 0.6 * 8 and numbers["steinke"] > 0, found.detail
    assert numbers["noise_over_claimed"] == pytest.approx(1.0, abs=0.1)
    assert told == sorted(told) and told[-1] <= 1.0
    json.dumps(found.to_json(), allow_nan=False)


def test_noise_that_is_half_of_what_the_ledger_says_shows(monkeypatch):
    monkeypatch.setattr(Mechanism, "stddev", property(lambda self: self.noise_multiplier * self.clipper.bound / 2))
    found = end_to_end(**SMALL, seed=2)
    assert found.numbers["epsilon"] == pytest.approx(8.0, rel=1e-3)  # the ledger knows nothing of it
    assert found.numbers["noise_over_claimed"] == pytest.approx(0.5, abs=0.1)
    assert found.numbers["t2_999"] > 1.2 * 8, found.detail
    assert found.numbers["exceeded_999"] == 1.0 and "MORE THAN CLAIMED" in found.detail
    assert found.passed  # information


def test_days_that_are_drawn_more_often_than_accounted_show(monkeypatch):
    drawn = RandomPhaseTiling.batches

    def often(self, **options):
        return drawn(RandomPhaseTiling(self.window, 1.0), **options)

    monkeypatch.setattr(RandomPhaseTiling, "batches", often)
    found = end_to_end(**SMALL, seed=3)
    assert found.numbers["contribution_over_claimed"] > 1.7
    assert found.numbers["exceeded_999"] == 1.0, found.detail


@pytest.mark.parametrize("wrong", [{"canaries": 0}, {"canaries": 300, "clients": 2}, {"clients": 0}, {"rounds": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match="nothing was audited"):
        end_to_end(**(SMALL | wrong))
