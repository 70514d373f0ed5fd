"""report.html of a sweep: the answer first, then by how much, over epsilon, where, for whom, what is promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from markupsafe import Markup

from fedpriv.config import Scenario
from fedpriv.reports.comparison import client_tables, run_tables, tables
from fedpriv.reports.comparison.analysis import Analysis, place_word
from fedpriv.reports.comparison.captions import captions
from fedpriv.reports.comparison.cells import Titled
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.cost_words import cost_table
from fedpriv.reports.comparison.divisions import division_table
from fedpriv.reports.comparison.doubts import notes, unscored_words
from fedpriv.reports.comparison.figures import example_runs
from fedpriv.reports.comparison.joining_tables import joining_tables
from fedpriv.reports.comparison.meanings import meanings
from fedpriv.reports.comparison.phrases import listed, or_words
from fedpriv.reports.comparison.promises import SEEDED, Promise, not_promised, promise_points
from fedpriv.reports.comparison.reproduce import base, facts, reproduce, shared, task, version
from fedpriv.reports.comparison.template import PAGE
from fedpriv.reports.comparison.tiles import tiles
from fedpriv.reports.comparison.tuning_words import tuning_tables, tuning_words
from fedpriv.reports.comparison.words import answer, headline
from fedpriv.reports.drawing import Picture
from fedpriv.reports.tables import METRICS
from fedpriv.reports.template import SCRIPT, STYLE

QUESTIONS = {
    "clippers": "Which clipping rule?",
    "collaboration": "What does a client gain by joining?",
    "curve": "What does privacy cost?",
    "components": "Which parts of the model?",
    "free": "What differs?",
}


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    short: str
    title: str
    text: str = ""
    warning: str = ""
    points: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    not_promised: list[str] = field(default_factory=list[str])
    pictures: list[str] = field(default_factory=list[str])
    tables: list[Titled] = field(default_factory=list[Titled])


def render(
    found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...], drawn: Mapping[str, Picture]
) -> str:
    """The page as text."""
    import jinja2

    hero = _hero(found, value, drawn)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        pictures=drawn,
        captions=captions(found, value),
        name=found.sweep.name,
        about=str(found.sweep.table.get("about") or ""),
        subtitle=_subtitle(found, value),
        headline=headline(found, value),
        answer=answer(found, value, promises),
        notes=notes(found, value),
        hero=hero,
        tiles=tiles(found, value, promises),
        sections=[
            section
            for section in _sections(found, value, promises, drawn, hero)
            if section.pictures or any(t.grid.rows for t in section.tables) or section.id in ("tuning", "promise")
        ],
        meanings=meanings(found, value),
        shared=shared(found),
        facts=facts(found),
        **reproduce(),
        version=version(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _hero(found: Analysis, value: Collaboration | None, drawn: Mapping[str, Picture]) -> str:
    """The one picture that goes with the answer."""
    first = {"collaboration": ("joining",), "curve": ("cost",)}.get(found.sweep.question, ())
    return next((key for key in (*first, "differences", "curve", "heat", "clients") if key in drawn), "")


def _subtitle(found: Analysis, value: Collaboration | None) -> str:
    sweep = found.sweep
    trials = [cell.trials for cell in found.cells.values()]
    seeds = max(len(t.seeds) for t in trials)
    clients = sorted({len(t.clients) for t in trials})
    settings = Scenario().override(base(found))
    compared = found.contenders
    if value is None and found.overall_trials is not None:
        compared = found.overall_trials.rules
    parts = [
        QUESTIONS[sweep.question],
        f"{len(compared)} {sweep.thing}s compared" if len(compared) > 1 else found.best,
        *([f"{len(found.wheres)} {place_word(found)}s"] if len(found.wheres) > 1 else []),
        *([_epsilons(found)] if found.epsilons else []),
        f"{seeds} seed{'s' if seeds != 1 else ''}",
        f"{' or '.join(map(str, clients))} clients",
        f"data: {settings.data.source}",
        task(settings),
        f"error: {METRICS.get(sweep.metric, sweep.metric)} on held-out data",
        f"{settings.federation.rounds} rounds",
        f"{len({run.run for run in sweep.done})} runs done",
        *([f"{len({run.run for run in sweep.others})} not"] if sweep.others else []),
    ]
    return " · ".join(parts)


def _epsilons(found: Analysis) -> str:
    """`epsilon 8`, `epsilon 1, 4 and 8`, and whether there are runs without privacy."""
    text = f"epsilon {listed([f'{epsilon:g}' for epsilon in found.epsilons])}"
    return text + (" and no privacy" if any(epsilon is None for _, epsilon in found.cells) else "")


# ---- sections ---------------------------------------------------------------------------------------


def _sections(
    found: Analysis,
    value: Collaboration | None,
    promises: tuple[Promise, ...],
    drawn: Mapping[str, Picture],
    hero: str,
) -> Iterator[Section]:
    def have(*keys: str) -> list[str]:
        return [key for key in keys if key in drawn and key != hero]

    def only(*found_: Titled | None) -> list[Titled]:
        return [table for table in found_ if table is not None]

    if value is not None:
        text = "" if found.sweep.question == "collaboration" else "Some clients were also trained alone."
        yield Section(
            "joining-section",
            "Joining",
            "The value of joining",
            text,
            pictures=have("joining", "joining-epsilon", "settings", "left-out", "shapley"),
            tables=joining_tables(value),
        )
    yield Section(
        "cost-section",
        "Cost of privacy",
        "What privacy costs",
        "The private model against the same model without noise, on the same seeds and clients.",
        pictures=have("cost"),
        tables=only(cost_table(found)),
    )
    yield Section(
        "by-how-much",
        "By how much",
        "By how much, and how sure",
        found.overall.text if found.overall else "",
        pictures=have("differences"),
        tables=only(tables.pairs(found)),
    )
    yield Section("epsilon", "Over epsilon", "Error over epsilon", pictures=have("curve"))
    yield Section(
        "where",
        "Where",
        "Where it holds",
        pictures=have("heat"),
        tables=only(tables.places(found), division_table(found)),
    )
    missing, shown = unscored_words(found), ""
    if len(found.wheres) > 1:
        shown = f"The picture shows {found.wheres[0]}; the table has all {place_word(found)}s. "
    shown += missing
    yield Section(
        "clients-section",
        "For whom",
        "For whom",
        shown,
        pictures=have("clients"),
        tables=only(client_tables.fair(found), client_tables.by_client(found)),
    )
    yield Section("ranks-section", "Ranks", "Ranks over clients", pictures=have("ranks"))
    yield Section(
        "promise",
        "What is promised",
        "What is promised, and to whom",
        _promise_text(promises, value),
        warning=SEEDED if any(promise.seeded for promise in promises) else "",
        points=promise_points(promises, value),
        not_promised=not_promised(promises),
        tables=only(tables.ladder(promises)),
    )
    examples = [key for key in drawn if key.startswith("example-")]
    chosen = "; ".join(why for _, why in example_runs(found))
    yield Section(
        "examples",
        "Examples",
        "Examples",
        f"Held-out windows of: {chosen}. Each picture is the load of the client named above it. Evenly spread windows, "
        "not picked by result.",
        pictures=examples,
    )
    yield Section("measures", "Other measures", "Other measures", tables=only(tables.metrics(found)))
    yield Section(
        "tuning", "Tuning", "How the learning rates were chosen", tuning_words(found), tables=tuning_tables(found)
    )
    yield Section("not-done", "Not done", "Runs that are not done", tables=only(run_tables.not_done(found)))
    yield Section("runs", "Runs", "Every run", tables=[run_tables.runs(found)])


def _promise_text(promises: tuple[Promise, ...], value: Collaboration | None) -> str:
    if not promises:
        return "None of these runs is private: nothing is promised to anyone."
    budgets = or_words(list(dict.fromkeys(f"{budget:g}" for budget in sorted({p.budget for p in promises}))))
    units = " or one ".join(dict.fromkeys(promise.unit for promise in promises))
    text = f"To every client: epsilon {budgets} for one {units}, in each private run. "
    if value is not None:
        return text + "Who sees what, and who has to be trusted, differs between the settings."
    same = "one epsilon for one unit" if " or " in units else "one epsilon"
    return f"{text}All contenders at {same} make the same promise, so their errors can be compared."
