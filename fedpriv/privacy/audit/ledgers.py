"""The audit of what a ledger reports: the mechanism that its rows record, run for the steps that its rows record.

The claim is the epsilon that the ledger (and the accountant behind it) states; the evidence is a canary run of the
recorded mechanism through the production code. An accountant that forgets rounds, restarts at zero, or counts one
contract of two states less than an attacker demonstrably gets. Steps are counted here from the rows themselves.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError
from fedpriv.privacy.audit.canary import EngineFactory, Streams, run_canaries
from fedpriv.privacy.audit.tables import Claim, step_law
from fedpriv.privacy.audit.verdict import SuiteResult, judge
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import PublicChoiceDpEvent, decode_event
from fedpriv.privacy.laws import Laws
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.meter_samplers import MeterSampling, sampler_from_terms
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler, Tiles
from fedpriv.privacy.units import READING, Relation, Unit
from fedpriv.seeding import PrivacyRng

WINDOW = 4  # of the tiling that stands for a recorded rate; the law of a reading does not depend on it
ROUNDING = 1e-3  # grid of the losses: reported epsilons may differ by this much


class Reports(Protocol):
    """What is audited: a ledger, or whatever else reports epsilons of recorded contracts."""

    @property
    def delta(self) -> float:
        """The delta of its epsilons."""
        ...

    @property
    def relation(self) -> Relation:
        """The relation of its epsilons."""
        ...

    def contracts(self) -> list[Contract]:
        """What was agreed."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """The chain: rows with `kind`, `run_id` and `tokens`."""
        ...

    def nominal(self) -> float:
        """Epsilon reported for the steps so far."""
        ...

    def committed(self) -> float:
        """Epsilon reported for all contracts in full."""
        ...


def audit_ledger(
    ledger: Reports | Path | str,
    *,
    canaries: int,
    streams: Streams,
    engine: str | EngineFactory = "ghost",
    whole_contracts: bool = False,
    name: str = "D5 ledger",
    progress: Callable[[float], None] | None = None,
) -> SuiteResult:
    """Runs what a ledger records and compares with the epsilon that it reports.

    Args:
        ledger: open, or the path of one (opened for reading only).
        canaries: m; 10000 for epsilon <= 1.
        streams: purpose -> source of randomness.
        engine: production engine, or a factory for tests.
        whole_contracts: audit `committed()` over the contracts' steps instead of `nominal()` over the recorded ones.
        name: of the result.
        progress: told the share that is done.

    Returns:
        Failed when the reported epsilon is below what an attacker gets (99.9 %), or below what the recorded events
        cost; weak when the run shows less than 0.6 of it.

    Raises:
        LedgerError: the file cannot be opened.
        InputError: nothing was recorded, or an event that the audit cannot run.
    """
    if isinstance(ledger, str | Path):
        with Ledger.open(ledger, readonly=True) as opened:
            return audit_ledger(
                opened,
                canaries=canaries,
                streams=streams,
                engine=engine,
                whole_contracts=whole_contracts,
                name=name,
                progress=progress,
            )
    contracts = [c for c in ledger.contracts() if "side_release" not in c.public_terms]  # training is audited
    recorded = recorded_steps(ledger.rows())
    counts = {c.run_id: c.steps_total if whole_contracts else recorded.get(c.run_id, 0) for c in contracts}
    held = [c for c in contracts if counts[c.run_id] > 0]
    if not held:
        raise InputError("the ledger records no private steps, so there is nothing to audit.")
    claim = Claim.of([(decode_event(c.event), counts[c.run_id]) for c in held], ledger.relation, ledger.delta)
    reported = ledger.committed() if whole_contracts else ledger.nominal()
    mechanisms = [mechanism_of(c) for c in held]
    if len({m.unit for m in mechanisms}) > 1:
        mechanisms = [mechanism_of(c, recorded_law=True) for c in held]
    scores = run_canaries(
        [(m, counts[c.run_id]) for m, c in zip(mechanisms, held, strict=True)],
        canaries=canaries,
        streams=streams,
        engine=engine,
        progress=progress,
    )
    verdict = judge(claim, scores, epsilon=reported, name=name)
    cost = claim.epsilon()
    numbers = {**verdict.numbers, "recorded_cost": cost}
    if verdict.passed and reported < cost - ROUNDING - 0.01 * cost:
        detail = f"the ledger reports {reported:.4g}, its {scores.steps} recorded steps cost {cost:.4g}"
        return SuiteResult(name, False, detail, {**numbers, "status": "fail"})
    return SuiteResult(name, verdict.passed, verdict.detail, numbers)


def recorded_steps(rows: list[dict[str, Any]]) -> dict[str, int]:
    """run_id -> steps reserved (or charged by a restore), added up from the rows and not from running totals."""
    steps: dict[str, int] = {}
    for row in rows:
        if row["kind"] in ("reserve", "restore") and row["run_id"] is not None:
            steps[row["run_id"]] = steps.get(row["run_id"], 0) + int(row["tokens"])
    return steps


def mechanism_of(contract: Contract, *, recorded_law: bool = False) -> Mechanism:
    """The mechanism that a contract records, built from production parts.

    The sampler is that of the terms where they name one whose law for the unit can be laid out on a small calendar;
    a plain rate becomes a random-phase tiling; any other law of touching groups is drawn as recorded.

    Raises:
        InputError: an event without Gaussian noise, or terms that name no known sampler or clipper.
    """
    event, terms = decode_event(contract.event), contract.public_terms
    law = step_law(event)
    sampler, unit = (None, READING) if recorded_law else _sampler_and_unit(contract, event, terms)
    if sampler is None:
        sampler, unit = RecordedLaw(event), READING
    name = str(terms.get("clipper", "flat"))
    options = terms.get("clipper_options", {})
    return Mechanism(
        sampler=sampler,
        clipper=make_clipper(name, bound=float(terms.get("bound", 1.0)), **dict(options)),
        noise_multiplier=float(terms.get("noise_multiplier", law.sigma)),
        unit=unit,
        relation=Relation.parse(contract.relation),
    )


def _sampler_and_unit(contract: Contract, event: DpEvent, terms: Mapping[str, Any]) -> tuple[Sampler | None, Unit]:
    per_day = int(terms.get("steps_per_day", 0))
    known = contract.unit in ("reading", "meter") or contract.unit.startswith("event:") or per_day > 0
    if contract.unit == "client" or not known:
        return None, READING
    unit = Unit.parse(contract.unit, steps_per_day=max(per_day, 1))
    if "sampler" in terms:
        sampler = sampler_from_terms(terms)
        return (sampler, unit) if unit.kind == "event" or isinstance(sampler, MeterSampling) else (None, READING)
    if isinstance(event, dp_event.GaussianDpEvent):
        return RandomPhaseTiling(WINDOW, 1.0), READING
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        return RandomPhaseTiling(WINDOW, event.sampling_probability), READING
    return None, READING


@dataclass(frozen=True)
class RecordedLaw(Sampler):
    """Draws each meter's windows by the law that an event records: for audits, where the sampler is not recorded."""

    event: DpEvent
    window: int = field(default=1, init=False)
    name: str = field(default="recorded-law", init=False)

    def batches(self, *, num_meters: int, start: int, stop: int, steps: int, rng: PrivacyRng) -> Iterator[Tiles]:
        """One `Tiles` per step: J copies of each meter's only window."""
        del stop
        laws = self.laws(READING)
        for _ in range(steps):
            at = np.searchsorted(np.cumsum([w for w, _ in laws]), rng.random(1)[0], side="right")
            cumulative = np.cumsum(laws[min(int(at), len(laws) - 1)][1])
            counts = np.searchsorted(cumulative, np.asarray(rng.random(num_meters)), side="right")
            meter = np.repeat(np.arange(num_meters), np.minimum(counts, len(cumulative) - 1)).astype(np.int64)
            yield Tiles(meter, np.full(len(meter), start, dtype=np.int64), np.arange(len(meter), dtype=np.int64))

    def expected_batch_size(self, *, num_meters: int, start: int, stop: int) -> float:
        """E[J] * M."""
        del start, stop
        return num_meters * sum(weight * float(np.arange(len(law)) @ law) for weight, law in self.laws(READING))

    def laws(self, unit: Unit, *, calendar_steps: int | None = None) -> Laws:
        """As recorded."""
        del unit, calendar_steps
        if isinstance(self.event, PublicChoiceDpEvent):
            pairs = zip(self.event.probabilities, self.event.events, strict=True)
            return [(chance, _dense_law(each)) for chance, each in pairs]
        return [(1.0, _dense_law(self.event))]

    def terms(self) -> dict[str, str | int | float]:
        """Its name; the law is in the event."""
        return {"sampler": self.name}


def _dense_law(event: DpEvent) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(event, dp_event.NoOpDpEvent):
        return np.ones(1)
    law = step_law(event)
    dense = np.zeros(int(law.counts.max()) + 1)
    dense[law.counts.astype(int)] = law.weights
    return dense
