"""report.html of a sweep: the answer first, then by how much, over epsilon, where, for whom, what is promised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from fedpriv.config import Scenario
from fedpriv.reports.comparison import client_tables, run_tables, tables
from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.captions import captions
from fedpriv.reports.comparison.cells import Titled, change
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.doubts import unscored_words, weak_references
from fedpriv.reports.comparison.figures import example_runs
from fedpriv.reports.comparison.joining_tables import joining_tables
from fedpriv.reports.comparison.meanings import meanings
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.phrases import equal_in_practice, listed, size_words
from fedpriv.reports.comparison.promises import SEEDED, Promise, not_promised, promise_points
from fedpriv.reports.comparison.reproduce import base, facts, reproduce, shared, task, version
from fedpriv.reports.comparison.sweep import FEDERATED, value_words
from fedpriv.reports.comparison.template import PAGE
from fedpriv.reports.comparison.words import answer, headline
from fedpriv.reports.drawing import Picture
from fedpriv.reports.tables import METRICS, at_most
from fedpriv.reports.template import SCRIPT, STYLE

QUESTIONS = {
    "clippers": "Which clipping rule?",
    "collaboration": "What does a client gain by joining?",
    "curve": "What does privacy cost?",
    "components": "Which parts of the model?",
    "free": "What differs?",
}
_FEW_SEEDS = 3
_BAND = 0.9
_NARROW = 0.86  # less than this of what came true in the 90 % bands is said
_COVERED = 0.8  # less than this of what came true in the 90 % bands is warned of


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
        notes=_notes(found, value),
        hero=hero,
        tiles=_tiles(found, value, promises),
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
    first = ("joining",) if value is not None and found.sweep.question == "collaboration" else ()
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
        *([f"{len(found.wheres)} partitions"] if len(found.wheres) > 1 else []),
        *([f"{len(found.epsilons)} epsilons"] if len(found.epsilons) > 1 else []),
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


def _notes(found: Analysis, value: Collaboration | None) -> list[str]:
    notes: list[str] = []
    others = {run.run: run for run in found.sweep.others}
    if others:
        counts: dict[str, int] = {}
        for run in others.values():
            counts[run.status] = counts.get(run.status, 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        notes.append(
            f"Not all runs are done: {said}. What is compared are the runs that are; see “Not done” below. Runs that "
            "failed because the model diverged speak against what they tested, and the averages do not show it."
        )
    if unscored := unscored_words(found):
        notes.append(unscored)
    if value is None or found.sweep.question != "collaboration":  # there the answer begins with it
        notes += weak_references(found)
    missing = [*found.notes, *(value.notes if value is not None else ())]
    if missing:
        notes.append(" ".join(missing[:4]) + (f" And {len(missing) - 4} more like it." if len(missing) > 4 else ""))
    seeds = min(len(cell.trials.seeds) for cell in found.cells.values())
    if seeds < _FEW_SEEDS:
        notes.append(
            f"Only {seeds} seed{'s' if seeds > 1 else ''}: how much results vary from run to run is hardly known. Take "
            "differences as hints, and run more seeds before deciding."
        )
    return [*notes, *_narrow_bands(found)]


def _narrow_bands(found: Analysis) -> list[str]:
    """Forecast intervals that hold much less than they say are warned of: reserves would be planned by them."""
    if not (found.sweep.frame["metric"] == "coverage90").any():
        return []
    frame = found.sweep.scores("coverage90")
    federation = WORDS["federated", True]
    shown = federation if federation in found.contenders else found.best
    values = frame.loc[(frame["contender"] == shown) & (frame["model"] == FEDERATED), "value"]
    share = float(values.mean()) if len(values) else math.nan
    if math.isnan(share) or share >= _NARROW:
        return []
    if share >= _COVERED:
        shares = frame[frame["model"] == FEDERATED].groupby("contender")["value"].mean()
        nearest = str((shares - _BAND).abs().idxmin())
        other = "" if nearest == shown else f"; those of {nearest} come nearest with {shares[nearest] * 100:.0f} %"
        return [
            f"The forecast intervals are narrow: the 90 % bands of {listed([shown])} hold {share * 100:.0f} % of what "
            f"came true{other}. The answer above is about the error alone; see “Other measures”."
        ]
    return [
        f"The forecast intervals are far too narrow: the 90 % bands of {listed([shown])} hold {share * 100:.0f} "
        "% of what came true. The comparison of errors is not touched by that, but do not plan reserves by these bands."
    ]


def _tiles(found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...]) -> list[dict[str, str]]:
    tiles: list[dict[str, str]] = []
    if value is not None and found.sweep.question == "collaboration":
        tiles += _joining_tiles(value)
    elif found.overall is not None:
        sure = {"winner": "wins", "tie": "least error, not alone", "no-evidence": "least error, may be chance"}
        first = next((p for p in found.overall.pairs if p.a == found.overall.best), None)
        text = sure.get(found.overall.outcome, "least error")
        if first is not None and found.overall.outcome == "winner":
            near = equal_in_practice(found.overall)
            text = f"wins: {size_words(first.change[0])}"
            if near:
                text = f"least error; {listed(near)} {'is' if len(near) == 1 else 'are'} as good in practice"
                first = next((p for p in found.overall.pairs if p.a == found.overall.best and p.b not in near), first)
        tiles.append({"value": found.overall.best, "text": text})
        if first is not None:
            tiles.append({"value": change(first.change[0]).text, "text": f"error against {first.b}, the next"})
        cells = [c for c in found.cells.values() if c.verdict and c.epsilon is not None]
        if len(cells) > 1:
            least = sum(c.best == found.overall.best for c in cells)
            tiles.append({"value": f"{least} of {len(cells)}", "text": "combinations in which it has the least error"})
    for unit in dict.fromkeys(promise.unit for promise in promises):
        tiles += _promise_tiles([promise for promise in promises if promise.unit == unit], promises)
    return tiles


def _promise_tiles(own: Sequence[Promise], every: Sequence[Promise]) -> list[dict[str, str]]:
    """What is promised for one unit: the least and the largest epsilon, in one tile if there are other units."""
    unit, seeded = own[0].unit, " (simulation)" if own[0].seeded else ""
    if len(own) < len(every) and len(own) > 1:
        text = f"promised for one {unit}, depending on the run{seeded}"
        return [{"value": f"ε {own[0].budget:g} to {own[-1].budget:g}", "text": text}]
    tiles: list[dict[str, str]] = []
    for promise in own[:1] if len(own) < 2 else (own[0], own[-1]):
        weeks = promise.ladder.get("week")
        week = f"; one week: {at_most(weeks)}" if weeks and math.isfinite(weeks) and unit != "week" else ""
        tiles.append({"value": f"ε {promise.budget:g}", "text": f"promised for one {unit}{week}{seeded}"})
    return tiles


def _joining_tiles(value: Collaboration) -> list[dict[str, str]]:
    last, name = value.joining[-1], WORDS[value.alternative]
    chance = "" if last.sure else "; may be chance"
    text = f"error by joining at epsilon {last.epsilon:g}, against {name}{chance}"
    tiles = [{"value": change(-last.gain[0]).text, "text": text}]
    gains, loses = len(last.of("gains")), len(last.of("loses"))
    text = f"clients gain more than chance explains against {name}" + (f", {loses} lose" if loses else "")
    tiles.append({"value": f"{gains} of {len(last.clients)}", "text": text})
    if value.overall is not None and len(value.joining) > 1:
        even = value.overall.words().split(" (")[0]
        if value.established():
            tiles.append({"value": even, "text": "break-even epsilon, going by the averages"})
        else:
            text = f"break-even epsilon (the averages, which may be chance: {even})"
            tiles.append({"value": "not established", "text": text})
    return tiles


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
        "by-how-much",
        "By how much",
        "By how much, and how sure",
        found.overall.text if found.overall else "",
        pictures=have("differences"),
        tables=only(tables.pairs(found)),
    )
    yield Section("epsilon", "Over epsilon", "Error over epsilon", pictures=have("curve"))
    yield Section("where", "Where", "Where it holds", pictures=have("heat"), tables=only(tables.places(found)))
    first = found.wheres[0]
    missing = unscored_words(found)
    shown = f"The picture shows {first or 'all clients'}" + (
        "; the table has all partitions." if len(found.wheres) > 1 else "."
    )
    shown += f" {missing}" if missing else ""
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
    yield Section("tuning", "Tuning", "How the learning rates were chosen", _tuning_words(found), tables=_tuning(found))
    yield Section("not-done", "Not done", "Runs that are not done", tables=only(run_tables.not_done(found)))
    yield Section("runs", "Runs", "Every run", tables=[run_tables.runs(found)])


def _promise_text(promises: tuple[Promise, ...], value: Collaboration | None) -> str:
    if not promises:
        return "None of these runs is private: nothing is promised to anyone."
    budgets = " or ".join(dict.fromkeys(f"{promise.budget:g}" for promise in promises))
    units = " or one ".join(dict.fromkeys(promise.unit for promise in promises))
    text = f"To every client: epsilon {budgets} for one {units}, in each private run. "
    if value is not None:
        return text + "Who sees what, and who has to be trusted, differs between the settings."
    return text + "All contenders at one epsilon make the same promise, so their errors can be compared."


def _tuning_words(found: Analysis) -> str:
    tuning = found.sweep.tuning
    if not tuning:
        return (
            f"Nothing was tuned in this sweep: every {found.sweep.thing} ran with the learning rate of the settings or "
            "with the public rule of the library, which knows noise, batch and model size and no data. One that wants "
            "another rate is at a disadvantage here."
        )
    where = _of_tuning(found, "scenario") or "synthetic or public data"
    trials = _of_tuning(found, "trials")
    many = f" with {trials} trials each" if trials not in (None, "", 0) else " with the same number of trials for each"
    return (
        f"Chosen for every {found.sweep.thing} on {value_words(where)}{many}, never on the test part of the clients "
        "here, so it costs them no privacy. Tuning on the clients' own readings would have to be paid for: k tries at "
        "epsilon e cost up to k times e by plain composition."
    )


def _of_tuning(found: Analysis, key: str) -> Any:
    for source in (found.sweep.tuning, found.sweep.settings.get("tuning")):
        if isinstance(source, Mapping) and source.get(key) not in (None, ""):
            return source[key]
    return None


def _tuning(found: Analysis) -> list[Titled]:
    """Whatever rows tuning.json lists, as a table."""
    from fedpriv.reports.cells import Cell, Grid, Head

    tuning = found.sweep.tuning
    rows = (
        next((v for v in tuning.values() if isinstance(v, list) and v and isinstance(v[0], Mapping)), [])
        if isinstance(tuning, Mapping)
        else []
    )
    keys = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, list)))

    def cell(value: Any) -> Cell:
        if isinstance(value, Mapping):
            return Cell(", ".join(f"{k} {value_words(v)}" for k, v in value.items()) or "–")
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        return Cell(value_words(value), number)

    if not rows:
        return []
    return [
        Titled("", Grid([Head(k.replace("_", " ")) for k in keys], [[cell(row.get(k)) for k in keys] for row in rows]))
    ]
