from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import dp_event

from fedpriv.config import PrivacyConfig, Scenario
from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.accounting import calibrate, epsilon, epsilon_of
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.label import build_label, sign_label, verify_label
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.plan import Situation, plan
from fedpriv.privacy.recipe import event_of, make_rules
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING

SAMPLER = RandomPhaseTiling(192, 0.467)
EVENT = SAMPLER.amplify(dp_event.GaussianDpEvent(5.0), READING, "zero-out")
SCENARIO = Scenario().override({"privacy.clipper": "psasc", "privacy.clipper_options": "r=0.1,s=0.5"})


def ledgers(folder: Path, *, terms: str = "{}", steps: int = 100) -> dict[str, Path]:
    paths = {name: folder / f"{name}.sqlite" for name in ("a", "b")}
    for name, path in paths.items():
        with Ledger.create(
            path, dataset=name, budget_epsilon=8.0, delta=1e-5, unit="reading", relation="zero-out", mode="simulation"
        ) as ledger:
            ledger.enrol(
                Contract(run_id="r", event=encode_event(EVENT), steps_total=steps, unit="reading",
                         relation="zero-out", delta=1e-5, epsilon=8.0, terms=terms)
            )  # fmt: skip
            for round in range(3 if name == "a" else 1):
                ledger.reserve(run_id="r", round=round, steps=10, request_digest=str(round))
    return {**paths, "never took part": folder / "c.sqlite"}


def test_label_says_what_the_ledgers_say(tmp_path: Path):
    label = build_label(SCENARIO, ledgers(tmp_path), steps_per_day=24, calendar_steps={"a": 3000, "b": 2000})
    claim = epsilon(EVENT, 100, 1e-5, "zero-out")
    assert label["committed"] == {"a": claim, "b": claim}
    assert label["nominal"] == {
        "a": epsilon(EVENT, 30, 1e-5, "zero-out"),
        "b": epsilon(EVENT, 10, 1e-5, "zero-out"),
    }
    assert label["max_epsilon"] == claim == label["ladder"]["reading"]
    assert list(label["ladder"]) == ["reading", "day", "week", "month", "meter"]
    assert list(label["ladder"].values()) == sorted(label["ladder"].values())
    assert label["ladders"]["replace-one"]["reading"] > claim
    assert (label["unit"], label["relation"], label["delta"]) == ("reading", "zero-out", 1e-5)
    assert label["seeded"] is True
    assert label["mode"] == "simulation"
    assert "NOT A GUARANTEE" in label["random_source"]
    mechanism = label["mechanism"]["a"]
    assert mechanism["noise_multiplier"] == 5.0
    assert mechanism["bound"] == pytest.approx(2.0)  # noise follows C / s of this rule
    assert {k: mechanism[k] for k in ("sampler", "window", "sampling_prob", "steps_total", "clipper")} == {
        "sampler": "random-phase-tiling",
        "window": 192,
        "sampling_prob": 0.467,
        "steps_total": 100,
        "clipper": "psasc",
    }
    assert json.loads(json.dumps(label, allow_nan=False)) == label
    for key in ("side_releases", "public", "adversary", "accountant", "assumptions", "evaluation", "audit"):
        assert key in label


def test_label_without_calendar_leaves_rungs_open_and_terms_fill_them(tmp_path: Path):
    (tmp_path / "x").mkdir()
    bare = build_label(SCENARIO, ledgers(tmp_path / "x"))
    assert bare["ladder"]["reading"] is not None
    assert bare["ladder"]["day"] is bare["ladder"]["meter"] is None
    terms = {**SAMPLER.terms(), "steps_per_day": 24, "calendar_steps": 3000}
    full = build_label(SCENARIO, ledgers(tmp_path, terms=json.dumps(terms)))
    assert None not in full["ladder"].values()
    with pytest.raises(InputError):
        build_label(SCENARIO, {"a": tmp_path / "none.sqlite"})


def test_labels_are_signed_and_changes_show(tmp_path: Path):
    label = build_label(SCENARIO, ledgers(tmp_path))
    key = Ed25519PrivateKey.generate()
    signed = json.loads(json.dumps(sign_label(label, key)))
    verify_label(signed)
    verify_label(signed, public_key=signed["signature"]["public_key"])
    with pytest.raises(CheckFailed, match="changed"):
        verify_label({**signed, "max_epsilon": 0.1})
    with pytest.raises(CheckFailed, match="another key"):
        verify_label(signed, public_key="00" * 32)
    with pytest.raises(CheckFailed, match="no readable"):
        verify_label(label)
    with pytest.raises(CheckFailed):
        verify_label({**signed, "signature": {"public_key": "zz"}})


SITUATION = Situation(
    sampler=SAMPLER, num_meters=1, calendar_steps=13_000, steps_per_day=24, num_parameters=4032, steps=300,
    epsilon=8.0, delta=1e-5,
)  # fmt: skip


def test_plan_by_hand():
    made = plan(SITUATION)
    now = made.now
    assert now.noise_multiplier == pytest.approx(4.929, rel=1e-3)
    assert now.epsilon <= 8.0
    assert now.expected_batch_size == pytest.approx(0.467 * (13_000 - 191) / 192)
    assert now.noise_to_signal == pytest.approx(now.noise_multiplier * math.sqrt(4032) / now.expected_batch_size)
    assert now.noise_to_signal_all == pytest.approx(now.noise_to_signal / math.sqrt(300))
    assert made.ladders["zero-out"]["reading"] == pytest.approx(now.epsilon)
    gains = {h.change: h.gain for h in made.helps}
    assert gains["twice the meters"] == pytest.approx(2.0)
    assert gains["a quarter of the parameters"] == pytest.approx(2.0)
    assert gains["twice the epsilon"] > 1.5
    assert all(h.epsilon <= 16.0 for h in made.helps)
    assert json.dumps(made.to_json(), allow_nan=False)


def test_plan_of_a_stated_sigma_and_refusals():
    assert plan(replace(SITUATION, noise_multiplier=2.0, steps=20)).now.noise_multiplier == 2.0
    for bad in ({"steps": 0}, {"num_meters": 0}, {"calendar_steps": 100}, {"epsilon": 0.0}, {"unit": "hour"}):
        with pytest.raises(InputError):
            plan(replace(SITUATION, **bad))


def rules(steps=300, **privacy):
    return make_rules(PrivacyConfig.model_validate(privacy), steps_total=steps)


def test_plan_of_a_schedule_composes_its_stages():
    """What training calibrates and what the plan says are one number; halving the steps shortens the schedule."""
    options = {"sigma_final": 0.5, "stages": 5}
    chosen = rules(controller="dynamic", controller_options=options)
    made = plan(replace(SITUATION, rules=chosen))
    mechanism = Mechanism(
        sampler=SAMPLER, clipper=chosen.clipper, noise_multiplier=1.0, unit=READING, relation="zero-out"
    )
    sigma = calibrate(
        lambda s: event_of(replace(mechanism, noise_multiplier=s), chosen),
        count=1, epsilon=8.0, delta=1e-5, relation="zero-out",
    )  # fmt: skip
    assert made.now.noise_multiplier == sigma
    event = event_of(replace(mechanism, noise_multiplier=sigma), chosen)
    spent = epsilon_of([(event, 300)], 1e-5, "zero-out")
    assert made.now.epsilon == spent == made.ladders["zero-out"]["reading"] <= 8.0
    mean = math.sqrt(sum(n * s**2 for s, n in chosen.controller.noise(sigma)) / 300)
    assert made.now.noise_to_signal == pytest.approx(mean * math.sqrt(4032) / made.now.expected_batch_size)
    flat = plan(SITUATION).now
    assert made.now.noise_multiplier > flat.noise_multiplier > sigma * 0.5
    half = next(h for h in made.helps if h.change == "half the steps")
    assert half.epsilon <= 8.0 and half.noise_multiplier < sigma


def test_plan_counts_what_a_statistic_takes_and_what_a_filter_costs():
    flat, quantile = plan(SITUATION).now, plan(replace(SITUATION, rules=rules(clipper="quantile"))).now
    assert quantile.noise_multiplier == flat.noise_multiplier
    assert quantile.noise_to_signal == pytest.approx(flat.noise_to_signal * (1 - 1 / 36) ** -0.5)
    filtered = plan(replace(SITUATION, accountant="rdp")).now
    assert filtered.noise_multiplier == pytest.approx(5.246, rel=1e-3) and filtered.epsilon <= 8.0
    narrow = rules(clipper="quantile", clipper_options={"sigma_b": 2.6})  # leaves nothing from sigma = 5.2 on
    made = plan(replace(SITUATION, rules=narrow))
    assert "twice the sampling rate" not in {h.change for h in made.helps} and "half the steps" in {
        h.change for h in made.helps
    }


def test_side_releases_are_in_every_rung_of_a_plan(tmp_path):
    """As in the label that the run will have; and the picture of it is drawn."""
    import json

    from fedpriv.cli import main

    def planned(capsys_words):
        import contextlib
        import io

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["plan", "--json", "--set", "privacy.noise_multiplier=5", *capsys_words]) == 0
        return json.loads(out.getvalue())["plans"][0]

    bare = planned([])
    paid = planned(
        ["--set", "privacy.release_count=5", "--set", "federation.rounds=300", "--plot", str(tmp_path / "plan.png")]
    )
    for unit in ("reading", "day", "week"):
        assert paid["ladders"]["zero-out"][unit] > bare["ladders"]["zero-out"][unit]
    # A count noised for a reading moves by 24 for a day.
    gap = {u: paid["ladders"]["zero-out"][u] - bare["ladders"]["zero-out"][u] for u in ("reading", "day")}
    assert gap["day"] > 2 * gap["reading"]
    assert bare["costs"]["side_releases"] == 0.0 < paid["costs"]["side_releases"]
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


def test_a_plan_says_what_a_filter_costs():
    from dp_accounting import dp_event

    from fedpriv.privacy.plan import Situation, plan
    from fedpriv.privacy.samplers import RandomPhaseTiling

    made = plan(
        Situation(
            sampler=RandomPhaseTiling(96, 0.1), num_meters=1, calendar_steps=8640, steps_per_day=24, num_parameters=10,
            steps=100, epsilon=2.0, delta=1e-5, accountant="rdp", side=((dp_event.GaussianDpEvent(50.0), 1),),
        )
    )  # fmt: skip
    costs = made.costs
    assert costs["filter"] == pytest.approx(2.0, rel=1e-2) and costs["filter"] > costs["all_exact"] > costs["training"]
