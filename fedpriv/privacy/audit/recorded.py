"""What the rows of a ledger record, as mechanisms that can be run: the production parts, step by step.

Steps are counted here from the rows themselves and not from running totals. Three kinds of contracts: tokens of one
event, a public schedule of events (each round has the steps of its own place), and a Renyi filter (each row states
its event). Discrete noise is recorded as zCDP; what an attacker sees of it is Gaussian noise on sampled sums, so that
is the event which is composed and compared, while the epsilon that is judged stays the reported one.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError
from fedpriv.privacy.audit.tables import step_law
from fedpriv.privacy.clippers import Rule, make_clipper
from fedpriv.privacy.composition import leaves
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.events import PublicChoiceDpEvent, ScheduledDpEvent, decode_event, encode_event
from fedpriv.privacy.hardened import HardenedMechanism
from fedpriv.privacy.laws import Laws
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.meter_samplers import MeterSampling, sampler_from_terms
from fedpriv.privacy.renyi_contract import AnyContract
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler, Tiles
from fedpriv.privacy.schedules import DynamicController
from fedpriv.privacy.units import READING, Relation, Unit
from fedpriv.seeding import PrivacyRng

WINDOW = 4  # of the tiling that stands for a recorded rate; the law of a reading does not depend on it
DISCRETE = "discrete-gaussian"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Recorded:
    """Steps of one kind that a ledger records.

    Attributes:
        event: of one step, Gaussian noise on sampled sums: what is composed for comparison.
        steps: how many.
        contract: whose they are.
        noise_multiplier: that the terms state for them, or that of the event.
        step: the first of them in the run, for rules that change on a schedule.
    """

    event: DpEvent
    steps: int
    contract: AnyContract
    noise_multiplier: float
    step: int = 0

    def mechanism(self, *, recorded_law: bool = False) -> Mechanism:
        """Built from production parts, as the terms name them.

        The sampler is that of the terms where they name one whose law for the unit can be laid out on a small
        calendar; a plain rate becomes a random-phase tiling; any other law of touching groups is drawn as recorded.

        Raises:
            InputError: an event without Gaussian noise, or terms that name no known sampler or clipper.
        """
        contract, terms = self.contract, self.contract.public_terms
        sampler, unit = (None, READING) if recorded_law else _sampler_and_unit(contract, self.event, terms)
        if sampler is None:
            sampler, unit = RecordedLaw(self.event), READING
        kind = HardenedMechanism if terms.get("noise") == DISCRETE else Mechanism
        return kind(
            sampler=sampler,
            clipper=_clipper(contract, terms, self.step),
            noise_multiplier=self.noise_multiplier,
            unit=unit,
            relation=Relation.parse(contract.relation),
        )


def recorded(contract: AnyContract, rows: Rows, *, whole: bool = False) -> list[Recorded]:
    """What a run has paid for (or, with `whole`, what its contract grants), by kind of step.

    A filter grants an amount and no steps, so `whole` does not apply to it.

    Raises:
        InputError: an event that the audit cannot run.
    """
    own = [row for row in rows if row["run_id"] == contract.run_id]
    if not isinstance(contract, Contract):
        return _filtered(contract, own)
    event, terms = decode_event(contract.event), contract.public_terms
    if isinstance(event, ScheduledDpEvent):
        return _scheduled(contract, event, own, whole=whole)
    steps = contract.steps_total if whole else recorded_steps(own).get(contract.run_id, 0)
    seen = _seen(event, contract, terms)
    return [Recorded(seen, steps, contract, float(terms.get("noise_multiplier", step_law(seen).sigma)))]


def recorded_steps(rows: Rows) -> dict[str, int]:
    """run_id -> steps reserved (or charged by a restore), added up from the rows and not from running totals."""
    steps: dict[str, int] = {}
    for row in rows:
        if row["kind"] in ("reserve", "restore") and row["run_id"] is not None:
            steps[row["run_id"]] = steps.get(row["run_id"], 0) + int(row["tokens"])
    return steps


def _scheduled(contract: Contract, event: ScheduledDpEvent, own: Rows, *, whole: bool) -> list[Recorded]:
    """The steps of each stage that some round has paid for; a restore charges all that was open."""
    ranges = [(0, contract.steps_total)]
    if not whole and all(row["kind"] != "restore" for row in own):
        starts = [(row["round"] - 1) * contract.steps_per_round for row in own if row["kind"] == "reserve"]
        tokens = [int(row["tokens"]) for row in own if row["kind"] == "reserve"]
        ranges = [(start, start + count) for start, count in zip(starts, tokens, strict=True)]
    stated = contract.public_terms.get("noise_schedule", [])
    found: list[Recorded] = []
    first = 0
    for k, (each, count) in enumerate(zip(event.events, event.counts, strict=True)):
        taken = sum(max(0, min(stop, first + count) - max(start, first)) for start, stop in ranges)
        seen = _seen(each, contract, contract.public_terms)
        sigma = float(stated[k][0]) if k < len(stated) else step_law(seen).sigma
        found.append(Recorded(seen, taken, contract, sigma, step=first))
        first += count
    return found


def _filtered(contract: AnyContract, own: Rows) -> list[Recorded]:
    """The events that the rows of a filter state. Tokens that a restore wrote off were spent on nothing known."""
    counts: Counter[str] = Counter()
    for row in own:
        if row["kind"] == "reserve":
            steps = int(row["body"]["steps"])
            event = decode_event(row["body"]["event"])
            for each, count in leaves([(event, 1 if isinstance(event, dp_event.ComposedDpEvent) else steps)]):
                counts[encode_event(each)] += count
    found: list[Recorded] = []
    for text, count in sorted(counts.items()):
        seen = _seen(decode_event(text), contract, contract.public_terms)
        found.append(Recorded(seen, count, contract, step_law(seen).sigma))
    return found


def _seen(event: DpEvent, contract: AnyContract, terms: Mapping[str, Any]) -> DpEvent:
    """A step as an attacker sees it: zCDP of discrete noise as Gaussian noise on what its sampler draws."""
    if not isinstance(event, dp_event.ZCDpEvent):
        return event
    if terms.get("noise") != DISCRETE or event.rho <= 0 or event.xi:
        raise InputError("the audit cannot run this zCDP event: its terms do not say that it is discrete noise.")
    if "sampler" in terms and "noise_multiplier" in terms:
        gaussian = dp_event.GaussianDpEvent(float(terms["noise_multiplier"]))
        unit = Unit.parse(contract.unit, steps_per_day=int(terms.get("steps_per_day", 24)))
        return sampler_from_terms(terms).amplify(gaussian, unit, contract.relation)
    return dp_event.GaussianDpEvent(1 / math.sqrt(2 * event.rho))


def _clipper(contract: AnyContract, terms: Mapping[str, Any], step: int) -> Rule:
    """The rule in force at a step; a bound that releases steer is left where it began, noise follows it anyway."""
    options = terms.get("clipper_options", {})
    clipper = make_clipper(str(terms.get("clipper", "flat")), bound=float(terms.get("bound", 1.0)), **dict(options))
    if terms.get("controller") == DynamicController.KEY and isinstance(contract, Contract):
        schedule = DynamicController(steps_total=contract.steps_total, **dict(terms.get("controller_options", {})))
        return schedule.clipper(clipper, {}, step)
    return clipper


def _sampler_and_unit(contract: AnyContract, event: DpEvent, terms: Mapping[str, Any]) -> tuple[Sampler | None, Unit]:
    per_day = int(terms.get("steps_per_day", 0))
    known = contract.unit in ("reading", "meter") or contract.unit.startswith("event:") or per_day > 0
    if contract.unit == "client" or not known:
        return None, READING
    unit = Unit.parse(contract.unit, steps_per_day=max(per_day, 1))
    if "sampler" in terms and isinstance(contract, Contract):
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
