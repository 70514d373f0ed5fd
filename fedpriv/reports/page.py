"""report.html: one self-contained page that starts with the answer and ends with what the numbers mean."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from markupsafe import Markup

from fedpriv.config import Scenario
from fedpriv.privacy.diagnostics import diagnostics_mark
from fedpriv.reports import heterogeneity
from fedpriv.reports.atomic import write_text
from fedpriv.reports.diagnostics import diagnostics_table
from fedpriv.reports.figures import MAX_CLIENTS, pictures
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.label_card import ladder_rows, promise_rows
from fedpriv.reports.meanings import meanings
from fedpriv.reports.numbers import at_most, number, small
from fedpriv.reports.page_tables import (
    DATASETS,
    averages_table,
    changes,
    client_table,
    differences_table,
    facts,
    kinds_table,
    percent,
    personal_table,
)
from fedpriv.reports.personal import personal_text
from fedpriv.reports.tables import FEDERATED, RunView, answer
from fedpriv.reports.template import PAGE, SCRIPT, STYLE

_SHORT = 130  # characters that fit the narrow card of the label; longer entries stand below it, full width


def write_report(path: Path | str) -> Path:
    """Writes figures/*.png and report.html into a run folder; also of a run that did not finish.

    Returns:
        The path of report.html.

    Raises:
        InputError: not a run folder, or a damaged file in it.
    """
    folder = RunFolder.open(path)
    html = render(RunView.of(folder))
    target = folder.path / "report.html"
    write_text(target, html)
    return target


def render(view: RunView) -> str:
    """The page as text; writes the PNGs on the way."""
    import jinja2

    promise = promise_rows(view.label) if view.private and view.label else []
    relations, rungs = ladder_rows(view.label) if view.private else ([], [])
    drawn = pictures(view, view.folder.path / "figures")
    card = heterogeneity.stored(view.folder.path)
    if card is not None:
        drawn[heterogeneity.NAME] = card[1]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        pictures=drawn,
        name=view.scenario.run.name,
        subtitle=_subtitle(view),
        answer=answer(view),
        seeded=view.private and bool(view.label.get("seeded")),
        notes=_notes(view),
        tiles=_tiles(view),
        promise=[row for row in promise if len(row[1]) <= _SHORT],
        fine_print=[row for row in promise if len(row[1]) > _SHORT],
        odds=_odds(view),
        relations=relations,
        rungs=rungs,
        split=view.split,
        differences=differences_table(card[0]) if card is not None else None,
        differences_note=heterogeneity.NOTE,
        averages=averages_table(view),
        by_kind=kinds_table(view),
        by_client=client_table(view),
        captions=_captions(view),
        diagnostics=diagnostics_table(view.folder.path),
        diagnostics_mark=diagnostics_mark(view.scenario),
        personal=personal_table(view),
        personal_words=personal_text(view),
        has_epsilon=view.private and ("epsilon" in drawn or "commitments" in drawn),
        examples=[key for key in drawn if key.startswith("example-")],
        **_example_texts(view),
        **_reproduce(view),
        changes=changes(view.scenario),
        facts=facts(view),
        meanings=meanings(view),
        version=metadata.version("fedpriv") if _installed() else "(from source)",
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


# ---- words ------------------------------------------------------------------------------------------


def _subtitle(view: RunView) -> str:
    scenario, count = view.scenario, len(view.clients())
    task = {
        "forecast": f"forecasts of {scenario.task.horizon} steps from {scenario.task.context}",
        "imputation": f"gap filling in windows of {scenario.task.window} steps",
        "mixed": f"forecasts and gap filling in windows of {scenario.task.window} steps",
    }[scenario.task.kind]
    parts = [
        f"{count} clients" if count != 1 else "1 client",
        f"data: {scenario.data.source}",
        task,
        f"{scenario.federation.rounds} rounds of {scenario.federation.local_steps} local "
        + ("step" if scenario.federation.local_steps == 1 else "steps"),
        _rule_words(scenario) if view.private else "no privacy",
        f"status: {view.status.get('status', 'unknown')}",
    ]
    return " · ".join(parts)


def _rule_words(scenario: Scenario) -> str:
    """The clipping rule, and what works around it."""
    chosen = scenario.privacy.rules()
    around = [chosen.controller, chosen.gradient_rule, chosen.filter]
    return "clipping rule " + " + ".join([chosen.clipper, *(name for name in around if name != "none")])


def _notes(view: RunView) -> list[str]:
    notes: list[str] = []
    state = view.status.get("status", "interrupted")
    if state != "done":
        notes.append(
            f"This run is not finished (status: {state}, last saved round {view.folder.last_round} of "
            f"{view.scenario.federation.rounds}). Go on with: fedpriv simulate {view.folder.path}/scenario.toml "
            f"--out {view.folder.path} --resume"
        )
    found = view.compare()
    if found is not None and 0 < found.better < len(found.reductions):
        worst = min(found.reductions, key=lambda client: found.reductions[client])
        notes.append(
            f"Not every client gained: {worst} has {abs(found.reductions[worst]) * 100:.1f} % more error than its own "
            "seasonal naive forecast."
        )
    return notes


def _tiles(view: RunView) -> list[dict[str, str]]:
    tiles: list[dict[str, str]] = []
    found = view.compare()
    if found is not None:
        word = "less" if found.reduction >= 0 else "more"
        tiles.append({"value": percent(abs(found.reduction)), "text": f"{word} squared error than seasonal naive"})
        tiles.append(
            {"value": f"{found.better} of {len(found.reductions)}", "text": "clients better than seasonal naive"}
        )
    if view.private and view.label:
        # A browser would break 1e-5 after its hyphen.
        unbroken = small(float(view.label.get("delta", 0))).replace("-", "\N{NON-BREAKING HYPHEN}")
        for unit, value in list(view.ladder().items())[:2]:
            tiles.append({"value": at_most(value), "text": f"epsilon for one {unit} at delta {unbroken}"})
    averages = view.averages().get(FEDERATED, {})
    if "nmae" in averages:
        tiles.append({"value": percent(averages["nmae"]), "text": "mean absolute error, share of the mean load"})
    if "coverage90" in averages:
        tiles.append({"value": percent(averages["coverage90"]), "text": "of readings inside the 90 % band"})
    return tiles


def _captions(view: RunView) -> dict[str, str]:
    count = len(view.scores())
    split, errors = view.errors_over_rounds()
    shown = f" Only the {MAX_CLIENTS} with most gain and most loss; all {count} are in the table."
    return {
        "ladder": "One run protects larger units less. The highlighted bar is the unit that the budget was set for; "
        "the others follow from the same record of what was released.",
        "clients": f"Mean squared error on the {view.split} part; clients with the largest improvement first."
        + (shown if count > MAX_CLIENTS else ""),
        "rounds": f"Mean squared error of the global model on the {split} part of {len(errors)} clients, relative to "
        "seasonal naive.",
        "epsilon": "Nominal epsilon of the clients after each round, the committed value and the budget.",
        "commitments": "Each client keeps its own ledger. The guarantee of the federation is that of its largest "
        "client, never a mean.",
    }


def _odds(view: RunView) -> str:
    """What the headline epsilon means, as odds."""
    epsilon = view.label.get("max_epsilon")
    if not view.private or not isinstance(epsilon, int | float):
        return ""
    unit = view.label.get("unit", "unit")
    reach = f"{number(math.exp(epsilon))} times" if epsilon < 30 else "so much that the promise is empty"
    return (
        f"In words: think of somebody who sees all that a client ever sends and wonders about one {unit}. Whatever the "
        f"odds were before, seeing it can change them by a factor of e^{number(epsilon)} at most, that is {reach} "
        f"(but for a chance of {small(float(view.label.get('delta', 0)))}). That is the worst case over all data and "
        "all attacks."
    )


def _example_texts(view: RunView) -> dict[str, str]:
    kind = view.scenario.task.kind
    return {
        "examples_title": "Forecast examples" if kind == "forecast" else "Examples",
        "examples_text": (
            "Held-out windows, evenly spread and not picked by result. The band holds the middle of the sampled "
            "forecasts; a good band contains the truth about as often as it says. Stamps are as in the data."
        ),
    }


def _reproduce(view: RunView) -> dict[str, str]:
    engine = view.status.get("engine", view.scenario.run.engine)
    text = "The folder's scenario.toml is complete; the same seed gives the same run on every engine."
    key = DATASETS.get(view.scenario.data.source, "")
    fetch = f"fedpriv data download {key}\n" if key else ""
    if key:
        text += " Fetch the public data first, or point data.dir at a copy."
    return {
        "reproduce_text": text,
        "command": f"{fetch}fedpriv simulate {view.folder.path}/scenario.toml --engine {engine} --out runs/again",
    }


def _installed() -> bool:
    try:
        metadata.version("fedpriv")
    except metadata.PackageNotFoundError:
        return False
    return True
