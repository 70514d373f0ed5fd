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
from typing import Any, Final

from dp_accounting import DpEvent
from torch import Tensor

from fedpriv.config import PrivacyConfig, RuleChoice
from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Rule, make_clipper
from fedpriv.privacy.controllers import Controller, GlobalAdaptController, QuantileController, StepFacts
from fedpriv.privacy.engines.base import Layout
from fedpriv.privacy.events import ScheduledDpEvent
from fedpriv.privacy.filters import FILTERS, Filter, LaplacianFilter
from fedpriv.privacy.gradient_rules import ROW_ENGINES, Asked, Batch, GradientRule, GroupWiseRule, SparsifyRule
from fedpriv.privacy.histogram_controllers import DcSgdEController, DcSgdPController
from fedpriv.privacy.iterate_rules import GRADIENT_RULES, DiskRule
from fedpriv.privacy.joint import Query, gradient_noise, release_jointly
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.options import build, constants
from fedpriv.privacy.rule_state import StateLayout
from fedpriv.privacy.schedules import DynamicController
from fedpriv.seeding import PrivacyRng

CONTROLLERS: Final[Mapping[str, type[Controller]]] = {
    kind.KEY: kind
    for kind in (QuantileController, DcSgdPController, DcSgdEController, DynamicController, GlobalAdaptController)
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of a step without sampler and noise.

    Attributes:
        clipper: at C of the scenario.
        controller: sets the bound (and noise) of each step; the base class changes nothing.
        rule: makes each row's vector; the base class is the gradient itself.
        filter: post-processing, or None.
        steps_total: private steps of the run.
    """

    clipper: Rule
    controller: Controller = field(default_factory=Controller)
    rule: GradientRule = field(default_factory=GradientRule)
    filter: Filter | None = None
    steps_total: int = 1

    def __post_init__(self) -> None:
        """Refuses what does not go together.

        Raises:
            InputError: with the reason; nothing was started.
        """
        self.controller.check(self.clipper)
        self.rule.check(self.clipper)
        for refused, why in (
            (
                isinstance(self.controller, GlobalAdaptController) and self.rule.name in ("error-feedback",),
                "controller 'global-adapt' rescales every gradient, so nothing is cut off that 'error-feedback' could "
                "feed back",
            ),
            (
                isinstance(self.controller, GlobalAdaptController) and isinstance(self.rule, GroupWiseRule),
                "controller 'global-adapt' compares whole norms with Z, 'group-wise' clips parts of them",
            ),
            (
                isinstance(self.rule, SparsifyRule) and isinstance(self.filter, LaplacianFilter),
                "filter 'laplacian' would spread the kept coordinates over those that 'sparsify' left out",
            ),
            (
                isinstance(self.rule, DiskRule) and self.filter is not None and self.filter.name != "laplacian",
                f"'disk' is a filter over steps itself; {self.filter.name if self.filter else ''!r} would be a second",
            ),
        ):
            if refused:
                raise InputError(f"these rules do not go together: {why}. Nothing was started.")

    def engine_name(self, asked: str) -> str:
        """The gradient engine for these rules, `asked` being privacy.engine.

        Raises:
            InputError: the engine asked for has no per-row gradients and the rule needs them; nothing was started.
        """
        if self.rule.NEEDS != "rows":
            return asked
        if asked == "auto":
            return "functional"
        if asked not in ROW_ENGINES:
            raise InputError(
                f"gradient rule {self.rule.name!r} needs every row's gradient at points of its own, which "
                f"privacy.engine={asked} does not give; use functional (or auto). Nothing was started."
            )
        return asked

    def describe(self, sigma: float) -> dict[str, Any]:
        """Names and every constant, and the noise: for labels. `sigma` is the total multiplier at the start."""
        shown = {k: v for k, v in constants(self.clipper).items() if k not in ("l2_clip_norm", "step")}
        least = min(value for value, _ in self.controller.noise(sigma))
        stated: dict[str, Any] = {
            "clipper": self.clipper.name,
            "clipper_options": shown,
            "bound": float(self.clipper.bound),
            "controller": self.controller.name or "none",
            "controller_options": constants(self.controller),
            "gradient_rule": self.rule.name or "none",
            "gradient_rule_options": constants(self.rule),
            "filter": self.filter.name if self.filter else "none",
            "filter_options": constants(self.filter) if self.filter else {},
            "noise_multiplier": least,
            "noise_multiplier_gradient": gradient_noise(least, self._shares(least)),
        }
        stages = self.controller.noise(sigma)
        return stated if len(stages) == 1 else {**stated, "noise_schedule": [[s, n] for s, n in stages]}

    def _shares(self, sigma: float) -> list[float]:
        """(bound / stddev)^2 of everything but the gradient."""
        statistic = self.controller.statistic_noise(sigma)
        shares = [noise**-2 for noise in self.rule.extra_noise(sigma)]
        return shares if statistic is None else [(statistic[0] / statistic[1]) ** 2, *shares]

    def sigma_gradient(self, sigma: float) -> float:
        """What of the total `sigma` is left for the gradient.

        Raises:
            InputError: nothing.
        """
        return gradient_noise(sigma, self._shares(sigma))


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
        """One private step.

        Args:
            engine: made for `rules.engine_name`, its model at `params`.
            examples, draws: the private rows; there may be none, and noise is due even then.
            params: [P] current parameters.
            state: of the rules, as sent; None if they keep none.
            step: 0, 1, ... over the whole run.
            denominator: public divisor of the sums.
            layout: of the trained parameters.
            rng: source of the noise.

        Raises:
            InputError: a state of another length, or a step past the schedule; nothing was read.
        """
        rules, parts = self.rules, self._parts(params.numel(), state)
        sigma = self.sigma_at(step)
        mine = parts.get("controller", {})
        clipper = rules.controller.clipper(rules.clipper.at(step), mine, step)
        facts = StepFacts(
            step=step,
            denominator=denominator,
            sizes=tuple(shape.numel() for shape in layout.shapes),
            sigma=sigma,
            sigma_gradient=rules.sigma_gradient(sigma),
        )
        batch = Batch(
            engine=engine,
            examples=examples,
            draws=draws,
            params=params,
            clipper=clipper,
            state=parts.get("rule", {}),
            facts=facts,
            names=layout.names,
        )
        asked = self.ask(batch, mine)
        mechanism = self.mechanism
        if clipper is not mechanism.clipper or sigma != mechanism.noise_multiplier:
            mechanism = replace(mechanism, clipper=clipper, noise_multiplier=sigma)
        released = release_jointly(mechanism, asked.clipped, asked.extra, denominator=denominator, rng=rng)
        after: dict[str, Mapping[str, Tensor]] = {}
        if rules.controller.statistic_noise(sigma) is not None:
            after["controller"] = rules.controller.update(released.answers[0], clipper, mine, facts)
        grad, after["rule"] = rules.rule.after(released.grad, released.answers, params, clipper, batch.state, facts)
        if rules.filter is not None:
            grad, after["filter"] = rules.filter.apply(grad, parts.get("filter", {}), facts.sizes)
        layout_of_state = self.state_layout(params.numel())
        if state is None or layout_of_state is None:
            return StepDone(grad, None, clipper.bound)
        return StepDone(grad, layout_of_state.join(after, state.device), clipper.bound)

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


def make_rules(privacy: PrivacyConfig, *, steps_total: int) -> Rules:
    """The rules that the settings name.

    Raises:
        InputError: unknown names or options, values out of range, or rules that do not go together.
    """
    chosen: RuleChoice = privacy.rules()
    fixed = {"steps_total": max(steps_total, 1)}
    clipper = make_clipper(chosen.clipper, bound=privacy.bound, **chosen.clipper_options)
    controller, rule, made = Controller(**fixed), GradientRule(**fixed), None
    if chosen.controller != "none":
        controller = build(CONTROLLERS, "controller", chosen.controller, chosen.controller_options, **fixed)
    elif chosen.controller_options:
        raise _unused("controller", chosen.controller_options)
    if chosen.gradient_rule != "none":
        rule = build(GRADIENT_RULES, "gradient rule", chosen.gradient_rule, chosen.gradient_rule_options, **fixed)
    elif chosen.gradient_rule_options:
        raise _unused("gradient_rule", chosen.gradient_rule_options)
    if chosen.filter != "none":
        made = build(FILTERS, "filter", chosen.filter, chosen.filter_options)
    elif chosen.filter_options:
        raise _unused("filter", chosen.filter_options)
    return Rules(clipper=clipper, controller=controller, rule=rule, filter=made, steps_total=fixed["steps_total"])


def _unused(part: str, options: Mapping[str, object]) -> InputError:
    named = ", ".join(options)
    return InputError(f"privacy.{part}_options has {named}, but privacy.{part}=none; nothing was started.")
