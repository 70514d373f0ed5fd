"""Personal models: each client's own copy of the final global model, fine-tuned on its own training part.

The fine-tuning is one more round of `personal.steps` steps, taken by one client alone, that nobody is told of: nothing
of it is sent. It comes after the federation, never during it. Parameters that a client trained *during* the federation
on its own readings without noise would enter every gradient that it sends, and no clipping bound says by how much one
reading moves them; so there are none.

* `local`: ordinary steps without noise. The result is a function of private readings and nothing else: it costs nothing
  as long as it stays where they are, and no promise covers it anywhere else. Its scores exist in simulation only.
* `private`: the steps are private steps. Proof note: unit, relation, sampler, clipping rule and noise multiplier are
  those of the run's own steps, so the event of a step is `Mechanism.step_event()` (sensitivity `clipper.bound`), taken
  `personal.steps` times by adaptive composition with everything before it: the steps begin at a public model. They have
  a contract of their own beside that of training, enrolled with it, and the noise of the run is calibrated to both.
  Controllers, gradient rules and filters, which learn over a run, take no part.
"""

from __future__ import annotations

from typing import Any, Final

from dp_accounting import DpEvent

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.windows import day_steps
from fedpriv.mechanisms import make_mechanism
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.recipe import make_rules
from fedpriv.privacy.samplers import RandomPhaseTiling

PERSONAL: Final = "personal"
"""Name of the model in tables, of the contract, and of the file beside a client's ledger."""


def personal_scenario(scenario: Scenario) -> Scenario:
    """The scenario of the one round that makes a personal model: round `federation.rounds + 1` of its own streams."""
    personal, privacy = scenario.personal, scenario.privacy
    rules = privacy.rules()
    changes: dict[str, Any] = {
        "personal.kind": "none",
        "federation.rounds": scenario.federation.rounds + 1,
        "federation.local_steps": personal.steps,
        "federation.clients_per_round": 1,
        "optimizer.learning_rate": personal.learning_rate,
        "optimizer.decay": "none",
        "optimizer.warmup": 0,
        "privacy.enabled": personal.kind == "private",
        "privacy.clipper": rules.clipper,
        "privacy.clipper_options": rules.clipper_options,
        "privacy.release_count": None,
        "privacy.release_metrics": None,
        "privacy.accountant": "pld",
    }
    for part in ("controller", "gradient_rule", "filter"):
        changes |= {f"privacy.{part}": "none", f"privacy.{part}_options": {}}
    if personal.parameters != "same":
        changes["model.trainable"] = personal.parameters
    return scenario.override(changes)


def private_steps(scenario: Scenario) -> int:
    """Private steps of the fine-tuning: 0 unless `personal.kind` is private in a private run."""
    charged = scenario.personal.kind == "private" and scenario.privacy.enabled and scenario.steps_total
    return scenario.personal.steps if charged else 0


def personal_parts(scenario: Scenario) -> list[tuple[DpEvent, int]]:
    """(event, times) of the fine-tuning at the run's noise multiplier; empty where it costs nothing."""
    steps, sigma = private_steps(scenario), scenario.privacy.noise_multiplier
    if not steps or sigma is None:
        return []
    return [(make_mechanism(personal_scenario(scenario), sigma).step_event(), steps)]


def personal_contracts(scenario: Scenario, run_id: str) -> list[Contract]:
    """What a client enrols for its fine-tuning beside the contract of its steps: one contract, or none."""
    privacy, own = scenario.privacy, personal_scenario(scenario)
    found: list[Contract] = []
    for event, steps in personal_parts(scenario):
        assert privacy.noise_multiplier is not None
        terms: dict[str, Any] = {
            "side_release": PERSONAL,
            **RandomPhaseTiling(own.task.window, own.privacy.sampling_prob).terms(),
            **make_rules(own.privacy, steps_total=steps).describe(privacy.noise_multiplier),
            "noise": privacy.noise,
            "steps_per_day": day_steps(roster(scenario).step),
        }
        found.append(
            Contract(
                run_id=f"{run_id}#{PERSONAL}",
                event=encode_event(event),
                steps_total=steps,
                steps_per_round=steps,
                unit=privacy.unit,
                relation=privacy.relation,
                delta=privacy.delta,
                epsilon=privacy.epsilon,
                terms=canonical(terms),
            )
        )
    return found
