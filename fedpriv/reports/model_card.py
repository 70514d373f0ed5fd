"""The model card: what a trained model is for, what it promises, and what it cannot do.

model_card.md is for people, model.json beside it for programs (`fedpriv forecast` and `impute` read step, channels,
unit and clock from it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedpriv.config import Scenario
from fedpriv.data.table import step_text
from fedpriv.data.windows import season_steps
from fedpriv.reports.atomic import write_json, write_text
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.label_card import promise_rows
from fedpriv.reports.numbers import number, rung, small
from fedpriv.reports.tables import FEDERATED, KINDS, METRICS, MODELS, SHARES, RunView, answer
from fedpriv.trained import longest_run, refusal

_METRICS = ("mse", "mae", "nmae", "crps", "coverage90")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Public facts of the training data that a run folder does not hold.

    Attributes:
        step: of the model.
        channels: [C] names.
        unit: physical unit; may be empty.
        timezone: clock of the stamps, "UTC" or "local".
        clients: whose data.
        start, stop: first and last stamp of the training parts; None where only the clients know.
        licence, citation: of the source; may be empty.
    """

    step: pd.Timedelta
    channels: tuple[str, ...]
    unit: str
    timezone: str
    clients: tuple[str, ...]
    start: pd.Timestamp | None
    stop: pd.Timestamp | None
    licence: str = ""
    citation: str = ""


def write_card(folder: RunFolder, facts: ModelFacts) -> dict[str, Any]:
    """Writes model.json and model_card.md into the run folder; returns the content of model.json."""
    view = RunView.of(folder)
    card = build_card(view, facts)
    write_json(folder.path / "model.json", card)
    write_text(folder.path / "model_card.md", render_card(view, card))
    return card


def build_card(view: RunView, facts: ModelFacts) -> dict[str, Any]:
    """The content of model.json."""
    scenario, label = view.scenario, view.label
    task, data, privacy = scenario.task, scenario.data, scenario.privacy
    period = season_steps(task.period, facts.step)
    return {
        "format": 1,
        "name": scenario.run.name,
        "created": view.status.get("updated"),
        "step": step_text(facts.step),
        "step_seconds": facts.step.total_seconds(),
        "channels": list(facts.channels),
        "unit": facts.unit,
        "timezone": facts.timezone,
        "task": {
            "kind": task.kind,
            "context": task.context,
            "horizon": task.horizon,
            "window": task.window,
            "mask": task.mask if task.kind != "forecast" else None,
            "longest_gap": longest_run(task),
            "period": period,
        },
        "uses": {use: {"possible": not refusal(task, use), "reason": refusal(task, use)} for use in _USES},
        "scaling": {"kind": data.scaling} | ({"low": data.low, "high": data.high} if data.scaling == "bounds" else {}),
        "data": {
            "source": data.source,
            "partition": scenario.partition.kind,
            "clients": list(facts.clients),
            "train_start": facts.start.isoformat() if facts.start is not None else "",
            "train_stop": facts.stop.isoformat() if facts.stop is not None else "",
            "licence": facts.licence,
            "citation": facts.citation,
        },
        "model": {
            **scenario.model.model_dump(mode="json", exclude={"warm_start", "warm_start_options"}),
            "warm_start": scenario.model.statistics or ("weights" if scenario.model.warm_start else ""),
        },
        "diffusion": scenario.diffusion.model_dump(mode="json"),
        "privacy": {
            "enabled": privacy.enabled,
            "unit": label.get("unit") if privacy.enabled else None,
            "relation": label.get("relation") if privacy.enabled else None,
            "delta": label.get("delta") if privacy.enabled else None,
            "max_epsilon": label.get("max_epsilon"),
            "ladder": view.ladder(),
            "seeded": label.get("seeded"),
            "mode": label.get("mode"),
        },
        "split": view.split,
        "metrics": view.averages(),
        "metrics_by_hidden": {kind: view.averages(kind) for kind in view.kinds()},
        "limits": limits(view, facts),
        "rounds": {"done": view.folder.last_round, "planned": scenario.federation.rounds},
        "scenario_digest": scenario.digest(),
        "source_digest": view.status.get("source_digest"),
        "versions": view.status.get("versions"),
    }


_USES = ("forecast", "impute")


def limits(view: RunView, facts: ModelFacts) -> list[str]:
    """What a user must know before relying on the model, a sentence or two each."""
    scenario = view.scenario
    task, data = scenario.task, scenario.data
    step = step_text(facts.step)
    found = [
        f"It works on steps of {step} only. Finer data can be averaged to {step}; coarser data cannot be used.",
        f"It was trained on {_sources(scenario, facts)}. On series of another kind (households against utilities, "
        "another climate) its scores are unknown.",
        "It knows the readings and the calendar (hour, weekday, season). It knows no weather, no holidays, no prices.",
    ]
    for use, reason in ((use, refusal(task, use)) for use in _USES):
        if reason:
            found.append({"forecast": "It cannot forecast: ", "impute": "It cannot fill gaps: "}[use] + reason + ".")
    if not refusal(task, "forecast"):
        found.append(
            f"It looks back {task.context} steps and was trained to forecast {task.horizon}. Longer horizons are "
            "rolled forward from its own samples and were not scored."
        )
    if not refusal(task, "impute"):
        found.append(f"It learned to fill gaps of at most {longest_run(task)} steps; longer ones are left open.")
    if data.scaling == "bounds":
        found.append(
            f"Readings must be in {facts.unit or 'the unit of the training data'} and lie between the declared public "
            f"bounds {data.low:g} and {data.high:g}."
        )
    else:
        found.append(
            "Each window is scaled by its own readings, so that any unit will do; forecasts come in that unit."
        )
    coverage = view.averages().get(FEDERATED, {}).get("coverage90")
    if coverage is not None:
        found.append(
            f"Its 90 % intervals held {100 * coverage:.1f} % of the readings of the {view.split} part; on other data "
            "check this before using them."
        )
    if not view.private:
        found.append("It was trained without privacy: it may repeat what it was trained on. Treat it like the data.")
    elif view.label.get("seeded"):
        found.append("Its training noise was seeded so that the run can be repeated: a simulation, not a guarantee.")
    found.append("Using it sends nothing anywhere and spends no privacy budget; its output is as private as its input.")
    return found


def _sources(scenario: Scenario, facts: ModelFacts) -> str:
    count = len(facts.clients)
    clients = f"{count} client{'s' if count != 1 else ''} of the source {scenario.data.source}"
    if facts.start is None or facts.stop is None:
        return clients
    return f"{clients}, {facts.start:%Y-%m-%d} to {facts.stop:%Y-%m-%d}"


# ---- the page ------------------------------------------------------------------------------------------


def render_card(view: RunView, card: Mapping[str, Any]) -> str:
    """model_card.md as text."""
    task, data = card["task"], card["data"]
    what = {
        "forecast": f"forecasts the next {task['horizon']} steps from the last {task['context']}",
        "imputation": f"fills gaps of up to {task['longest_gap']} steps in windows of {task['window']}",
        "mixed": f"forecasts the next {task['horizon']} steps from the last {task['context']}, and fills gaps of up to "
        f"{task['longest_gap']} steps",
    }[task["kind"]]
    channels = ", ".join(card["channels"])
    facts = [
        ("What it does", f"{what}; a diffusion model: mean, quantiles and samples"),
        ("Step", card["step"]),
        ("Channels", f"{channels}" + (" (any column of your table)" if len(card["channels"]) == 1 else "")),
        ("Unit of the training data", card["unit"] or "not stated"),
        ("Clock of the training data", card["timezone"] or "not stated"),
        ("Scaling", _scaling(card)),
        ("Season of its baseline", f"{task['period']} steps"),
        ("Trained on", f"{data['source']}: {_shown(data['clients'])}"),
        (
            "Training period",
            f"{data['train_start'][:10]} to {data['train_stop'][:10]}"
            if data["train_start"]
            else "known to the clients only",
        ),
        ("Licence of the data", data["licence"] or "not stated"),
        ("Citation", data["citation"] or "none"),
    ]
    parts = [
        f"# Model card: {card['name']}",
        "\n\n".join(answer(view)),
        "## What it is\n\n" + _table(("", ""), facts),
        "## What it promises\n\n" + _promise(view, card),
        f"## How good it is\n\n{_scores(card)}",
        "## Limits\n\n" + "\n".join(f"- {text}" for text in card["limits"]),
        "## How to use it\n\n" + _usage(view, card),
        "## Where it comes from\n\n"
        + _table(
            ("", ""),
            [
                ("Rounds", f"{card['rounds']['done']} of {card['rounds']['planned']}"),
                ("Scenario digest", f"`{card['scenario_digest']}`"),
                ("Source digest", f"`{card['source_digest']}`"),
                ("fedpriv", (card["versions"] or {}).get("fedpriv", "from source")),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _promise(view: RunView, card: Mapping[str, Any]) -> str:
    privacy = card["privacy"]
    if not privacy["enabled"]:
        return "Nothing: privacy was off. The model may repeat what it was trained on."
    if not view.label:
        return "No label was written; the run's ledgers say what was spent."
    rungs = [(f"one {unit}", rung(value)) for unit, value in privacy["ladder"].items()]
    ladder = _table((f"protected ({privacy['relation']})", f"epsilon at delta {small(privacy['delta'])}"), rungs)
    rows = [
        row for row in promise_rows(view.label) if row[0] in ("Compared with", "Adversary", "Random source", "Audit")
    ]
    return f"{ladder}\n\n" + "\n".join(f"- {term}: {text}" for term, text in rows)


def _scores(card: Mapping[str, Any]) -> str:
    metrics: Mapping[str, Mapping[str, float]] = card["metrics"]
    if not metrics:
        return "It was not scored."
    present = [name for name in _METRICS if any(name in values for values in metrics.values())]
    rows = [
        (MODELS.get(model, model), *(_score(name, values.get(name)) for name in present))
        for model, values in metrics.items()
    ]
    head = ("mean over clients", *(METRICS[name] for name in present))
    text = (
        f"On the {card['split']} part of the training clients' calendars, which training never saw. MSE, MAE and CRPS "
        f"are of values scaled by each client's standard deviation.\n\n{_table(head, rows)}"
    )
    apart: Mapping[str, Mapping[str, Mapping[str, float]]] = card["metrics_by_hidden"]
    if not apart:
        return text
    rows = [
        (MODELS.get(model, model), *(_score("mse", found.get(model, {}).get("mse")) for found in apart.values()))
        for model in metrics
    ]
    return f"{text}\n\n{_table(('MSE by what was hidden', *(KINDS[kind] for kind in apart)), rows)}"


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if name in SHARES else number(value)


def _usage(view: RunView, card: Mapping[str, Any]) -> str:
    lines = ["```"]
    if card["uses"]["forecast"]["possible"]:
        lines.append(
            f"fedpriv forecast {view.folder.path.name} --input load.csv --output forecast.csv --plot forecast.png"
        )
    if card["uses"]["impute"]["possible"]:
        lines.append(f"fedpriv impute {view.folder.path.name} --input load.csv --output filled.csv")
    lines += [
        "```",
        "",
        "The folder needs `scenario.toml`, `model.safetensors` and `model.json`; the rest may be left out.",
    ]
    return "\n".join(lines)


def _scaling(card: Mapping[str, Any]) -> str:
    scaling = card["scaling"]
    if scaling["kind"] == "bounds":
        return f"by public bounds, {scaling['low']:g} to {scaling['high']:g} {card['unit']}".rstrip()
    return "each window by the mean and deviation of its own readings"


def _shown(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a bar inside a cell would end it."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
