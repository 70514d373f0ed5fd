"""What a scenario leaves open, filled in from public numbers: noise, warm start, learning rates."""

from __future__ import annotations

import numpy as np
from dp_accounting import dp_event

from fedpriv.config import Scenario
from fedpriv.data.clients import roster, training_size
from fedpriv.data.windows import day_steps
from fedpriv.errors import InputError
from fedpriv.mechanisms import make_mechanism, make_recipe
from fedpriv.models.parameters import GAUSSIAN_GROUPS
from fedpriv.models.reference import make_one_round
from fedpriv.personal import personal_scenario
from fedpriv.privacy.accounting import calibrate
from fedpriv.privacy.hardened import check_rules
from fedpriv.privacy.recipe import event_of, make_rules
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import Relation
from fedpriv.releases import side_parts, statistics_objection, whole_event
from fedpriv.training import LocalWorker


def resolve(scenario: Scenario) -> Scenario:
    """The scenario with its noise multiplier filled in: the least that keeps (epsilon, delta) over all steps.

    Side releases that the scenario asks for come out of the same budget: what they leave is what training may spend.

    A noise multiplier that the scenario states is left as it is; whether the budget allows it is decided by each
    client's ledger.
    """
    scenario = settle_one_round(scenario)
    privacy = scenario.privacy
    rules = make_rules(privacy, steps_total=scenario.steps_total)  # its errors come first
    rules.engine_name(privacy.engine)
    if privacy.noise == "discrete-gaussian":
        check_rules(privacy.rules())
    if privacy.enabled and privacy.noise_multiplier is None and scenario.steps_total:
        sigma = calibrate(
            lambda value: whole_event(
                scenario.override({"privacy.noise_multiplier": value}),
                event_of(make_mechanism(scenario, value), rules),
            ),
            count=1,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            relation=Relation.parse(privacy.relation),
            accountant=privacy.accountant,
        )
        scenario = scenario.override({"privacy.noise_multiplier": sigma})
    if privacy.enabled and scenario.steps_total:
        make_recipe(scenario, scenario.privacy.noise_multiplier or 1.0)  # refuses noise that leaves no gradient
    if scenario.optimizer.learning_rate is None:
        scenario = scenario.override(
            {"optimizer.learning_rate": suggested_learning_rate(scenario, scenario.steps_total)}
        )
    if scenario.personal.kind != "none" and scenario.personal.learning_rate is None:
        rate = suggested_learning_rate(personal_scenario(scenario), scenario.personal.steps)
        scenario = scenario.override({"personal.learning_rate": rate})
    return scenario


def settle_one_round(scenario: Scenario) -> Scenario:
    """The scenario with `model.warm_start` and `model.trainable` decided, and the noise of the statistics filled in.

    They may cost `privacy.warm_start_share` of epsilon by themselves; where they are all of the run, what other side
    releases leave of it.

    Raises:
        InputError: statistics that cannot be released or fitted, with the reason; nothing was started.
    """
    model, privacy = scenario.model, scenario.privacy
    if model.kind != "diffusion":
        if privacy.release_count is not None:
            raise InputError(
                f"privacy.release_count weighs the updates of training rounds, and model.kind={model.kind} has none; "
                "nothing was started."
            )
        if scenario.personal.kind != "none":
            raise InputError(
                f"personal.kind={scenario.personal.kind} fine-tunes the diffusion model, and model.kind={model.kind} "
                "has none; nothing was started."
            )
        scenario = scenario.override({"model.warm_start": ""})
    elif model.warm_start == "auto":
        scenario = scenario.override({"model.warm_start": _automatic(scenario)})
    if scenario.model.trainable == "auto":
        scenario = scenario.override({"model.trainable": _trained(scenario)})
    kind = scenario.model.statistics
    if not kind:
        return scenario
    if reason := statistics_objection(scenario):
        key = "model.kind=diffusion with model.warm_start=" if model.kind != "diffusion" else "model.warm_start="
        raise InputError(f"no {kind} can be fitted: {reason}. Use {key} (empty); nothing was started.")
    make_one_round(scenario, kind, period=scenario.task.period or day_steps(roster(scenario).step))
    if not privacy.enabled or privacy.warm_start_noise is not None:
        return scenario
    alone = scenario.model.kind != "diffusion"
    beside = [dp_event.SelfComposedDpEvent(event, times) for event, times in side_parts(scenario)] if alone else []
    sigma = calibrate(
        lambda value: dp_event.ComposedDpEvent([dp_event.GaussianDpEvent(value), *beside]),
        count=1,
        epsilon=privacy.epsilon * (1.0 if alone else privacy.warm_start_share),
        delta=privacy.delta,
        relation=Relation.parse(privacy.relation),
        accountant=privacy.accountant,  # a share of what the run's own accountant allows: a filter allows less
    )
    return scenario.override({"privacy.warm_start_noise": sigma})


def _automatic(scenario: Scenario) -> str:
    """The one-round model that answers the task, where its statistics can be paid for; else empty.

    The ridge for forecasts; the Gaussian, whose conditionals are exact for any mask, for filling and mixed tasks.
    """
    privacy = scenario.privacy
    stated = privacy.enabled and privacy.noise_multiplier is not None  # then nothing is calibrated around a release
    if stated or not scenario.steps_total or statistics_objection(scenario):
        return ""
    kind = "ridge" if scenario.task.kind == "forecast" else "gaussian"
    try:
        make_one_round(scenario, kind, period=scenario.task.period or day_steps(roster(scenario).step))
    except InputError:
        return ""  # a context of less than three days, or a window that is too long, for example
    return kind


def _trained(scenario: Scenario) -> str:
    """`seasons` where a fitted one-round model leaves little to learn and noise costs by the parameter; else `skip`."""
    fitted = scenario.model.statistics and scenario.task.kind == "forecast"
    return "seasons" if fitted and scenario.privacy.enabled else "skip"


def suggested_learning_rate(scenario: Scenario, steps: int) -> float:
    """A learning rate for `steps` steps from public numbers alone, in units of the bound.

    The noise of a round's mean update has norm n = sigma sqrt(P) / (B sqrt(K)) in units of the bound (P parameters,
    B expected batch, K clients), and steps must shrink as it grows: 0.08 / n, at most 0.12. Where the model starts
    from released statistics there is little left to learn, and neither noise nor a long run must undo what there is:
    0.015 / n, at most 0.01 for seasons or scale and 0.0225 else, and less beyond 20 and 40 steps; for seasons the way
    that is gone stays the same, else what the noise adds up to. For Adam, whose steps do not scale with the
    gradient, a hundredth of it. Without privacy the batch gradient, not each row's, is clipped: 0.5 for the skip,
    0.12 where a transformer learns. Found on EIA-930, ETT, SGSC and synthetic series; docs/studies/what-to-train.md.
    """
    adam = 0.01 if scenario.optimizer.name in ("adam", "adamw", "lamb") else 1.0
    if not scenario.privacy.enabled:
        return adam * (0.5 if scenario.model.trainable in GAUSSIAN_GROUPS else 0.12)
    people, privacy = roster(scenario), scenario.privacy
    clients = scenario.federation.clients_per_round or len(people.names)
    sampler = RandomPhaseTiling(scenario.task.window, privacy.sampling_prob)
    batches: list[float] = []
    for name in people.names:
        meters, train = training_size(scenario, name)
        batches.append(sampler.expected_batch_size(num_meters=meters, start=train.start, stop=train.stop))
    sigma = privacy.noise_multiplier or 0.0
    parameters = LocalWorker(scenario.override({"optimizer.learning_rate": 1.0})).num_parameters
    noise = sigma * np.sqrt(parameters) / (np.mean(batches) * np.sqrt(clients))
    if scenario.model.trainable in ("seasons", "scale") and scenario.model.statistics:
        fewer = min(1.0, 20 / max(steps, 1))
        rate = min(0.01 * fewer, 0.015 / noise * np.sqrt(fewer)) if noise > 0 else 0.01 * fewer
    else:
        most = 0.0225 if scenario.model.statistics else 0.12
        rate = min(most, most / 1.5 / noise) if noise > 0 else most
        if scenario.model.statistics:  # what noise adds up to grows with the root of the steps
            rate *= min(1.0, np.sqrt(40 / max(steps, 1)))
    return float(f"{adam * rate:.3g}")
