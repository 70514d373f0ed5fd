"""docs/privacy.md says what the code does: its fields, its numbers, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dp_accounting import dp_event

from fedpriv.messages import BudgetReply, CountReply, EvaluateReply, Hello, Refusal, StatisticsReply, TrainReply
from fedpriv.privacy.accounting import calibrate, epsilon, ladders
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.laws import event_of_law
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, event_unit

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("message", [TrainReply, EvaluateReply, CountReply, StatisticsReply, Hello, BudgetReply])
def test_every_field_that_leaves_a_client_is_on_the_page(message):
    table = PAGE[PAGE.index("## What leaves a client") : PAGE.index("### Side releases")]
    extra = (message.records | message.optional) - {"numbers", "words"}
    for name in [*message.declared(), *extra]:
        assert f"`{name}`" in table, name
    assert len(Refusal) == 11 and "one of eleven" in table


def test_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"`(?:[\w/]+/)?((?:test_|ledger_)\w+\.py)`", PAGE))
    there = {f.name for folder in ("tests", "benchmarks") for f in (ROOT / folder).rglob("*.py")}
    assert len(named) > 10
    assert named <= there, named - there


def test_the_reference_ladder():
    made = ladders(
        sampler=RandomPhaseTiling(96, 0.114), noise_multiplier=5.2, steps=500, delta=1e-5, steps_per_day=24,
        calendar_steps=8640,
    )  # fmt: skip
    for relation, shown in (
        ("zero-out", (2.00, 2.72, 6.45, 27.7, 1182)),
        ("replace-one", (4.27, 5.87, 14.6, 70.9, 3303)),
    ):
        assert list(made[relation].values()) == pytest.approx(shown, rel=0.004)


def test_what_averaging_the_phase_would_have_claimed():
    sampler, gauss = RandomPhaseTiling(96, 0.1138), dp_event.GaussianDpEvent(5.2)
    averaged = epsilon(event_of_law(gauss, sampler.law(event_unit(24))), 500, 1e-5, "zero-out")
    used = epsilon(sampler.amplify(gauss, event_unit(24), "zero-out"), 500, 1e-5, "zero-out")
    assert averaged == pytest.approx(2.539, abs=0.002)
    assert used == pytest.approx(2.718, abs=0.002)


@pytest.mark.parametrize(
    ("rate", "inner", "accountant", "shown"),
    [
        (0.467, dp_event.GaussianDpEvent, "pld", 4.929),
        (1.0, dp_event.GaussianDpEvent, "pld", 10.397),
        (1.0, discrete_event, "pld", 11.053),
        (0.467, discrete_event, "pld", 11.053),
        (0.467, dp_event.GaussianDpEvent, "rdp", 5.246),
    ],
)
def test_the_noise_of_the_default_run(rate, inner, accountant, shown):
    sampler = RandomPhaseTiling(192, rate)
    sigma = calibrate(
        lambda s: sampler.amplify(inner(s), READING, "zero-out"),
        count=300, epsilon=8.0, delta=1e-5, relation="zero-out", accountant=accountant,
    )  # fmt: skip
    assert sigma == pytest.approx(shown, rel=2e-4)
