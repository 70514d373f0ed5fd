"""The whole private step: clipper, controller, gradient rule, noise, filter, and the one event that they cost.

A `Recipe` is what training runs, what contracts commit to and what labels describe, built from the same settings, so
the three cannot drift apart. Its noise multiplier is the TOTAL one: whatever a step asks of its rows besides the
gradient shares it (`fedpriv.privacy.joint`).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dp_accounting import DpEvent
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Rule
from fedpriv.privacy.controllers import StepFacts
from fedpriv.privacy.engines.base import Layout
from fedpriv.privacy.events import ScheduledDpEvent
from fedpriv.privacy.gradient_rules import Asked, Batch
from fedpriv.privacy.joint import JointRelease, Query, release_jointly
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.rule_state import StateLayout
from fedpriv.privacy.rules import CONTROLLERS, Rules, make_rules
from fedpriv.seeding import PrivacyRng

__all__ = ["CONTROLLERS", "Recipe", "Rules", "StepDone", "StepPoint", "event_of", "make_rules"]


@dataclass(frozen=True)
class StepPoint:
    """Public facts of one step: `Recipe.at`.

    Attributes:
        params: [P].
        state: of the rules, flat; None if they keep none.
        parts: the same by part and name.
        clipper: the rule of norms in force.
        facts: numbers of the step.
        names: of the trained parameters.
    """

    params: Tensor
    state: Tensor | None
    parts: Mapping[str, Mapping[str, Tensor]]
    clipper: Rule
    facts: StepFacts
    names: tuple[str, ...]


@dataclass(frozen=True)
class StepDone:
    """Private by the step's event; anything may read it.

    Attributes:
        grad: [P] float32, filtered.
        state: the rules' next state, or None if they keep none.
        bound: sensitivity of the gradient in force at this step: public.
    """

    grad: Tensor
    state: Tensor | None
    bound: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Rules with their mechanism; `mechanism.clipper` is the rules' clipper, its sigma the total at the start."""

    mechanism: Mechanism
    rules: Rules
    _layouts: dict[int, StateLayout | None] = field(
        default_factory=dict[int, StateLayout | None], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for sigma, _ in self.rules.controller.noise(self.mechanism.noise_multiplier):
            self.rules.sigma_gradient(sigma)  # refuses noise that leaves nothing for the gradient

    # ---- what it costs ------------------------------------------------------------------------

    def event(self) -> DpEvent:
        """For a contract of `steps_total` tokens: the event of a step, or the schedule of all steps."""
        return event_of(self.mechanism, self.rules)

    @property
    def scheduled(self) -> bool:
        """Whether steps differ in their event, so that a round's tokens are its own."""
        return len(self.rules.controller.noise(self.mechanism.noise_multiplier)) > 1

    def sigma_at(self, step: int) -> float:
        """Total noise multiplier of a step.

        Raises:
            InputError: a step past the end of the run.
        """
        left = step
        for sigma, count in self.rules.controller.noise(self.mechanism.noise_multiplier):
            if left < count:
                return sigma
            left -= count
        if not self.scheduled:
            return self.mechanism.noise_multiplier
        raise InputError(f"step {step} is past the {self.rules.steps_total} steps of the schedule; nothing was read.")

    # ---- state --------------------------------------------------------------------------------

    def start(self, num_parameters: int) -> dict[str, dict[str, Tensor]]:
        """The state before the first step: part -> name -> numbers; parts without state are left out."""
        rules = self.rules
        parts = {
            "controller": rules.controller.start(rules.clipper.l2_clip_norm),
            "rule": rules.rule.start(num_parameters),
            "filter": rules.filter.start(num_parameters) if rules.filter else {},
        }
        return {name: state for name, state in parts.items() if state}

    def state_layout(self, num_parameters: int) -> StateLayout | None:
        """Where the numbers of the state sit; None when no rule keeps state."""
        if num_parameters not in self._layouts:
            parts = self.start(num_parameters)
            self._layouts[num_parameters] = StateLayout.of(parts) if parts else None
        return self._layouts[num_parameters]

    def initial_state(self, num_parameters: int) -> Tensor | None:
        """The same as one vector; None when no rule keeps state."""
        parts = self.start(num_parameters)
        return StateLayout.of(parts).join(parts) if parts else None

    # ---- one step -----------------------------------------------------------------------------

    def ask(self, batch: Batch, controller_state: Mapping[str, Tensor]) -> Asked:
        """Everything that is computed of the private rows of a step, the controller's statistic first. Sensitive."""
        asked = self.rules.rule.ask(batch)
        noise = self.rules.controller.statistic_noise(batch.facts.sigma)
        if noise is None:
            return asked
        assert asked.clipped.norms is not None
        total = self.rules.controller.statistic(asked.clipped.norms, batch.clipper, controller_state)
        return replace(asked, extra=(Query(total, *noise), *asked.extra))

    def at(self, *, params: Tensor, state: Tensor | None, step: int, denominator: float, layout: Layout) -> StepPoint:
        """The public facts of one step, before any row is looked at.

        Args:
            params: [P] current parameters.
            state: of the rules, as sent; None if they keep none.
            step: 0, 1, ... over the whole run.
            denominator: public divisor of the sums.
            layout: of the trained parameters.

        Raises:
            InputError: a state of another length, or a step past the schedule; nothing was read.
        """
        parts = self._parts(params.numel(), state)
        sigma = self.sigma_at(step)
        clipper = self.rules.controller.clipper(self.rules.clipper.at(step), parts.get("controller", {}), step)
        facts = StepFacts(
            step=step,
            denominator=denominator,
            sizes=tuple(shape.numel() for shape in layout.shapes),
            sigma=sigma,
            sigma_gradient=self.rules.sigma_gradient(sigma),
        )
        return StepPoint(params, state, parts, clipper, facts, layout.names)

    def release(
        self, point: StepPoint, engine: Any, examples: Examples, draws: Draws, *, rng: PrivacyRng
    ) -> JointRelease:
        """Everything of a step that looks at private rows, with its noise: all else is a function of the result.

        Args:
            point: where the step stands.
            engine: made for `rules.engine_name`, its model at the point's parameters.
            examples, draws: the private rows; there may be none, and noise is due even then.
            rng: source of the noise.

        Raises:
            CheckFailed: a sum is not finite; nothing was released.
        """
        batch = Batch(
            engine=engine,
            examples=examples,
            draws=draws,
            params=point.params,
            clipper=point.clipper,
            state=point.parts.get("rule", {}),
            facts=point.facts,
            names=point.names,
        )
        asked = self.ask(batch, point.parts.get("controller", {}))
        mechanism = self.mechanism
        if point.clipper is not mechanism.clipper or point.facts.sigma != mechanism.noise_multiplier:
            mechanism = replace(mechanism, clipper=point.clipper, noise_multiplier=point.facts.sigma)
        return release_jointly(mechanism, asked.clipped, asked.extra, denominator=point.facts.denominator, rng=rng)

    def after(self, point: StepPoint, released: JointRelease) -> StepDone:
        """Post-processing of what a step released: the next state of the rules, and the gradient that is applied."""
        rules, parts, clipper, facts = self.rules, point.parts, point.clipper, point.facts
        mine = parts.get("controller", {})
        after: dict[str, Mapping[str, Tensor]] = {}
        if rules.controller.statistic_noise(facts.sigma) is not None:
            after["controller"] = rules.controller.update(released.answers[0], clipper, mine, facts)
        grad, after["rule"] = rules.rule.after(
            released.grad, released.answers, point.params, clipper, parts.get("rule", {}), facts
        )
        if rules.filter is not None:
            grad, after["filter"] = rules.filter.apply(grad, parts.get("filter", {}), facts.sizes)
        layout_of_state = self.state_layout(point.params.numel())
        if point.state is None or layout_of_state is None:
            return StepDone(grad, None, clipper.bound)
        return StepDone(grad, layout_of_state.join(after, point.state.device), clipper.bound)

    def run(
        self,
        engine: Any,
        examples: Examples,
        draws: Draws,
        *,
        params: Tensor,
        state: Tensor | None,
        step: int,
        denominator: float,
        layout: Layout,
        rng: PrivacyRng,
    ) -> StepDone:
        """One private step: `at`, `release`, `after`.

        Raises:
            InputError: a state of another length, or a step past the schedule; nothing was read.
        """
        point = self.at(params=params, state=state, step=step, denominator=denominator, layout=layout)
        return self.after(point, self.release(point, engine, examples, draws, rng=rng))

    def _parts(self, num_parameters: int, state: Tensor | None) -> dict[str, dict[str, Tensor]]:
        layout = self.state_layout(num_parameters)
        if (state is None) != (layout is None):
            have = "none came" if state is None else "one came"
            raise InputError(f"the rules keep {'no' if layout is None else 'a'} state and {have}; nothing was trained.")
        return {} if state is None or layout is None else layout.split(state)


def event_of(mechanism: Mechanism, rules: Rules) -> DpEvent:
    """`Recipe.event` before it is known whether the noise leaves something for the gradient: for calibration."""
    stages = rules.controller.noise(mechanism.noise_multiplier)
    events = [replace(mechanism, noise_multiplier=sigma).step_event() for sigma, _ in stages]
    return events[0] if len(events) == 1 else ScheduledDpEvent(events, [count for _, count in stages])
