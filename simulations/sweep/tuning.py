"""Learning rates (and named options) chosen per rule on public data, with the same number of trials for every rule.

The trials are the sweep's own job on other data: its task, model, rounds and budget, with the sections `data` and
`partition` of the tuning scenario, which is synthetic or public. What carries over is the *factor* on the public rule
for the learning rate, in units of the bound: that rule knows noise, batch and clients of either data. A trial is scored
by the validation part of the tuning data after its last round. The clients of the sweep are never read, so tuning
costs no privacy; `private_cost` says what the same trials would have cost on their data.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpriv.config import Scenario
from fedpriv.data.clients import roster
from fedpriv.errors import InputError
from fedpriv.mechanisms import make_mechanism
from fedpriv.privacy.accounting import epsilon_of
from fedpriv.privacy.recipe import event_of, make_rules
from fedpriv.releases import whole_event
from fedpriv.reports.atomic import read_json
from fedpriv.reports.folder import RunFolder
from simulations import scenarios
from simulations.launch import prepare
from simulations.sweep.axes import ENABLED, EPSILON
from simulations.sweep.grid import Combination, Label, Planned, combinations
from simulations.sweep.resolver import FACTOR, Resolver
from simulations.sweep.sections import Tuning
from simulations.sweep.spec import Spec

_CARRIED = ("privacy.", "optimizer.", "strategy.", "model.", "diffusion.")  # what of a rule's settings tuning takes


@dataclass(frozen=True)
class Rule:
    """What is tuned for itself: an arm, the labels of the axes in `tuning.by`, with privacy or without."""

    arm: str
    labels: tuple[tuple[str, Label], ...]
    private: bool

    @classmethod
    def of(cls, point: Combination, tuning: Tuning) -> Rule:
        """The rule that a combination belongs to."""
        labels = tuple((key, point.axes[key]) for key in tuning.by if key in point.axes)
        return cls(point.arm, labels, point.scenario.privacy.enabled)


@dataclass(frozen=True)
class Trial:
    """One candidate of a rule: settings, and its runs (one for each tuning seed)."""

    rule: Rule
    settings: Mapping[str, Any]
    runs: tuple[Planned, ...] = field(repr=False)


def trials(spec: Spec, resolver: Resolver | None = None) -> list[Trial]:
    """Every trial of every rule, the same number for each; empty when the sweep does not tune.

    Raises:
        InputError: the tuning data are those of the sweep, or a candidate is not valid.
    """
    tuning = spec.tuning
    if tuning is None:
        return []
    base, resolver = tuning_base(spec), resolver or Resolver()
    changes = _changes(spec, tuning)
    options = {rule: _options(rule, tuning) for rule in changes}
    budget = tuning.trials or max(len(tuning.factors) * len(every) for every in options.values())
    found: list[Trial] = []
    number = 0
    for rule, settings in changes.items():
        for candidate in candidates(tuning.factors, options[rule], budget):
            ready = resolver(base.override({**settings, **tuning.set}), candidate)
            runs: list[Planned] = []
            for seed in tuning.seeds:
                named = {"run.seed": seed, "run.name": f"{spec.sweep.name}-tuning"[:64], "run.engine": "inline"}
                one = ready.override(named)
                digest = one.digest()
                axes = dict(rule.labels)
                runs.append(Planned(number, digest[:12], digest, rule.arm, seed, axes, "", one, candidate))
                number += 1
            found.append(Trial(rule, candidate, tuple(runs)))
    return found


def tuning_base(spec: Spec) -> Scenario:
    """The sweep's job on the tuning data.

    Raises:
        InputError: they are the data of the sweep.
    """
    assert spec.tuning is not None
    rate = "optimizer.learning_rate"
    varied = {key for axis in spec.axes for point in axis.values for key in point.set}
    if spec.scenario().optimizer.learning_rate is not None or rate in varied or any(rate in a.set for a in spec.arms):
        raise InputError(f"{rate} is stated and [tuning] would choose it; leave one of them out. Nothing was started.")
    own, public = spec.scenario(), scenarios.load(spec.tuning.scenario)
    nested = own.nested() | {"data": public.nested()["data"], "partition": public.nested()["partition"]}
    nested["data"]["dir"] = own.data.dir
    base = Scenario().override(nested).override({"optimizer.learning_rate": None})
    tuned = base.override({k: v for k, v in spec.tuning.set.items() if k.startswith(("data.", "partition."))})
    if own.data.source == "synthetic" == tuned.data.source:
        same = own.data.seed == tuned.data.seed
    else:
        same = own.data.source == tuned.data.source and bool(_series(own) & _series(tuned))
    if same:
        raise InputError(
            f"tuning would use the data of the sweep itself (source {own.data.source}): that costs privacy and spoils "
            "the test. Name another scenario, or another data.seed in [tuning] set. Nothing was started."
        )
    return base


def _series(scenario: Scenario) -> set[str]:
    """The series that a scenario may read; the whole source where only a division says so."""
    natural = scenario.partition.kind == "natural" and not scenario.partition.by
    names = scenario.data.clients or (roster(scenario).names if natural else ())
    return set(names) or {"*"}


def _changes(spec: Spec, tuning: Tuning) -> dict[Rule, dict[str, Any]]:
    """Rule -> its settings, in the order of the grid."""
    arms = {arm.name: arm.set for arm in spec.arms}
    points = {axis.key: {point.label: point.set for point in axis.values} for axis in spec.axes}
    epsilon = _middle([label for label in points.get(EPSILON, {}) if isinstance(label, float) and math.isfinite(label)])
    found: dict[Rule, dict[str, Any]] = {}
    for point in combinations(spec):
        rule = Rule.of(point, tuning)
        if rule in found:
            continue
        settings = {k: v for key, label in rule.labels for k, v in points[key][label].items()}
        settings |= {k: v for k, v in arms.get(rule.arm, {}).items() if k.startswith(_CARRIED)}
        if epsilon is not None and EPSILON not in dict(rule.labels):
            settings[EPSILON] = epsilon
        found[rule] = settings | {ENABLED: rule.private}
    return found


def _middle(labels: Sequence[float]) -> float | None:
    return sorted(labels)[len(labels) // 2] if labels else None


def _options(rule: Rule, tuning: Tuning) -> list[dict[str, Any]]:
    for _, label in rule.labels:
        if str(label) in tuning.options:
            return tuning.options[str(label)]
    return tuning.options.get(rule.arm, [{}])


def candidates(
    factors: Sequence[float], options: Sequence[Mapping[str, Any]], budget: int, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Exactly `budget` settings: factors x options, thinned at random or filled with factors in between.

    Args:
        factors: of the learning rate.
        options: settings to try with each factor.
        budget: how many.
        seed: of the thinning.
    """
    factors = sorted(factors)
    every = [{**option, FACTOR: factor} for option in options for factor in factors]
    if len(every) > budget:
        keep = sorted(random.Random(seed).sample(range(len(every)), budget))
        return [every[i] for i in keep]
    while len(every) < budget:
        # geometric means of neighbours, then beyond both ends
        between = [math.sqrt(a * b) for a, b in itertools.pairwise(factors)]
        more = between or [factors[0] / 2, factors[-1] * 2]
        every += [{**options[0], FACTOR: factor} for factor in more][: budget - len(every)]
        factors = sorted([*factors, *more])
    return every


@dataclass(frozen=True)
class Tuned:
    """What tuning found: settings for every rule, and the record of it (tuning.json)."""

    chosen: Mapping[Rule, Mapping[str, Any]]
    record: Mapping[str, Any]
    tuning: Tuning

    def __call__(self, point: Combination) -> Mapping[str, Any]:
        """The settings of a combination's rule."""
        return self.chosen[Rule.of(point, self.tuning)]


def stored(spec: Spec, every: Sequence[Trial], path: Path) -> Tuned | None:
    """What an earlier session chose from these very trials; None if it did not come to that."""
    tuning, found = spec.tuning, read_json(path)
    listed = found.get("rules")
    if tuning is None or not isinstance(listed, list):
        return None
    chosen: dict[Rule, Mapping[str, Any]] = {}
    rules = dict.fromkeys(trial.rule for trial in every)
    for rule, entry in zip(rules, listed, strict=False):
        mine = [[dict(t.settings), [run.run for run in t.runs]] for t in every if t.rule == rule]
        known = [[t["settings"], t["runs"]] for t in entry["trials"] if t["score"] is not None]
        if mine != known:  # other trials, or one that failed and is tried again
            return None
        chosen[rule] = entry["chosen"]
    if len(listed) != len(rules) or (found.get("metric"), found.get("scenario")) != (tuning.metric, tuning.scenario):
        return None
    return Tuned(chosen, found, tuning)


def choose(spec: Spec, every: Sequence[Trial], folder: Path) -> Tuned:
    """The best trial of every rule; of equal ones the first.

    Args:
        spec: the sweep.
        every: its trials, run.
        folder: where their run folders are.

    Raises:
        InputError: no trial of a rule came to an end.
    """
    tuning = spec.tuning
    assert tuning is not None
    chosen: dict[Rule, Mapping[str, Any]] = {}
    rules: list[dict[str, Any]] = []
    for rule in dict.fromkeys(trial.rule for trial in every):
        mine = [trial for trial in every if trial.rule == rule]
        scores = [_mean([score(folder / run.run, tuning.metric) for run in trial.runs]) for trial in mine]
        best = min(range(len(mine)), key=lambda i: scores[i])
        if not math.isfinite(scores[best]):
            raise InputError(
                f"no tuning trial of {dict(rule.labels) or rule.arm} came to an end; see {folder}. No run of the sweep "
                "itself was started."
            )
        chosen[rule] = mine[best].settings
        factors = sorted(trial.settings[FACTOR] for trial in mine)
        rules.append(
            {
                "arm": rule.arm,
                "axes": dict(rule.labels),
                "private": rule.private,
                "chosen": dict(mine[best].settings),
                "at_edge": len(factors) > 1 and mine[best].settings[FACTOR] in (factors[0], factors[-1]),
                "trials": [
                    {"settings": dict(t.settings), "score": s, "runs": [run.run for run in t.runs]}
                    for t, s in zip(mine, scores, strict=True)
                ],
            }
        )
    first = every[0].runs[0].scenario
    record = {
        "format": 1,
        "scenario": tuning.scenario,
        "source": first.data.source,
        "part": "validation",
        "metric": tuning.metric,
        "epsilon": first.privacy.epsilon,
        "trials_per_rule": len(every) // len(rules),
        "seeds": list(tuning.seeds),
        "rules": rules,
        "private_cost": private_cost(spec, every),
    }
    return Tuned(chosen, record, tuning)


def score(folder: Path, metric: str) -> float:
    """Mean over clients of the validation score after the last round; infinite where there is none."""
    try:
        rows = RunFolder.open(folder).rounds()
    except InputError:
        return math.inf
    if not len(rows):
        return math.inf
    kept = rows[(rows["split"] == "validation") & (rows["model"] == "federated") & (rows["metric"] == metric)]
    if not len(kept):
        return math.inf
    value = _mean([float(str(v)) for v in kept[kept["round"] == kept["round"].max()]["value"].tolist()])
    return value if math.isfinite(value) else math.inf


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def private_cost(spec: Spec, every: Sequence[Trial]) -> dict[str, Any]:
    """What the trials would have cost the clients of the sweep, had they been run on their data; public numbers alone.

    The trials of a rule are composed with each other (one rule), and those of all rules (all rules). Choosing by the
    clients' own validation scores would cost more on top; that is not counted.
    """
    runs: dict[Rule, int] = {}
    for trial in every:
        runs[trial.rule] = runs.get(trial.rule, 0) + len(trial.runs)
    private = {rule: count for rule, count in runs.items() if rule.private}
    if not private:
        return {}
    assert spec.tuning is not None
    changes = _changes(spec, spec.tuning)
    events = []
    for rule, count in private.items():
        scenario = prepare(spec.scenario().override(changes[rule]), {"run.out": "unused"})
        privacy = scenario.privacy
        if privacy.noise_multiplier is None:
            continue
        rules = make_rules(privacy, steps_total=scenario.steps_total)
        mechanism = make_mechanism(scenario, privacy.noise_multiplier)
        events.append((whole_event(scenario, event_of(mechanism, rules)), count, scenario))
    if not events:
        return {}
    first = events[0][2].privacy
    one = [epsilon_of([(event, count)], first.delta, first.relation) for event, count, _ in events]
    total = epsilon_of([(event, count) for event, count, _ in events], first.delta, first.relation)
    return {
        "unit": first.unit,
        "delta": first.delta,
        "epsilon_of_a_run": first.epsilon,
        "epsilon_one_rule": max(one),
        "epsilon_all_rules": total,
        "note": "had the trials been trained on the clients' own data; choosing by their scores not counted",
    }
