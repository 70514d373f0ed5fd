"""plan: what a privacy budget buys, before any training and without touching a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json, ScenarioArgument, Set

if TYPE_CHECKING:
    from fedpriv.config import Scenario
    from fedpriv.privacy.plan import Plan, Situation

HELP = """Before any training: what does a privacy budget buy?

The noise that keeps the budget, epsilon of every unit (the ladder), noise against signal, cost per round, and what
would help: more data, fewer steps, a smaller model. Sizes come from the scenario's calendar, or from --meters and
--days; no model is trained, no ledger is touched.

\b
Examples:
  fedpriv plan
  fedpriv plan eia-8 --set data.dir=data --set privacy.epsilon=2
  fedpriv plan --meters 500 --days 365 --set privacy.unit=day --plot plan.png
"""


def plan(
    scenario: ScenarioArgument = None,
    changes: Set = None,
    meters: Annotated[
        int | None, typer.Option(min=1, help="Plan for a client with this many meters.", show_default=False)
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, help="Plan for a training calendar of this length, days.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Also draw it: ladder, data size, what would help.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prints the plan of every kind of client."""
    from fedpriv.config import parse_assignments
    from fedpriv.errors import InputError
    from fedpriv.privacy.plan import plan as make_plan
    from fedpriv.resolving import settle_one_round
    from simulations.scenarios import load

    chosen = load(scenario).override(parse_assignments(changes or []))
    if not chosen.privacy.enabled:
        raise InputError("privacy.enabled=false: without privacy there is nothing to plan. Nothing was started.")
    chosen = settle_one_round(chosen)
    if (kind := chosen.model.kind) != "diffusion":
        raise InputError(
            f"model.kind={kind} is one release of statistics and has no steps to plan: epsilon "
            f"{chosen.privacy.epsilon:g} for one {chosen.privacy.unit} takes the noise multiplier "
            f"{chosen.privacy.warm_start_noise:g}. Nothing was started."
        )
    if chosen.steps_total == 0:
        raise InputError("federation.local_steps=0: without private steps there is nothing to plan.")
    situations = _situations(chosen, meters=meters, days=days)
    plans = [(clients, situation, make_plan(situation)) for clients, situation in situations]
    if plot is not None:
        from fedpriv.reports.plan_figure import draw_plan

        draw_plan(plans, plot)
    if as_json:
        state.emit({**_as_json(chosen, plans), "plot": str(plot) if plot is not None else None})
    else:
        _print(chosen, plans)


def _situations(scenario: Scenario, *, meters: int | None, days: int | None) -> list[tuple[tuple[str, ...], Situation]]:
    """Clients that are alike share one situation.

    Raises:
        InputError: the data cannot be found, or only one of the two sizes is given.
    """
    from fedpriv.data.clients import training_size
    from fedpriv.data.roster import roster
    from fedpriv.data.windows import day_steps
    from fedpriv.errors import InputError
    from fedpriv.personal import private_steps
    from fedpriv.privacy.accounting import ladder_units
    from fedpriv.privacy.plan import Situation
    from fedpriv.privacy.recipe import make_rules
    from fedpriv.privacy.samplers import RandomPhaseTiling
    from fedpriv.releases import side_parts, side_rungs

    privacy = scenario.privacy
    members = roster(scenario)
    a_day = day_steps(members.step)
    if (meters is None) != (days is None):
        raise InputError("--meters and --days go together: both say how much data a client has. Nothing was started.")
    sizes: dict[tuple[int, int], list[str]] = {}
    if meters is not None and days is not None:
        sizes[meters, days * a_day] = []
    else:
        for name in members.names:
            count, train = training_size(scenario, name)
            sizes.setdefault((count, train.stop - train.start), []).append(name)
    shared: dict[str, Any] = {
        "sampler": RandomPhaseTiling(scenario.task.window, privacy.sampling_prob),
        "steps_per_day": a_day,
        "num_parameters": _parameters(scenario, len(members.channels)),
        "steps": scenario.steps_total + private_steps(scenario),  # fine-tuning costs the same event
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "unit": privacy.unit,
        "relation": privacy.relation,
        "noise_multiplier": privacy.noise_multiplier,
        "hardened": privacy.noise == "discrete-gaussian",
        "side": tuple(side_parts(scenario)),
        "rules": make_rules(privacy, steps_total=scenario.steps_total),
        "accountant": privacy.accountant,
    }
    units = ladder_units(a_day)
    situations: list[tuple[tuple[str, ...], Situation]] = []
    for (count, length), names in sorted(sizes.items()):
        rungs = side_rungs(scenario, units, calendar_steps=length)
        side = tuple((name, tuple(events)) for name, events in rungs.items())
        situations.append((tuple(names), Situation(num_meters=count, calendar_steps=length, side_rungs=side, **shared)))
    return situations


def _parameters(scenario: Scenario, channels: int) -> int:
    """How many parameters are trained and sent."""
    import torch

    from fedpriv.data.roster import roster
    from fedpriv.data.windows import CALENDAR_FEATURES, day_steps
    from fedpriv.models.denoiser import build_denoiser
    from fedpriv.models.parameters import trainable_vector

    generator = torch.Generator().manual_seed(0)  # the values do not matter, only their number
    model = build_denoiser(
        scenario,
        channels=channels,
        calendar_features=CALENDAR_FEATURES,
        generator=generator,
        period=day_steps(roster(scenario).step),
    )
    return int(trainable_vector(model).numel())


def _cost(scenario: Scenario, situation: Situation, made: Plan) -> dict[str, float]:
    """Of one client and round: message bytes each way, windows, and forward-backward passes."""
    windows = made.now.expected_batch_size * scenario.federation.local_steps
    return {
        "bytes_each_way": 4 * situation.num_parameters,
        "windows": windows,
        "passes": windows * scenario.diffusion.multiplicity,
    }


def _as_json(scenario: Scenario, plans: list[tuple[tuple[str, ...], Situation, Plan]]) -> dict[str, Any]:
    return {
        "name": scenario.run.name,
        "unit": scenario.privacy.unit,
        "relation": scenario.privacy.relation,
        "delta": scenario.privacy.delta,
        "budget": scenario.privacy.epsilon,
        "steps": scenario.steps_total,
        "plans": [
            {
                "clients": list(clients),
                "meters": situation.num_meters,
                "calendar_steps": situation.calendar_steps,
                "parameters": situation.num_parameters,
                "cost_per_round": _cost(scenario, situation, made),
                **made.to_json(),
            }
            for clients, situation, made in plans
        ],
    }


def _print(scenario: Scenario, plans: list[tuple[tuple[str, ...], Situation, Plan]]) -> None:
    from fedpriv.cli.text import table
    from fedpriv.reports.numbers import number, rung, small

    privacy, federation = scenario.privacy, scenario.federation
    _, first, made = plans[0]
    state.say(
        f"{scenario.run.name}: epsilon {number(privacy.epsilon)} for one {privacy.unit} ({privacy.relation}) at delta "
        f"{small(privacy.delta)}, over {federation.rounds} rounds of {federation.local_steps} private steps.\n"
        f"Noise multiplier {number(made.now.noise_multiplier)}, sampling rate {privacy.sampling_prob:g}, windows of "
        f"{scenario.task.window} steps, {first.num_parameters:,} trained parameters.\n"
    )
    relations = list(made.ladders)
    rungs = [(unit, *(rung(made.ladders[r].get(unit)) for r in relations)) for unit in made.ladders[relations[0]]]
    state.say(table(("epsilon for one", *relations), rungs) + "\n")
    rows = [
        (
            _who(clients),
            situation.num_meters,
            f"{situation.calendar_steps // situation.steps_per_day} days",
            number(outlook.now.expected_batch_size),
            number(outlook.now.noise_to_signal),
            number(outlook.now.noise_to_signal_all),
        )
        for clients, situation, outlook in plans
    ]
    heads = ("clients", "meters", "calendar", "windows per step", "noise/signal, one step", "over all steps")
    state.say(table(heads, rows))
    state.say("Noise over signal is for the largest signal that clipping lets through; keep the last column below 1.\n")
    helps = sorted(made.helps, key=lambda outlook: -outlook.gain)
    rows = [(o.change, number(o.noise_multiplier), f"{number(o.gain)} x") for o in helps]
    state.say(table(("what would help", "noise multiplier", "less noise against signal"), rows) + "\n")
    state.say(_paid(scenario, made))
    cost = _cost(scenario, first, made)
    state.say(
        f"Cost of one client and round: {number(cost['bytes_each_way'] / 1000)} kB each way, "
        f"{number(cost['windows'])} windows, {number(cost['passes'])} forward and backward passes."
    )


def _paid(scenario: Scenario, made: Plan) -> str:
    """What the budget goes to, where it is more than the steps alone."""
    from fedpriv.reports.numbers import at_most, number

    costs, lines = made.costs, list[str]()
    if costs["side_releases"]:
        lines.append(
            f"Of the budget, training alone costs {at_most(costs['training'])} and the side releases alone "
            f"{at_most(costs['side_releases'])}; together {at_most(costs['all_exact'])} (the ladder includes both)."
        )
    if "filter" in costs:
        lines.append(
            f"The Renyi filter of order {number(costs['filter_order'])} claims {at_most(costs['filter'])} where a "
            f"contract of fixed steps would claim {at_most(costs['all_exact'])}; it says nothing about other units, so "
            "the ladder is that of the run if it goes as planned."
        )
    return "".join(line + "\n" for line in lines)


def _who(clients: tuple[str, ...]) -> str:
    if not clients:
        return "as given"
    return ", ".join(clients[:2]) + (f" and {len(clients) - 2} more" if len(clients) > 2 else "")
