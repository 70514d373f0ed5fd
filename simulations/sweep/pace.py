"""How long the parts of a run take, and so how long another one of the same kind will take.

A run is start-up, validation scores, rounds of steps, and what follows the last round. Each is timed as the run goes;
rounds and steps are multiplied up. Two runs are of one *kind* when nothing that decides the time of those parts differs
between them: data, division, task, model, what is scored, and the kind of mechanism; not seeds, epsilons, clipping
rules, learning rates or the number of rounds.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedpriv.config import Scenario
from fedpriv.provenance import source_digest
from fedpriv.releases import evaluated_rounds
from strategies.progress import Progress

_SECTIONS = ("data", "partition", "task", "model", "diffusion", "personal")
_PRIVACY = (
    "enabled",
    "unit",
    "sampling_prob",
    "engine",
    "gradient_rule",
    "gradient_rule_options",
    "controller",
    "filter",
    "filter_options",
)
_LEFT_OUT = {"evaluation": ("every",), "data": ("dir",)}


@dataclass(frozen=True)
class Pace:
    """Seconds of the parts of a run on one worker.

    Attributes:
        start: until the first round, scores left out.
        step: one local step of all clients of a round.
        evaluation: one pass of validation scores.
        end: after the last round: final scores, label, example forecasts.
        busy: share of these seconds in which the worker had a core; below 1 where others wanted it too.
    """

    start: float
    step: float
    evaluation: float
    end: float
    busy: float = 1.0

    def seconds(self, scenario: Scenario) -> float:
        """What a run takes."""
        return self.start + steps(scenario) * self.step + len(evaluated_rounds(scenario)) * self.evaluation + self.end

    @classmethod
    def least(cls, found: list[Self]) -> Self:
        """Part by part, of trials: what came on top was warming up, or others' work."""
        parts = {k: min(getattr(one, k) for one in found) for k in cls.__dataclass_fields__}
        return cls(**parts | {"busy": max(one.busy for one in found)})

    @classmethod
    def mean(cls, found: list[Self]) -> Self:
        """Part by part."""
        return cls(*(sum(getattr(one, k) for one in found) / len(found) for k in cls.__dataclass_fields__))


def steps(scenario: Scenario) -> int:
    """Local steps of a run, one after the other."""
    return scenario.rounds * max(scenario.federation.local_steps, 1)


def kind(scenario: Scenario) -> str:
    """Hex digest of all that decides the pace, with the code and the machine."""
    parts: dict[str, Any] = {name: getattr(scenario, name).model_dump(mode="json") for name in _SECTIONS}
    parts["evaluation"] = scenario.evaluation.model_dump(mode="json")
    for section, names in _LEFT_OUT.items():
        parts[section] = {k: v for k, v in parts[section].items() if k not in names}
    privacy = scenario.privacy.model_dump(mode="json")
    parts["privacy"] = {k: privacy[k] for k in _PRIVACY}
    parts["federation"] = scenario.federation.clients_per_round
    parts["run"] = [scenario.run.device, scenario.run.num_gpus]
    parts["here"] = [source_digest(), platform.node()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Stopwatch:
    """Times the parts of a run from what it tells its listener.

    Scores after a round are told before the round is, so the time until they are told holds that round's steps as well.
    """

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._used = time.process_time()
        self._start: list[float] = []
        self._first_scores: list[float] = []  # before the first round of this process
        self._rounds: list[float] = []
        self._scored_rounds: list[float] = []  # with their scores
        self._end: list[float] = []
        self._scored = -1

    def __call__(self, progress: Progress) -> None:
        """One event of the run."""
        match progress.stage:
            case "waiting":
                self._start.append(self._lap())
            case "round":
                lap = self._lap()
                if progress.round != self._scored:
                    self._rounds.append(lap)
            case "evaluation":
                if any(row.get("split") == "test" for row in progress.rows):
                    self._end.append(self._lap())
                    return
                (self._scored_rounds if progress.round else self._first_scores).append(self._lap())
                self._scored = progress.round
            case _:
                self._end.append(self._lap())

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._last = now - self._last, now
        return lap

    def pace(self, scenario: Scenario) -> Pace | None:
        """Once the run is written up; None if it told too little (it was through before)."""
        self._end.append(self._lap())
        first, scored = (_mean(laps) for laps in (self._first_scores, self._scored_rounds))
        # the first round warms up
        each = _mean(self._rounds[1:] or self._rounds) if self._rounds else max(scored - first, 0.0)
        if not self._start or (scenario.rounds and not self._rounds and not self._scored_rounds):
            return None
        here = scenario.run.device == "cpu"  # a worker that waits for a GPU is not idle
        busy = (time.process_time() - self._used) / max(self._last - self._began, 1e-9) if here else 1.0
        return Pace(
            start=sum(self._start),
            step=each / max(scenario.federation.local_steps, 1),
            evaluation=max(scored - each, 0.0) if self._scored_rounds else first,
            end=sum(self._end),
            busy=min(busy, 1.0),
        )


def _mean(laps: list[float]) -> float:
    return sum(laps) / len(laps) if laps else 0.0


def read_pace(found: Mapping[str, Any]) -> Pace | None:
    """From JSON; None if it is not one."""
    try:
        return Pace(**{k: float(found[k]) for k in Pace.__dataclass_fields__})
    except (KeyError, TypeError, ValueError):
        return None
