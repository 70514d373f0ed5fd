"""Suite D5 on the other kinds of contracts: schedules, Renyi filters, and discrete noise."""

import pytest
import torch
from dp_accounting import dp_event

from fedpriv.config import PrivacyConfig
from fedpriv.errors import InputError
from fedpriv.privacy import ledger_view
from fedpriv.privacy.accounting import calibrate, epsilon_of, filter_epsilon
from fedpriv.privacy.audit.ledgers import audit_ledger
from fedpriv.privacy.audit.recorded import recorded
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import ScheduledDpEvent, encode_event
from fedpriv.privacy.hardened import GRID, HardenedMechanism, discrete_event
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.ledger_restore import restore
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import Recipe, make_rules
from fedpriv.privacy.renyi_contract import RenyiContract
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING
from fedpriv.seeding import stream

DELTA, STEPS, ROUND, STEPS_GRID = 1e-5, 40, 10, 5
TILING = RandomPhaseTiling(4, 0.3)
PROMISE = {"unit": "reading", "relation": "zero-out", "delta": DELTA}


def streams(seed):
    return lambda purpose: stream(seed, "audit", purpose)


@pytest.fixture
def book(tmp_path):
    torch.set_num_threads(1)
    opened = []

    def make(*contracts, kind=Ledger):
        path = tmp_path / f"{len(opened)}.sqlite"
        opened.append(kind.create(path, dataset="d", budget_epsilon=200.0, mode="simulation", **PROMISE))
        for contract in contracts:
            opened[-1].enrol(contract)
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


def audited(ledger, *, canaries=4000, seed=9, **options):
    return audit_ledger(ledger, canaries=canaries, streams=streams(seed), **options)


# ---- schedules ------------------------------------------------------------------------------------


def scheduled(target=6.0, *, sigma_final=0.4, stages=4, **changes):
    options = {"sigma_final": sigma_final, "c_final": 0.5, "stages": stages}
    config = PrivacyConfig.model_validate(
        {"clipper": "flat", "bound": 2.0, "controller": "dynamic", "controller_options": options}
    )
    rules = make_rules(config, steps_total=STEPS)

    def recipe(sigma):
        mechanism = Mechanism(
            sampler=TILING, clipper=rules.clipper, noise_multiplier=sigma, unit=READING, relation="zero-out"
        )
        return Recipe(mechanism=mechanism, rules=rules)

    sigma = calibrate(lambda s: recipe(s).event(), count=1, epsilon=target, delta=DELTA, relation="zero-out")
    made = recipe(sigma)
    terms = {**TILING.terms(), **rules.describe(sigma), **changes}
    return Contract(
        run_id="run", event=encode_event(made.event()), steps_total=STEPS, steps_per_round=ROUND, epsilon=150.0,
        terms=canonical(terms), **PROMISE,
    )  # fmt: skip


def paid(ledger, rounds=(1, 2, 3, 4)):
    for number in rounds:
        ledger.reserve(run_id="run", round=number, steps=ROUND, request_digest=f"{number}")
    return ledger


def test_a_scheduled_run_passes_and_costs_what_its_own_rounds_cost(book):
    contract = scheduled()
    ledger = paid(book(contract))
    found = audited(ledger)
    assert found.passed, found
    assert found.numbers["steps"] == STEPS and found.numbers["epsilon"] == ledger.nominal() <= 6.0
    assert found.numbers["recorded_cost"] == pytest.approx(ledger.nominal(), rel=1e-3)
    assert audited(ledger, whole_contracts=True).passed
    late = paid(book(contract), rounds=(3, 4))  # the two rounds with the least noise
    found = audited(late)
    assert found.passed and found.numbers["steps"] == 2 * ROUND, found
    assert found.numbers["epsilon"] == late.nominal() < ledger.nominal()


def test_stages_have_their_own_noise_and_bound(book):
    contract = scheduled()
    ledger = paid(book(contract), rounds=(2, 4))
    parts = [p for p in recorded(contract, ledger.rows()) if p.steps]
    assert [(p.step, p.steps) for p in parts] == [(10, 10), (30, 10)]
    first, last = (p.mechanism() for p in parts)
    assert last.noise_multiplier == pytest.approx(first.noise_multiplier * 0.4**0.5)
    assert (first.clipper.bound, last.clipper.bound) == pytest.approx((2 * 0.5**0.25, 2 * 0.5**0.75))
    every = recorded(contract, [], whole=True)
    assert sum(p.steps for p in every) == STEPS


class FirstStage(Ledger):
    """Charges every step of a schedule like its first."""

    def nominal(self):
        contract = self.contracts()[0]
        event = ScheduledDpEvent(**{k: getattr(_event(contract), k) for k in ("events", "counts")})
        return epsilon_of([(event.events[0], self.spent_tokens("run"))], self.delta, self.relation)


def _event(contract):
    from fedpriv.privacy.events import decode_event

    return decode_event(contract.event)


def test_a_ledger_that_charges_late_steps_like_early_ones_fails(book):
    found = audited(paid(book(scheduled(), kind=FirstStage)))
    assert found.numbers["status"] == "fail" and found.numbers["worst_999"] > found.numbers["epsilon"], found


def test_a_schedule_that_runs_with_less_noise_than_its_event_fails(book):
    contract = scheduled()
    stages = contract.public_terms["noise_schedule"]
    lying = Contract(
        **{**contract.to_json(),
           "terms": canonical({**contract.public_terms, "noise_schedule": [[s / 2, n] for s, n in stages]})}
    )  # fmt: skip
    found = audited(paid(book(lying)))
    assert found.numbers["status"] == "fail", found


# ---- filters --------------------------------------------------------------------------------------


def step_event(sigma, p=0.3):
    return dp_event.PoissonSampledDpEvent(p, dp_event.GaussianDpEvent(sigma))


REQUESTS = ((3.0, 12), (1.6, 6), (2.2, 10), (4.0, 8))  # (sigma, steps): chosen by a server as it goes


def filtered(requests=REQUESTS, *, room=1.2):
    planned = [(step_event(sigma), steps) for sigma, steps in requests]
    cost, order = filter_epsilon(planned, DELTA, "zero-out")
    return RenyiContract(run_id="run", order=order, epsilon=room * cost, **PROMISE)


def asked(ledger, requests=REQUESTS):
    for number, (sigma, steps) in enumerate(requests, start=1):
        ledger.reserve(run_id="run", round=number, steps=steps, request_digest=f"{number}", event=step_event(sigma))
    return ledger


def test_a_run_under_a_filter_passes(book):
    ledger = asked(book(filtered()))
    found = audited(ledger)
    assert found.passed, found
    assert found.numbers["steps"] == 36 and found.numbers["epsilon"] == ledger.nominal()
    exact = epsilon_of([(step_event(s), n) for s, n in REQUESTS], DELTA, "zero-out")
    assert found.numbers["recorded_cost"] == pytest.approx(exact, rel=1e-3)
    assert found.numbers["recorded_cost"] < found.numbers["epsilon"]
    whole = audited(ledger, whole_contracts=True)  # against what the filter promises whatever is asked
    assert whole.passed and whole.numbers["epsilon"] == pytest.approx(ledger.filters()[0].epsilon, rel=1e-6)


def test_a_round_of_different_steps_under_a_filter(book):
    mixed = dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(step_event(s), n) for s, n in REQUESTS])
    ledger = book(filtered())
    ledger.reserve(run_id="run", round=1, steps=36, request_digest="1", event=mixed)
    parts = recorded(ledger.filters()[0], ledger.rows())
    assert sorted((p.noise_multiplier, p.steps) for p in parts) == sorted(REQUESTS)


def test_both_kinds_in_one_ledger(book):
    contract = Contract(run_id="tokens", event=encode_event(step_event(3.0)), steps_total=10, epsilon=90.0, **PROMISE)
    ledger = asked(book(filtered(), contract))
    ledger.reserve(run_id="tokens", round=1, steps=10, request_digest="t")
    found = audited(ledger)
    assert found.passed and found.numbers["steps"] == 46, found


class Averaged(Ledger):
    """A filter that prices every request at the mean noise of what it has seen."""

    def nominal(self):
        sigma = sum(s * n for s, n in REQUESTS) / 36
        return filter_epsilon([(step_event(2 * sigma), 36)], self.delta, self.relation)[0]


def test_a_filter_that_forgets_fails(book, monkeypatch):
    found = audited(asked(book(filtered(), kind=Averaged)))
    assert found.numbers["status"] == "fail" and found.numbers["worst_999"] > found.numbers["epsilon"], found
    real = ledger_view.epsilon_of_units
    monkeypatch.setattr(ledger_view, "epsilon_of_units", lambda units, *a: real(units // 6, *a))
    found = audited(asked(book(filtered())))
    assert found.numbers["status"] == "fail", found


def test_a_restored_filter_counts_as_spent_and_is_audited_by_what_was_run(book):
    ledger = asked(book(filtered()))
    path = ledger.path
    ledger.close()
    copy = path.rename(path.with_name("copy"))
    assert not restore(path, copy, dataset="d", reason="a test").closed
    with Ledger.open(path, dataset="d") as again:
        found = audited(again)
        assert found.passed and found.numbers["epsilon"] == again.nominal() > found.numbers["recorded_cost"], found


# ---- hardened mode --------------------------------------------------------------------------------


def hardened(target=8.0, steps=STEPS_GRID, p=1.0, *, terms=True):
    tiling = RandomPhaseTiling(4, p)
    sigma = calibrate(discrete_event, count=steps, epsilon=target, delta=DELTA, relation="zero-out")
    stated = {**tiling.terms(), "clipper": "flat", "bound": 2.0, "noise_multiplier": sigma}
    return Contract(
        run_id="run", event=encode_event(tiling.amplify(discrete_event(sigma), READING, "zero-out")),
        steps_total=steps, steps_per_round=steps, epsilon=target,
        terms=canonical({"noise": "discrete-gaussian", **(stated if terms else {})}), **PROMISE,
    )  # fmt: skip


@pytest.mark.parametrize("terms", [True, False])
def test_a_hardened_run_passes_through_its_own_grid(book, monkeypatch, terms):
    seen = []
    real = HardenedMechanism.release
    monkeypatch.setattr(
        HardenedMechanism, "release", lambda self, c, **k: (seen.append(c.cells.abs().max()), real(self, c, **k))[1]
    )
    ledger = book(hardened(terms=terms))
    ledger.reserve(run_id="run", round=1, steps=STEPS_GRID, request_digest="1")
    found = audited(ledger, canaries=600)
    assert found.passed, found
    assert len(seen) == STEPS_GRID and 0.5 * GRID < max(seen) <= 2 * GRID  # four spread canaries meet on a coordinate
    assert found.numbers["recorded_cost"] < found.numbers["epsilon"] == ledger.nominal()
    assert found.numbers["t3"] > 0.6 * found.numbers["recorded_cost"]


def test_unamplified_zcdp_is_far_above_what_canaries_show_at_a_small_rate(book):
    ledger = book(hardened(p=0.3))
    ledger.reserve(run_id="run", round=1, steps=STEPS_GRID, request_digest="1")
    found = audited(ledger, canaries=600)
    assert found.passed and found.numbers["recorded_cost"] < 0.75 * found.numbers["epsilon"], found


def test_discrete_noise_of_half_the_size_fails(book, monkeypatch):
    real = HardenedMechanism.variance.fget
    monkeypatch.setattr(HardenedMechanism, "variance", property(lambda self: max(1, real(self) // 4)))
    ledger = book(hardened(target=4.0))
    ledger.reserve(run_id="run", round=1, steps=STEPS_GRID, request_digest="1")
    assert audited(ledger, canaries=600).numbers["status"] == "fail"


def test_a_grid_that_lets_more_through_fails(book, monkeypatch):
    from fedpriv.privacy import hardened as module

    real = module.on_grid
    monkeypatch.setattr(module, "on_grid", lambda row, clipper: 2 * real(row, clipper))
    ledger = book(hardened(target=4.0))
    ledger.reserve(run_id="run", round=1, steps=STEPS_GRID, request_digest="1")
    assert audited(ledger, canaries=600).numbers["status"] == "fail"


def test_zcdp_of_another_kind_is_refused(book):
    contract = Contract(
        run_id="run", event=encode_event(dp_event.ZCDpEvent(0.1)), steps_total=5, epsilon=50.0, **PROMISE
    )
    ledger = book(contract)
    ledger.reserve(run_id="run", round=1, steps=5, request_digest="1")
    with pytest.raises(InputError, match="zCDP"):
        audited(ledger, canaries=100)


# ---- no false alarm -------------------------------------------------------------------------------


@pytest.mark.study
@pytest.mark.parametrize("kind", ["schedule", "filter", "hardened"])
def test_no_false_alarm_over_twenty_seeds(book, kind):
    made = {"schedule": scheduled, "filter": filtered, "hardened": hardened}[kind]()
    ledger = book(made)
    if kind == "filter":
        asked(ledger)
    elif kind == "schedule":
        paid(ledger)
    else:
        ledger.reserve(run_id="run", round=1, steps=STEPS_GRID, request_digest="1")
    canaries = 600 if kind == "hardened" else 2000
    found = [audited(ledger, canaries=canaries, seed=seed) for seed in range(200, 220)]
    assert [f.numbers["status"] for f in found] == ["ok"] * 20
