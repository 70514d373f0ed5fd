"""What the ledgers of a run's clients say about every unit: the ladder of epsilons beside the promised one.

A rung is left open (None) where a public fact is missing that it would follow from; of several clients it is the worst.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dp_accounting import DpEvent, dp_event

from fedpriv.config import Scenario
from fedpriv.privacy.accounting import inner_event, rungs_of
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.dominance import noise_of
from fedpriv.privacy.events import ScheduledDpEvent, decode_event
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.meter_samplers import sampler_from_terms
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract
from fedpriv.privacy.samplers import RandomPhaseTiling, Sampler
from fedpriv.privacy.side_releases import side_event_for
from fedpriv.privacy.units import METER, READING, Relation, Unit

RUNGS = ("reading", "day", "week", "month", "meter")


@dataclass(frozen=True)
class Account:
    """What one client's ledger says, as far as labels need it."""

    contracts: tuple[Contract, ...]
    filters: tuple[RenyiContract, ...]

    @property
    def training(self) -> list[AnyContract]:
        """Everything but side releases and personal models, oldest first."""
        return [*(c for c in self.contracts if "side_release" not in c.public_terms), *self.filters]

    @property
    def personal(self) -> list[Contract]:
        """Private fine-tuning: steps like those of training, of models that are not sent."""
        return [c for c in self.contracts if c.public_terms.get("side_release") == "personal"]

    @property
    def main(self) -> list[AnyContract]:
        """Training, or the statistics of a run that is nothing else."""
        statistics = [c for c in self.contracts if c.public_terms.get("side_release") == "statistics"]
        return self.training or [*statistics]

    @property
    def side(self) -> list[Contract]:
        """Numbers beside the model."""
        return [c for c in self.contracts if is_side(c)]


def is_side(contract: Contract) -> bool:
    """Whether it is about a number beside the model."""
    return contract.public_terms.get("side_release", "personal") != "personal"


def ladders(
    scenario: Scenario | None,
    accounts: Mapping[Account, int | None],
    unit: str,
    delta: float,
    steps_per_day: int | None,
) -> dict[str, dict[str, float | None]]:
    """Relation -> rung -> epsilon, the worst of all accounts.

    Args:
        scenario: what was run; None: everything from the contracts' terms.
        accounts: account -> training calendar of those who have it, steps.
        unit: that the side releases were made for.
        delta: of the label.
        steps_per_day: readings in 24 hours, of contracts whose terms do not say; None: no day and longer of theirs.
    """
    return {
        r.value: _worst([_ladder(scenario, k, n, unit, delta, r, steps_per_day) for k, n in accounts.items()])
        for r in (Relation.ZERO_OUT, Relation.REPLACE_ONE)
    }


def _stages(contract: AnyContract) -> list[tuple[float | DpEvent, int]] | None:
    """(noise of one group, steps) of each stage of a contract; None where other units are not derivable from it."""
    if isinstance(contract, RenyiContract):
        return None
    event = decode_event(contract.event)
    if isinstance(event, ScheduledDpEvent):
        return [(noise_of(each), count) for each, count in event.part(0, event.steps)]
    if isinstance(event, dp_event.ZCDpEvent):
        sigma = contract.public_terms.get("noise_multiplier")
        return [(discrete_event(float(sigma)), contract.steps_total)] if sigma else None
    return [(noise_of(event), contract.steps_total)]


def sampler_of(scenario: Scenario | None, contract: AnyContract) -> Sampler | None:
    """What drew the batches of a contract; None where neither its terms nor a scenario say."""
    terms = contract.public_terms
    if "sampler" in terms and "window" in terms:
        return sampler_from_terms(terms)
    return RandomPhaseTiling(scenario.task.window, scenario.privacy.sampling_prob) if scenario is not None else None


def term_of(contract: AnyContract, name: str) -> int | None:
    """A number among the public terms; None where it is missing or 0."""
    value = contract.public_terms.get(name)
    return int(value) if value else None


def longest(a: int | None, b: int | None) -> int | None:
    """The longer calendar; None where one of them is not known."""
    return max(a, b) if a is not None and b is not None else None


def _ladder(
    scenario: Scenario | None,
    account: Account,
    calendar_steps: int | None,
    unit: str,
    delta: float,
    relation: Relation,
    steps_per_day: int | None,
) -> dict[str, float | None]:
    """The rungs that the public facts allow; None where a fact is missing or no epsilon is finite.

    Runs on the same readings may have had calendars of different steps. A day is then as many steps of each contract as
    its own terms say, and a whole meter, whose length is known on one calendar only, is left open.
    """
    charged = [*account.training, *account.personal, *account.side]
    stated = [term_of(contract, "steps_per_day") or 0 for contract in charged]
    usual = max([*stated, steps_per_day or 0])  # of contracts that do not say: the most, which costs the most
    a_day = [number or usual for number in stated]
    units = [READING]
    if usual:
        units += [Unit.parse(name, steps_per_day=usual) for name in ("day", "week", "month")]
    if calendar_steps and len(set(a_day)) <= 1:
        units.append(METER)
    events: dict[str, list[tuple[DpEvent, int]]] = {u.name: [] for u in units}
    for contract, per_day in zip(charged, a_day, strict=True):
        own = Unit.parse(unit, steps_per_day=per_day or 1)
        for name, found in events.items():
            rung = Unit.parse(name, steps_per_day=per_day or 1)
            parts = _events(scenario, contract, own, rung, relation, calendar_steps)
            if parts is None:
                return dict.fromkeys(RUNGS)
            found += parts
    known = rungs_of(events, delta, relation)
    return {name: finite(known[name]) if name in known else None for name in RUNGS}


def _events(
    scenario: Scenario | None,
    contract: AnyContract,
    own: Unit,
    rung: Unit,
    relation: Relation,
    calendar_steps: int | None,
) -> list[tuple[DpEvent, int]] | None:
    """(event, count) of a contract for the unit `rung`; None where they do not follow from its terms."""
    if isinstance(contract, Contract) and is_side(contract):
        moved = side_event_for(contract.public_terms, own, rung, calendar_steps=calendar_steps)
        return [(moved, contract.steps_total)]
    sampler, stages = sampler_of(scenario, contract), _stages(contract)
    if sampler is None or stages is None:
        return None
    return [
        (sampler.amplify(inner_event(noise), rung, relation, calendar_steps=calendar_steps), steps)
        for noise, steps in stages
    ]


def _worst(ladders: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The largest epsilon of each rung; None where some client has none."""
    worst: dict[str, float | None] = {}
    for name in RUNGS:
        values = [ladder[name] for ladder in ladders]
        known = [v for v in values if v is not None]
        worst[name] = max(known) if len(known) == len(values) else None
    return worst


def finite(value: float) -> float | None:
    """The number; None for infinity and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
