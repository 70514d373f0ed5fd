"""From a sweep to its runs: every combination spelled out, checked and given its name before anything is trained.

Runs that must give the same result have the same scenario digest, and the digest is the name of the run's folder: an
identical combination (all epsilons of an arm without privacy, say) is run once and stands in the tables as often as it
was asked for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpriv.config import Scenario
from fedpriv.data.clients import roster
from fedpriv.errors import InputError
from simulations.sweep.coalitions import members
from simulations.sweep.resolver import Resolver, canonical
from simulations.sweep.sections import Arm
from simulations.sweep.spec import Spec

Label = str | float
_SHOWN = 3  # errors of a grid that are told


@dataclass(frozen=True)
class Combination:
    """One point of the grid before it is resolved: an arm, a label on every axis, and who takes part if not all do."""

    arm: str
    axes: Mapping[str, Label]
    client: str
    scenario: Scenario = field(repr=False)

    def words(self) -> str:
        """`arm alone, privacy.clipper=flat`, for messages."""
        parts = [f"arm {self.arm}"] if self.arm else []
        parts += [f"client {self.client}"] if self.client else []
        return ", ".join([*parts, *(f"{key}={value}" for key, value in self.axes.items())]) or "the only point"


@dataclass(frozen=True)
class Planned:
    """One line of the plan.

    Attributes:
        number: place in the tables, from 0.
        run: name of its folder; equal for identical runs.
        digest: of the scenario.
        arm, seed, axes, client: what it stands for.
        scenario: resolved and complete, but for the folder.
        tuned: settings that tuning chose, dotted; empty without tuning.
    """

    number: int
    run: str
    digest: str
    arm: str
    seed: int
    axes: Mapping[str, Label]
    client: str
    scenario: Scenario = field(repr=False)
    tuned: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def cost(self) -> float:
        """Work in units of one client's step, evaluation left out; for the time left."""
        s = self.scenario
        clients = s.federation.clients_per_round or len(roster(s).names)
        return float(s.federation.rounds * max(s.federation.local_steps, 1) * clients)


Tuned = Callable[[Combination], Mapping[str, Any]]
Told = Callable[[int, int], None]


def combinations(spec: Spec) -> list[Combination]:
    """Every arm with every point of the grid (or a random part of them), seeds left out.

    Raises:
        InputError: a value out of range, or parts of the clients where these are not series of the source.
    """
    base, axes = spec.scenario(), spec.axes
    arms: Sequence[Arm] = spec.arms or (Arm(name="all"),)
    every = [(arm, points) for arm in arms for points in itertools.product(*(axis.values for axis in axes))]
    if spec.sweep.sample and spec.sweep.sample < len(every):
        chosen = random.Random(spec.sweep.sample_seed).sample(range(len(every)), spec.sweep.sample)
        every = [every[i] for i in sorted(chosen)]
    found: list[Combination] = []
    for arm, points in every:
        labels = {axis.key: point.label for axis, point in zip(axes, points, strict=True)}
        changes = {**{k: v for point in points for k, v in point.set.items()}, **arm.set}
        named = Combination(arm.name if spec.arms else "", labels, "", base)
        with _telling(named):
            scenario = canonical(base.override(changes))
            found += [
                Combination(named.arm, labels, who, part)
                for who, part in members(arm, scenario, spec.sweep.sample_seed)
            ]
    return found


def plan(
    spec: Spec, *, tuned: Tuned | None = None, told: Told | None = None, resolver: Resolver | None = None
) -> list[Planned]:
    """All runs of a sweep, resolved and checked as far as that goes without training.

    Args:
        spec: the sweep.
        tuned: settings that tuning found for a combination.
        told: called with (combinations checked, of how many).
        resolver: remembers what was resolved and checked before.

    Raises:
        InputError: some combinations are not valid; the first few are told with what they are.
    """
    found: list[Planned] = []
    problems: list[str] = []
    points = combinations(spec)
    resolver = resolver or Resolver()
    for index, point in enumerate(points):
        chosen = dict(tuned(point)) if tuned else {}
        try:
            ready = resolver(point.scenario, chosen)
        except InputError as error:
            problems.append(f"{point.words()}: {error}")
            continue
        for seed in spec.sweep.seeds:
            scenario = ready.override({"run.seed": seed, "run.name": spec.sweep.name, "run.engine": "inline"})
            digest = scenario.digest()
            found.append(
                Planned(
                    number=len(found),
                    run=digest[:12],
                    digest=digest,
                    arm=point.arm,
                    seed=seed,
                    axes=point.axes,
                    client=point.client,
                    scenario=scenario,
                    tuned=chosen,
                )
            )
        if told is not None:
            told(index + 1, len(points))
    if problems:
        more = f" And {len(problems) - _SHOWN} more." if len(problems) > _SHOWN else ""
        raise InputError(
            f"{len(problems)} of {len(points)} combinations of the sweep cannot be run. "
            + " ".join(problems[:_SHOWN])
            + more
        )
    return found


class _telling:
    """Puts the words of a combination before an input error."""

    def __init__(self, point: Combination) -> None:
        self._point = point

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise InputError(f"{self._point.words()}: {error}") from None


def distinct(points: Sequence[Planned]) -> list[Planned]:
    """One of each run, in the order in which they should be run: seed by seed, so that early results are balanced."""
    first: dict[str, Planned] = {}
    for point in points:
        first.setdefault(point.run, point)
    order = {seed: i for i, seed in enumerate(dict.fromkeys(point.seed for point in points))}
    return sorted(first.values(), key=lambda point: (order[point.seed], point.number))


def by_axis(points: Sequence[Planned]) -> Iterator[tuple[str, list[Label]]]:
    """(key, labels) of every axis, in the order of the file."""
    keys = dict.fromkeys(key for point in points for key in point.axes)
    for key in keys:
        yield key, list(dict.fromkeys(point.axes[key] for point in points if key in point.axes))
