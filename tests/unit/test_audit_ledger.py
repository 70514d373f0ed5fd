"""Suite D5: the epsilon that a ledger reports against canaries run by what its rows record."""

import pytest
import torch
from dp_accounting import dp_event

from fedpriv.errors import InputError, LedgerError
from fedpriv.privacy import ledger_view
from fedpriv.privacy.accounting import epsilon_of
from fedpriv.privacy.audit.ledgers import audit_ledger
from fedpriv.privacy.audit.recorded import RecordedLaw, recorded, recorded_steps
from fedpriv.privacy.audit.tables import step_law
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import decode_event, encode_event
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.meter_samplers import MeterSampling
from fedpriv.privacy.samplers import RandomPhaseTiling, StridedWindows
from fedpriv.privacy.units import READING, Relation, event_unit
from fedpriv.seeding import stream

SAMPLED = dp_event.PoissonSampledDpEvent(0.2, dp_event.GaussianDpEvent(1.2))


def streams(purpose):
    return stream(9, "audit", purpose)


def contract(run_id="run", event=SAMPLED, steps=60, unit="reading", relation="zero-out", **terms):
    return Contract(
        run_id=run_id, event=encode_event(event), steps_total=steps, unit=unit, relation=relation, delta=1e-5,
        epsilon=90.0, terms=canonical(terms),
    )  # fmt: skip


@pytest.fixture
def make_ledger(tmp_path):
    torch.set_num_threads(1)
    opened = []

    def make(*contracts, rounds=6, kind=Ledger, name="a.sqlite"):
        first = contracts[0]
        ledger = kind.create(
            tmp_path / name, dataset="d", budget_epsilon=100.0, delta=1e-5, unit=first.unit,
            relation=first.relation, mode="simulation",
        )  # fmt: skip
        opened.append(ledger)
        for made in contracts:
            ledger.enrol(made)
            for round_ in range(rounds):
                ledger.reserve(run_id=made.run_id, round=round_, steps=10, request_digest=f"{round_}")
        return ledger

    yield make
    for ledger in opened:
        ledger.close()


def test_an_honest_ledger_passes(make_ledger):
    ledger = make_ledger(contract())
    found = audit_ledger(ledger, canaries=4000, streams=streams)
    assert found.passed, found
    assert found.numbers["epsilon"] == ledger.nominal() and found.numbers["steps"] == 60
    assert found.numbers["recorded_cost"] == pytest.approx(ledger.nominal(), rel=1e-3)
    assert audit_ledger(ledger, canaries=4000, streams=streams, whole_contracts=True).passed


def test_a_path_is_opened_for_reading_only(make_ledger, tmp_path):
    ledger = make_ledger(contract(steps=20), rounds=2)
    head = ledger.head()
    ledger.close()
    assert audit_ledger(tmp_path / "a.sqlite", canaries=4000, streams=streams).numbers["steps"] == 20
    with Ledger.open(tmp_path / "a.sqlite", readonly=True) as again:
        assert again.head() == head
    with pytest.raises(LedgerError):
        audit_ledger(tmp_path / "missing.sqlite", canaries=4000, streams=streams)


class LastRoundOnly(Ledger):
    """Reports the newest round, as engines that are rebuilt in every round do."""

    def nominal(self):
        return epsilon_of([(SAMPLED, 10)], self.delta, self.relation)


class ResetByRestart(Ledger):
    def spent_tokens(self, run_id):
        return super().spent_tokens(run_id) % 20 or 20


class OneContract(Ledger):
    def nominal(self):
        last = self.contracts()[-1]
        return epsilon_of([(decode_event(last.event), self.spent_tokens(last.run_id))], self.delta, self.relation)


def test_a_ledger_that_forgets_rounds_fails(make_ledger):
    found = audit_ledger(make_ledger(contract(), kind=LastRoundOnly), canaries=4000, streams=streams)
    assert found.numbers["status"] == "fail" and not found.passed
    assert found.numbers["worst_999"] > found.numbers["epsilon"], "canaries themselves must show it"


def test_a_ledger_that_starts_again_at_zero_fails(make_ledger):
    honest = make_ledger(contract(steps=60))
    honest.close()
    with ResetByRestart.open(honest.path, readonly=True) as ledger:
        found = audit_ledger(ledger, canaries=4000, streams=streams)
    assert found.numbers["status"] == "fail" and found.numbers["worst_999"] > found.numbers["epsilon"]


def test_a_ledger_that_counts_one_contract_of_two_fails(make_ledger):
    two = (contract("one"), contract("two", dp_event.GaussianDpEvent(9.0)))
    assert audit_ledger(make_ledger(*two, name="b.sqlite"), canaries=4000, streams=streams).passed
    found = audit_ledger(make_ledger(*two, kind=OneContract), canaries=4000, streams=streams)
    assert found.numbers["status"] == "fail" and found.numbers["worst_999"] > found.numbers["epsilon"]


@pytest.mark.parametrize("forgets", ["counts", "half"])
def test_an_accountant_that_forgets_fails(make_ledger, monkeypatch, forgets):
    def forgetful(parts, delta, relation):
        kept = [(event, 10 if forgets == "counts" else n // 2) for event, n in parts]
        return epsilon_of(kept, delta, relation)

    ledger = make_ledger(contract())
    monkeypatch.setattr(ledger_view, "epsilon_of", forgetful)
    found = audit_ledger(ledger, canaries=4000, streams=streams)
    assert found.numbers["status"] == "fail" and found.numbers["worst_999"] > found.numbers["epsilon"]


def test_a_small_lie_shows_in_the_recomputed_cost(make_ledger, monkeypatch):
    ledger = make_ledger(contract())
    monkeypatch.setattr(ledger_view, "epsilon_of", lambda *a: 0.97 * epsilon_of(*a))
    found = audit_ledger(ledger, canaries=4000, streams=streams)
    assert not found.passed and "recorded steps cost" in found.detail


def test_an_empty_ledger_has_nothing_to_audit(make_ledger):
    with pytest.raises(InputError, match="nothing to audit"):
        audit_ledger(make_ledger(contract(), rounds=0), canaries=100, streams=streams)


def test_terms_that_cost_more_than_the_event_fail(make_ledger):
    """The contract says q = 0.2, the sampler that its terms name draws at 0.5."""
    terms = RandomPhaseTiling(8, 0.5).terms()
    found = audit_ledger(make_ledger(contract(**terms)), canaries=4000, streams=streams)
    assert found.numbers["status"] == "fail"


def test_steps_are_counted_from_rows():
    rows = [
        {"kind": "reserve", "run_id": "a", "tokens": 3},
        {"kind": "reply", "run_id": "a", "tokens": 0},
        {"kind": "refused", "run_id": "a", "tokens": 9},
        {"kind": "restore", "run_id": "a", "tokens": 4},
        {"kind": "reserve", "run_id": "b", "tokens": 1},
    ]
    assert recorded_steps(rows) == {"a": 7, "b": 1}


def mechanism_of(made):
    (part,) = recorded(made, [], whole=True)
    assert part.steps == made.steps_total
    return part.mechanism()


def test_mechanisms_of_contracts():
    plain = mechanism_of(contract())
    assert isinstance(plain.sampler, RandomPhaseTiling) and plain.step_event() == SAMPLED
    strided = StridedWindows(6, 3, 0.1)
    event = strided.amplify(dp_event.GaussianDpEvent(2.0), READING, Relation.ZERO_OUT)
    made = mechanism_of(contract(event=event, **strided.terms(), clipper="auto-s", bound=3.0, noise_multiplier=2.0))
    assert made.sampler == strided and made.clipper.name == "auto-s" and made.clipper.bound == 3.0
    assert encode_event(made.step_event()) == encode_event(event)
    tiling = RandomPhaseTiling(6, 0.1)
    day = tiling.amplify(dp_event.GaussianDpEvent(2.0), event_unit(24), Relation.ZERO_OUT)
    with_terms = mechanism_of(contract(event=day, unit="day", **tiling.terms(), steps_per_day=24))
    assert with_terms.sampler == tiling and with_terms.unit.steps == 24
    without = mechanism_of(contract(event=day, unit="day"))
    assert isinstance(without.sampler, RecordedLaw)
    assert encode_event(without.step_event()) == encode_event(day)
    meters = MeterSampling(6, 0.3, 2)
    assert mechanism_of(contract(unit="meter", **meters.terms())).sampler == meters


def test_a_recorded_law_is_drawn_as_recorded():
    event = RandomPhaseTiling(6, 0.3).amplify(dp_event.GaussianDpEvent(2.0), event_unit(10), Relation.ZERO_OUT)
    sampler, law = RecordedLaw(event), step_law(event)
    drawn = [len(t) / 500 for t in sampler.batches(num_meters=500, start=0, stop=1, steps=400, rng=stream(1, "x"))]
    assert sum(drawn) / 400 == pytest.approx(law.mean, rel=0.05)
    assert sampler.expected_batch_size(num_meters=10, start=0, stop=1) == pytest.approx(10 * law.mean)


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["zero-out", "replace-one"])
def test_a_ledger_of_days_passes(make_ledger, relation):
    event = RandomPhaseTiling(6, 0.05).amplify(dp_event.GaussianDpEvent(1.5), event_unit(24), relation)
    found = audit_ledger(
        make_ledger(contract(event=event, unit="day", relation=relation)), canaries=4000, streams=streams
    )
    assert found.passed, found
