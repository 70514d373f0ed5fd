"""The rules of a private step, as the settings name them: clipper, controller, gradient rule, filter.

`fedpriv.privacy.recipe` joins them with a sampler and noise. What does not go together is refused here, with a reason.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedpriv.config import PrivacyConfig, RuleChoice
from fedpriv.errors import InputError
from fedpriv.privacy.clippers import Rule, make_clipper
from fedpriv.privacy.controllers import Controller, GlobalAdaptController, QuantileController
from fedpriv.privacy.filters import FILTERS, Filter, LaplacianFilter
from fedpriv.privacy.gradient_rules import ROW_ENGINES, GradientRule, GroupWiseRule, SparsifyRule
from fedpriv.privacy.histogram_controllers import DcSgdEController, DcSgdPController
from fedpriv.privacy.iterate_rules import GRADIENT_RULES, DiskRule
from fedpriv.privacy.joint import gradient_noise
from fedpriv.privacy.options import build, constants
from fedpriv.privacy.schedules import DynamicController

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
