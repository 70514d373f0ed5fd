"""From settings to a private step: names, shorthands, combinations, contracts of schedules, labels of rules."""

import pytest
import torch
from dp_accounting import dp_event

from fedpriv.config import CONTROLLER_NAMES, GRADIENT_RULE_NAMES, PrivacyConfig, Scenario, parse_assignments
from fedpriv.errors import BudgetExceeded, InputError
from fedpriv.privacy.accounting import calibrate, epsilon, epsilon_of
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.dominance import noise_of
from fedpriv.privacy.events import ScheduledDpEvent, decode_event, encode_event
from fedpriv.privacy.filters import FILTERS
from fedpriv.privacy.iterate_rules import GRADIENT_RULES
from fedpriv.privacy.label import build_label
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import CONTROLLERS, Recipe, event_of, make_rules
from fedpriv.privacy.rule_state import StateLayout
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, Relation

STEPS, RATE, DELTA = 60, 0.2, 1e-5


def rules(steps=STEPS, **privacy):
    return make_rules(PrivacyConfig.model_validate(privacy), steps_total=steps)


def mechanism(made, sigma=2.0):
    return Mechanism(
        sampler=RandomPhaseTiling(8, RATE), clipper=made.clipper, noise_multiplier=sigma, unit=READING,
        relation=Relation.ZERO_OUT,
    )  # fmt: skip


def recipe(sigma=2.0, steps=STEPS, **privacy):
    made = rules(steps, **privacy)
    return Recipe(mechanism=mechanism(made, sigma), rules=made)


# ---- names ----------------------------------------------------------------------------------------


def test_the_settings_know_every_name():
    assert set(CONTROLLERS) == CONTROLLER_NAMES and set(GRADIENT_RULES) == GRADIENT_RULE_NAMES
    for name in (*CONTROLLERS, *GRADIENT_RULES):
        made = rules(clipper=name)
        assert made.clipper.name == "flat" and name in (made.controller.name, made.rule.name)
    for name in FILTERS:
        assert rules(filter=name).filter.name == name


def test_a_shorthand_takes_its_options_and_stays_as_it_was_written():
    scenario = Scenario().override({"privacy.clipper": "quantile", "privacy.clipper_options.gamma": 0.3})
    chosen = scenario.privacy.rules()
    assert (chosen.clipper, chosen.controller, chosen.controller_options) == ("flat", "quantile", {"gamma": 0.3})
    assert scenario.privacy.clipper == "quantile" and chosen.clipper_options == {}
    again = Scenario.from_flat(scenario.flat())
    assert again == scenario and again.override({"privacy.clipper": "psac"}).privacy.rules().controller == "none"


def test_options_as_words_tables_and_dots():
    words = parse_assignments(
        ["privacy.gradient_rule=bam", "privacy.gradient_rule_options=r=0.1,alpha=0.5", "privacy.filter=laplacian",
         "privacy.filter_options.whole=true", "privacy.controller_options.stages=4", "privacy.controller=dynamic"]
    )  # fmt: skip
    made = make_rules(Scenario().override(words).privacy, steps_total=8)
    assert (made.rule.r, made.rule.alpha, made.filter.whole, made.controller.stages) == (0.1, 0.5, True, 4)


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"clipper": "quantile", "controller": "dynamic"}, "stands for"),
        ({"clipper": "bam", "clipper_options": {"r": 1}, "gradient_rule_options": {"r": 1}}, "clipper_options and in"),
        ({"controller": "quantil"}, "controller"),
    ],
)
def test_contradictions_are_refused_at_once(privacy, words):
    with pytest.raises(InputError, match=words):
        Scenario().override({f"privacy.{key}": value for key, value in privacy.items()})


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"clipper": "auto-s", "controller": "quantile"}, "use privacy.clipper=flat"),
        ({"clipper": "psac", "controller": "dc-sgd-e"}, "use privacy.clipper=flat"),
        ({"clipper": "auto-v", "gradient_rule": "error-feedback"}, "use privacy.clipper=flat"),
        ({"clipper": "global-adapt", "gradient_rule": "error-feedback"}, "do not go together"),
        ({"clipper": "global-adapt", "gradient_rule": "group-wise"}, "do not go together"),
        ({"gradient_rule": "sparsify", "filter": "laplacian"}, "spread"),
        ({"gradient_rule": "disk", "filter": "ema"}, "would be a second"),
        ({"clipper": "quantile", "clipper_options": {"gama": 0.5}}, "no option 'gama'; it allows: gamma, eta, sigma_b"),
        ({"clipper": "dynamic", "clipper_options": {"steps_total": 3}}, "no option 'steps_total'"),
        ({"clipper": "dc-sgd-p", "clipper_options": {"bins": 2.5}}, "whole number"),
        ({"filter": "laplacian", "filter_options": {"whole": 1}}, "true or false"),
        ({"filter": "laplacian", "filter_options": {"sigma": "x"}}, "not a number"),
        ({"controller_options": {"gamma": 0.5}}, "privacy.controller=none"),
        ({"gradient_rule_options": {"r": 0.5}}, "privacy.gradient_rule=none"),
        ({"filter_options": {"beta": 0.5}}, "privacy.filter=none"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(privacy, words):
    with pytest.raises(InputError, match=words):
        rules(**privacy)


@pytest.mark.parametrize(
    "privacy",
    [
        {"clipper": "auto-s", "controller": "dynamic", "gradient_rule": "bam", "filter": "ema"},
        {"clipper": "quantile", "gradient_rule": "sparsify", "filter": "momentum"},
        {"clipper": "psasc", "gradient_rule": "inner-momentum", "filter": "laplacian"},
        {"clipper": "dc-sgd-e", "gradient_rule": "group-wise", "filter": "doppler"},
        {"clipper": "disk", "filter": "laplacian"},
        {"clipper": "quantile", "gradient_rule": "error-feedback"},
    ],
)
def test_what_goes_together(privacy):
    made = recipe(**privacy)
    assert noise_of(made.event()) > 0 and made.initial_state(10) is not None


@pytest.mark.parametrize(("name", "options"), [("quantile", {"sigma_b": 1.0}), ("dc-sgd-p", {"sigma_h": 2.0})])
def test_a_statistic_that_takes_all_the_noise_is_refused(name, options):
    with pytest.raises(InputError, match=r"noise_multiplier=2 is not below 2, .*Nothing was started"):
        recipe(2.0, clipper=name, clipper_options=options)


def test_a_controller_is_no_clipper():
    with pytest.raises(InputError, match=r"privacy\.controller=quantile"):
        make_clipper("quantile", bound=1.0)


# ---- state ----------------------------------------------------------------------------------------


def test_state_is_one_vector_and_back():
    made = recipe(clipper="quantile", gradient_rule="inner-momentum", filter="ema", bound=0.25)
    flat = made.initial_state(5)
    layout = made.state_layout(5)
    assert flat.dtype == torch.float32 and flat.shape == (layout.size,) == (1 + 1 + 10 + 1 + 5,)
    parts = layout.split(flat)
    assert parts["controller"]["bound"] == 0.25 and torch.equal(layout.join(parts), flat)
    assert StateLayout.of(made.start(5)) == layout
    with pytest.raises(InputError, match="nothing was trained"):
        layout.split(flat[:-1])


def test_rules_without_memory_have_no_state():
    for name in ("bam", "sparsify", "group-wise", "dynamic"):
        assert recipe(clipper=name).initial_state(5) is None


# ---- schedules: the exact composed event, every round its own tokens -----------------------------


def dynamic(**options):
    return {"clipper": "dynamic", "clipper_options": {"stages": 5, **options}}


def test_a_schedule_is_composed_as_it_is():
    made = recipe(**dynamic(sigma_final=0.5))
    event = made.event()
    assert isinstance(event, ScheduledDpEvent) and event.steps == STEPS and len(event.events) == 5
    by_hand = [
        (dp_event.PoissonSampledDpEvent(RATE, dp_event.GaussianDpEvent(2.0 * 0.5 ** (12 * k / STEPS))), 12)
        for k in range(5)
    ]
    total = epsilon(event, STEPS, DELTA, "zero-out")
    assert total == epsilon_of(by_hand, DELTA, "zero-out")
    low, high = (epsilon(by_hand[k][0], STEPS, DELTA, "zero-out") for k in (0, 4))
    assert low < total < high
    assert decode_event(encode_event(event)) == event and noise_of(event) == pytest.approx(2.0 * 0.5**0.8)
    assert [made.sigma_at(step) for step in (0, 11, 12)] == [2.0, 2.0, pytest.approx(2.0 * 0.5**0.2)]
    with pytest.raises(InputError, match="past the 60 steps"):
        made.sigma_at(60)


def test_without_decay_it_is_flat_clipping():
    made, flat = recipe(**dynamic(sigma_final=1.0, c_final=1.0)), recipe(clipper="flat")
    assert made.event() == flat.event() and not made.scheduled
    assert made.rules.controller.clipper(made.rules.clipper, {}, 59) == flat.rules.clipper


def test_calibration_composes_the_schedule():
    made = rules(**dynamic())
    sigma = calibrate(
        lambda value: event_of(mechanism(made, value), made), count=STEPS, epsilon=3.0, delta=DELTA, relation="zero-out"
    )
    spent = [epsilon(recipe(sigma * k, **dynamic()).event(), STEPS, DELTA, "zero-out") for k in (0.9, 1.0, 1.1)]
    assert spent[0] > 3.0 >= spent[1] > spent[2] and spent[1] > 2.99
    flat = rules(clipper="flat")
    alone = calibrate(
        lambda value: event_of(mechanism(flat, value), flat), count=STEPS, epsilon=3.0, delta=DELTA, relation="zero-out"
    )
    assert alone < sigma < alone / 0.8  # begins with more noise, ends with less


def test_parts_of_a_schedule_cost_the_whole_and_more_than_it_is_refused():
    event = recipe(**dynamic()).event()
    whole = epsilon(event, STEPS, DELTA, "zero-out")
    assert epsilon(event, 1, DELTA, "zero-out") == whole and epsilon(event, 0, DELTA, "zero-out") == 0
    with pytest.raises(InputError, match="61 steps of a schedule of 60"):
        epsilon(event, 61, DELTA, "zero-out")


def test_a_schedule_within_another_event_is_a_whole_one():
    event = recipe(**dynamic()).event()
    twice = epsilon_of([part for part in event.part(0, STEPS) for _ in range(2)], DELTA, "zero-out")
    assert epsilon(dp_event.ComposedDpEvent([event, event]), 1, DELTA, "zero-out") == twice
    assert epsilon(dp_event.SelfComposedDpEvent(event, 2), 1, DELTA, "zero-out") == twice
    assert epsilon(dp_event.ComposedDpEvent([event]), 2, DELTA, "zero-out") == twice


@pytest.mark.parametrize("counts", [[1.5, 2], [0, 3], [3], []])
def test_damaged_schedules_are_refused(counts):
    event = dp_event.GaussianDpEvent(1.0)
    with pytest.raises(InputError):
        decode_event(encode_event(ScheduledDpEvent([event, event], [2, 3])).replace("[2,3]", str(counts)))


def contract(made, **changes):
    fields = {
        "run_id": "run", "event": encode_event(made.event()), "steps_total": STEPS, "steps_per_round": 12,
        "unit": "reading", "relation": "zero-out", "delta": DELTA, "epsilon": 50.0,
    }  # fmt: skip
    return Contract(**{**fields, **changes})


def ledger(path):
    return Ledger.create(
        path, dataset="d", budget_epsilon=50.0, delta=DELTA, unit="reading", relation="zero-out", mode="simulation"
    )


@pytest.mark.parametrize("changes", [{"steps_total": 59}, {"steps_per_round": 0}, {"steps_per_round": 7}])
def test_a_contract_must_fit_its_schedule(changes):
    with pytest.raises(InputError, match="Nothing was enrolled"):
        contract(recipe(**dynamic()), **changes)


def test_each_round_has_tokens_of_its_own(tmp_path):
    made = recipe(**dynamic(sigma_final=0.5))
    with ledger(tmp_path / "ledger") as book:
        book.enrol(contract(made))
        whole = epsilon(made.event(), STEPS, DELTA, "zero-out")
        assert book.committed() == whole and book.nominal() == 0
        book.reserve(run_id="run", round=5, steps=12, request_digest="five")  # rounds 1 to 4 were missed
        first, last = (epsilon(made.event().events[k], 12, DELTA, "zero-out") for k in (0, -1))
        assert book.nominal() == last > first
        for number, steps in ((6, 12), (0, 12), (1, 13)):
            with pytest.raises(BudgetExceeded):
                book.reserve(run_id="run", round=number, steps=steps, request_digest=f"{number}")
        for number in (1, 2, 3, 4):
            book.reserve(run_id="run", round=number, steps=12, request_digest=f"{number}")
        assert book.nominal() == whole == book.committed() and book.verify() == []


def test_a_budget_below_the_composed_schedule_is_refused(tmp_path):
    made = recipe(**dynamic(sigma_final=0.5))
    whole = epsilon(made.event(), STEPS, DELTA, "zero-out")
    with ledger(tmp_path / "ledger") as book, pytest.raises(BudgetExceeded):
        book.enrol(contract(made, epsilon=whole * 0.99))


# ---- labels ---------------------------------------------------------------------------------------


def label(tmp_path, made, scenario):
    path = tmp_path / "ledger"
    with ledger(path) as book:
        book.enrol(contract(made))
    return build_label(scenario, {"A": path}, steps_per_day=24)


def scenario(**privacy):
    small = {"task.context": 6, "task.horizon": 2, "model.depth": 0, "privacy.sampling_prob": RATE}
    return Scenario().override(small | {f"privacy.{key}": value for key, value in privacy.items()})


def test_the_label_states_every_part_with_the_total_noise(tmp_path):
    privacy = {"clipper": "quantile", "gradient_rule": "inner-momentum", "filter": "ema"}
    privacy["filter_options"] = {"beta": 0.8}
    made = recipe(**privacy)
    stated = label(tmp_path, made, scenario(**privacy))
    part = stated["mechanism"]["A"]
    assert (part["clipper"], part["controller"], part["gradient_rule"], part["filter"]) == (
        "flat", "quantile", "inner-momentum", "ema",
    )  # fmt: skip
    assert part["controller_options"] == {"gamma": 0.5, "eta": 0.2, "sigma_b": 0.0}
    assert part["gradient_rule_options"] == {"gamma": 0.5, "steps": 3} and part["filter_options"] == {"beta": 0.8}
    assert part["noise_multiplier"] == 2.0 < part["noise_multiplier_gradient"]
    assert stated["ladder"]["reading"] == stated["committed"]["A"] == epsilon(made.event(), STEPS, DELTA, "zero-out")


def test_the_label_of_a_schedule_has_the_ladder_of_all_its_stages(tmp_path):
    made = recipe(**dynamic(sigma_final=0.5))
    stated = label(tmp_path, made, scenario(**dynamic(sigma_final=0.5)))
    part = stated["mechanism"]["A"]
    assert stated["ladder"]["reading"] == stated["committed"]["A"] == epsilon(made.event(), STEPS, DELTA, "zero-out")
    assert part["noise_multiplier"] == pytest.approx(2.0 * 0.5**0.8)
    assert part["noise_schedule"][0] == [2.0, 12] and sum(n for _, n in part["noise_schedule"]) == STEPS
    assert stated["ladder"]["day"] > stated["ladder"]["reading"]
