"""From a scenario to the mechanism and the rules of its steps."""

from __future__ import annotations

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.windows import day_steps
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.hardened import HardenedMechanism
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import Recipe, make_rules
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import Relation, Unit


def make_mechanism(scenario: Scenario, noise_multiplier: float) -> Mechanism:
    """The mechanism that a scenario describes: sampler, clipper, noise and event of a step, from one place."""
    privacy = scenario.privacy
    chosen = privacy.rules()
    steps_per_day = day_steps(roster(scenario).step)
    kind = HardenedMechanism if privacy.noise == "discrete-gaussian" else Mechanism
    return kind(
        sampler=RandomPhaseTiling(scenario.task.window, privacy.sampling_prob),
        clipper=make_clipper(chosen.clipper, bound=privacy.bound, **chosen.clipper_options),
        noise_multiplier=noise_multiplier,
        unit=Unit.parse(privacy.unit, steps_per_day=steps_per_day),
        relation=Relation.parse(privacy.relation),
    )


def make_recipe(scenario: Scenario, noise_multiplier: float) -> Recipe:
    """The whole private step that a scenario describes, with `noise_multiplier` as the TOTAL noise of its start.

    Raises:
        InputError: rules that are not known, do not go together, or leave no noise for the gradient.
    """
    rules = make_rules(scenario.privacy, steps_total=scenario.steps_total)
    return Recipe(mechanism=make_mechanism(scenario, noise_multiplier), rules=rules)
