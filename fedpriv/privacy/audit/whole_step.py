"""What the checks of whole steps look at: models with rows made for them, every rule of the registry, one step."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpriv.config import PrivacyConfig
from fedpriv.privacy.audit import probe
from fedpriv.privacy.audit.result import Rows
from fedpriv.privacy.audit.sensitivity import Adversary, NoiseOnly, Silence, adversarial_vectors, pick
from fedpriv.privacy.clippers import CLIPPERS
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import LossFn, layout
from fedpriv.privacy.engines.single import flat_parameters
from fedpriv.privacy.filters import FILTERS
from fedpriv.privacy.iterate_rules import GRADIENT_RULES
from fedpriv.privacy.joint import JointRelease
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import CONTROLLERS, Recipe, StepPoint, make_rules
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, Relation
from fedpriv.seeding import PrivacyRng, stream

BOUND, SIGMA, DENOMINATOR = 0.5, 1.3, 16.0
STEPS, STEP = 40, 37  # the run, and the step looked at: late, where schedules have their least noise
_OPTIONS: Final[Mapping[str, dict[str, Any]]] = {"sparsify": {"final_rate": 0.5, "rise": 0.0}}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model with rows made for it.

    Attributes:
        name: for reports.
        model: as the engines take it.
        loss: of one row.
        rows: at least six ordinary made-up rows.
        adversaries: rows made to be awkward.
        sizes: of the batches that each joins; None: three of 0 to 5, all of them in turn.
        of_norm: where gradients can be chosen, a row whose gradient has this norm: some adversary must then reach the
            bound, and one stays just below it, where a threshold on norms counts the other way.
    """

    name: str
    model: nn.Module
    loss: LossFn
    rows: Rows
    adversaries: Mapping[str, Adversary]
    sizes: Sequence[int] | None = None
    of_norm: Callable[[float], Rows] | None = None


class Ones(NoiseOnly):
    """Noise that is all ones: shows the standard deviation of every released number."""

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] ones."""
        return np.ones(size)


def chosen_gradients() -> Subject:
    """A model whose per-row gradient is the window itself, so that an adversary may choose it outright."""
    with torch.random.fork_rng(devices=[]):  # initial values from a seed, the global generator left alone
        torch.manual_seed(0)
        model = probe.VectorProbe()
    rows = probe.made_up(6, torch.Generator().manual_seed(1))
    last = pick(rows, slice(5, 6))

    def of_norm(norm: float) -> Rows:
        values = torch.ones_like(last[0].values)
        return replace(last[0], values=values * (norm / float(values.norm()))), last[1]

    adversaries = adversarial_vectors(last)
    return Subject("chosen gradients", model, probe.vector_loss, rows, adversaries, of_norm=of_norm)


def every_rule() -> dict[str, Settings]:
    """Name -> privacy settings: each entry of each registry, and combinations whose parts share the noise."""
    cases: dict[str, Settings] = {name: {"clipper": name} for name in CLIPPERS}
    flat = {"clipper": "flat"}
    for name in CONTROLLERS:
        cases[name] = {**flat, "controller": name}
    for name in GRADIENT_RULES:
        cases[name] = {**flat, "gradient_rule": name, "gradient_rule_options": _OPTIONS.get(name, {})}
    for name in FILTERS:
        cases[name] = {**flat, "filter": name}
    cases["group-wise psasc"] = {"clipper": "psasc", "gradient_rule": "group-wise"}
    cases["dynamic auto-s"] = {"clipper": "auto-s", "controller": "dynamic"}
    cases["quantile bam ema"] = {**flat, "controller": "quantile", "gradient_rule": "bam", "filter": "ema"}
    cases["dc-sgd-e error-feedback"] = {**flat, "controller": "dc-sgd-e", "gradient_rule": "error-feedback"}
    return cases


def make_recipe(settings: Settings, *, sigma: float = SIGMA) -> Recipe:
    """The recipe of some settings on a sampled mechanism."""
    rules = make_rules(PrivacyConfig.model_validate({"bound": BOUND, **settings}), steps_total=STEPS)
    mechanism = Mechanism(
        sampler=RandomPhaseTiling(4, 0.1),
        clipper=rules.clipper,
        noise_multiplier=sigma,
        unit=READING,
        relation=Relation.ZERO_OUT,
    )
    return Recipe(mechanism=mechanism, rules=rules)


class WholeStep:
    """A recipe on a subject, in the middle of a run: its public state was made by steps of the recipe itself."""

    def __init__(self, recipe: Recipe, subject: Subject, *, step: int = STEP, engine: Any = None) -> None:
        self.recipe, self.subject = recipe, subject
        self.engine: Any = engine or make_engine(recipe.rules.engine_name("auto"), subject.model, subject.loss)
        self.layout, self.params = layout(subject.model), flat_parameters(subject.model)
        state, noise = recipe.initial_state(self.params.numel()), stream(1, "audit", "state")
        for early in range(2):
            point = self._at(early, state)
            state = recipe.after(
                point, recipe.release(point, self.engine, *pick(subject.rows, (0, 1)), rng=noise)
            ).state
        self.point: StepPoint = self._at(step, state)

    def _at(self, step: int, state: Tensor | None) -> StepPoint:
        return self.recipe.at(params=self.params, state=state, step=step, denominator=DENOMINATOR, layout=self.layout)

    def release(self, rows: Rows, rng: PrivacyRng) -> JointRelease:
        """What leaves."""
        return self.recipe.release(self.point, self.engine, *rows, rng=rng)

    def values(self, rows: Rows, rng: PrivacyRng) -> Tensor:
        """[P + S] float64: the noisy sum of gradients and every answer."""
        released = self.release(rows, rng)
        return torch.cat([released.grad.to(torch.float64) * DENOMINATOR, *(a.flatten() for a in released.answers)])

    def nothing(self) -> Rows:
        """A batch without rows."""
        return pick(self.subject.rows, slice(0, 0))

    def scale(self) -> Tensor:
        """[P + S] standard deviation of every released number, as measured."""
        return self.values(self.nothing(), Ones()) - self.values(self.nothing(), Silence())

    def blocks(self) -> Iterator[tuple[str, slice]]:
        """Names and places of the parameters and the answers in `values`."""
        at = self.layout
        for name, start, shape in zip(at.names, at.starts, at.shapes, strict=True):
            yield name, slice(start, start + shape.numel())
        begin = at.size
        for i, answer in enumerate(self.release(self.nothing(), Silence()).answers):
            yield f"answer {i}", slice(begin, begin + answer.numel())
            begin += answer.numel()
