"""The contract that a data holder enters into before a run: what may be asked of its data, at most and in all.

Why a contract and not a meter that is polled: composition theorems hold for privacy parameters fixed in advance.
Weights, learning rates and clipping bounds may be chosen from earlier outputs, but who chooses sigma, the rate or
the number of steps from them, or stops when epsilon "is used up", leaves the theorem. Here the contract fixes one
event and a number of tokens (steps). A request is accepted only if each of its steps is dominated by the contract's
event, so that whatever an adaptive server asks is dominated by event^steps_total, and the claim is the contract's
epsilon. What was really used so far is shown beside it as nominal.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dp_accounting import DpEvent, dp_event

from fedpriv.errors import InputError
from fedpriv.privacy.dominance import dominates, noise_of
from fedpriv.privacy.events import ScheduledDpEvent, decode_event, encode_event
from fedpriv.privacy.units import Relation


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal contents give equal text and digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What every kind of contract states: about whom, how much at most, and the constants that requests must repeat.

    Attributes:
        run_id: names the run; one contract per run.
        unit: name of the privacy unit.
        relation: name of the neighbouring relation.
        delta: in (0, 1).
        epsilon: the most that the run may cost at delta.
        terms: canonical JSON object of further public constants (sampler, window, noise multiplier, clipper, bound
            ...) that requests must repeat exactly, and from which labels derive the other units.
    """

    run_id: str
    unit: str
    relation: str
    delta: float
    epsilon: float
    terms: str = "{}"

    def __post_init__(self) -> None:
        """Checks and normalises: equal contracts must have equal text, however their numbers were typed.

        Raises:
            InputError: a value out of range.
        """
        problems = self._problems()
        if problems:
            raise InputError(f"the contract is not valid: {'; '.join(problems)}. Nothing was enrolled.")
        object.__setattr__(self, "relation", Relation.parse(self.relation).value)
        object.__setattr__(self, "delta", float(self.delta))
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "terms", canonical(self.public_terms))

    def _problems(self) -> list[str]:
        problems: list[str] = []
        if not 1 <= len(self.run_id) <= 200:
            problems.append(f"run_id of {len(self.run_id)} characters (1 to 200)")
        if not 0 < self.delta < 1:
            problems.append(f"delta={self.delta!r} (between 0 and 1)")
        if not 0 < self.epsilon < math.inf:
            problems.append(f"epsilon={self.epsilon!r} (above 0)")
        return problems

    @property
    def public_terms(self) -> dict[str, Any]:
        """The terms as a dictionary.

        Raises:
            InputError: the text is not a JSON object.
        """
        try:
            terms = json.loads(self.terms)
        except ValueError:
            terms = None
        if not isinstance(terms, dict):
            raise InputError(
                f"the terms of a contract are a JSON object, not {self.terms[:80]!r}; nothing was enrolled."
            )
        return terms  # pyright: ignore[reportUnknownVariableType]

    def broken_terms(self, terms: Mapping[str, Any] | None) -> str | None:
        """Which public constant of a request is not the contract's, or None."""
        agreed = self.public_terms
        for name, value in (terms or {}).items():
            if name not in agreed or canonical(agreed[name]) != canonical(value):
                return f"{name}={value!r} is not the contract's {agreed.get(name)!r}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The contract with these fields.

        Raises:
            InputError: missing or unknown fields, or invalid values.
        """
        known = {f.name for f in fields(cls)}
        if set(data) != known:
            raise InputError(f"a contract has the fields {sorted(known)}, not {sorted(data)}.")
        return cls(**dict(data))

    def digest(self) -> str:
        """Hex SHA-256 of the canonical text."""
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Contract(Promise):
    """What one run may take from one data set.

    Attributes:
        event: canonical text of the event of one step (`encode_event`), for `unit`; or of the schedule of all steps
            (`ScheduledDpEvent`), where round r has the steps from (r - 1) steps_per_round on.
        steps_total: tokens, private steps in all; >= 1.
        steps_per_round: most steps of one request; 0: no bound but the total.
    """

    event: str
    steps_total: int
    steps_per_round: int = 0

    def __post_init__(self) -> None:
        """Checks and normalises.

        Raises:
            InputError: a value out of range, or an event that is not known.
        """
        super().__post_init__()
        schedule = decode_event(self.event)
        if isinstance(schedule, ScheduledDpEvent) and (
            schedule.steps != self.steps_total or not self.steps_per_round or self.steps_total % self.steps_per_round
        ):
            raise InputError(
                f"the contract is not valid: a schedule of {schedule.steps} steps for steps_total={self.steps_total} "
                f"and steps_per_round={self.steps_per_round} (rounds of one length that fill it). Nothing was enrolled."
            )
        object.__setattr__(self, "event", encode_event(schedule))

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if type(self.steps_total) is not int or not 1 <= self.steps_total < 1 << 53:
            problems.append(f"steps_total={self.steps_total!r} (a whole number >= 1)")
        if type(self.steps_per_round) is not int or self.steps_per_round < 0:
            problems.append(f"steps_per_round={self.steps_per_round!r} (a whole number >= 0)")
        return problems

    def round_parts(self, round: int, steps: int) -> list[tuple[DpEvent, int]]:
        """(event, count) of `steps` steps of round 1, 2, ...: on a schedule, the round's own.

        Raises:
            InputError: a round or a number of steps that the schedule does not have; nothing was charged.
        """
        event = decode_event(self.event)
        if not isinstance(event, ScheduledDpEvent):
            return [(event, steps)]
        if steps > self.steps_per_round:
            raise InputError(
                f"{steps} steps in a round of a schedule with {self.steps_per_round} each; nothing was charged."
            )
        start = (round - 1) * self.steps_per_round
        return event.part(start, start + steps)

    @property
    def tokens(self) -> int:
        """What the contract grants: whole steps."""
        return self.steps_total

    def over_tokens(self, spent: int, round: int, steps: int) -> str | None:
        """Why the contract does not cover `steps` more steps in a round after `spent` of them, or None."""
        if self.steps_per_round and steps > self.steps_per_round:
            return (
                f"{steps} steps in one round are more than the contract's {self.steps_per_round}; nothing was read or "
                "released."
            )
        try:
            self.round_parts(round, steps)
        except InputError as error:
            return f"the request is refused: {error}"
        if spent + steps > self.steps_total:
            return (
                f"{steps} more steps would make {spent + steps} > {self.steps_total} of the contract of run "
                f"{self.run_id!r} (epsilon {self.epsilon:g}, unit: {self.unit}); nothing was read or released."
            )
        return None

    def objection(
        self,
        *,
        event: DpEvent | None = None,
        noise_multiplier: float | None = None,
        sampling_prob: float | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Why one step of a request is not dominated by this contract, or None when it is.

        Args:
            event: the event of one step of the request.
            noise_multiplier: its sigma; at least the contract's.
            sampling_prob: its rate; at most the contract's.
            terms: public constants that must equal those of the contract, name by name.
        """
        own, agreed = decode_event(self.event), self.public_terms
        least = noise_of(own)
        if noise_multiplier is not None and not noise_multiplier >= least:
            return f"noise_multiplier={noise_multiplier:g} is below the contract's {least:g}"
        if sampling_prob is not None:
            most = float(agreed.get("sampling_prob", _rate_of(own)))
            if not 0 <= sampling_prob <= most:
                return f"sampling_prob={sampling_prob:g} is above the contract's {most:g}"
        if (broken := self.broken_terms(terms)) is not None:
            return broken
        if event is not None and not dominates(own, event):
            return "its event is not dominated by the contract's event"
        return None

    def dominates(
        self,
        *,
        event: DpEvent | None = None,
        noise_multiplier: float | None = None,
        sampling_prob: float | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> bool:
        """Whether a request with these parameters costs at most one token per step (see `objection`)."""
        reason = self.objection(
            event=event, noise_multiplier=noise_multiplier, sampling_prob=sampling_prob, terms=terms
        )
        return reason is None


def _rate_of(event: DpEvent) -> float:
    return event.sampling_probability if isinstance(event, dp_event.PoissonSampledDpEvent) else 1.0
