"""The answer in words for who reads nothing else: first the decision, then how sure, then the promise."""

from __future__ import annotations

import math

from fedpriv.reports.comparison.analysis import (
    Analysis,
    against_naive,
    cell_name,
    client_changes,
    place_word,
)
from fedpriv.reports.comparison.cell_trials import clients_words
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.cost import beats_naive_from
from fedpriv.reports.comparison.cost_words import cost_answer, cost_headline
from fedpriv.reports.comparison.joining_words import joining_answer, joining_headline
from fedpriv.reports.comparison.meanings import RULES
from fedpriv.reports.comparison.phrases import (
    change_words,
    equal_in_practice,
    interval_words,
    listed,
    or_words,
    size_words,
)
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.numbers import at_most, small
from fedpriv.reports.statistics import Paired, cliff_word
from fedpriv.reports.verdicts import MARGIN

_NAMED = 4  # more names than this are counted in a headline


def headline(found: Analysis, value: Collaboration | None) -> str:
    """The decision in one sentence."""
    if value is not None and found.sweep.question == "collaboration":
        return joining_headline(value)
    if found.sweep.question == "curve" and (text := cost_headline(found)):
        return text
    return _who(found)


def _who(found: Analysis) -> str:
    """Which contender has the least error, and whether that is more than chance."""
    overall = found.overall
    if overall is None:
        return _curve_headline(found)
    rules = found.overall_trials.rules if found.overall_trials else found.contenders
    if overall.outcome == "winner":
        near = equal_in_practice(overall)
        if near:
            return _close_headline(found, near, len(rules))
        second = _next(found)
        return (
            f"{overall.best} is the best of {len(rules)}: {size_words(second.change[0])} "
            f"({change_words(second.change[0])} than the next, {second.b})."
        )
    if overall.outcome == "no-evidence":
        names = listed(rules) if len(rules) <= _NAMED else f"the {len(rules)} {found.sweep.thing}s"
        return f"No evidence of a difference between {names}."
    if overall.outcome == "cannot-tell":
        return f"{overall.best} has the least error, but these runs cannot say whether that is more than chance."
    others = [rule for rule in overall.not_worse if rule != overall.best]
    return f"{overall.best} has the least error; {listed(others)} may be as good."


def _close_headline(found: Analysis, near: tuple[str, ...], count: int) -> str:
    """A winner by a hair is no reason to choose it."""
    assert found.overall is not None
    best = found.overall.best
    text = f"{listed([best, *near])} are the best of {count} and less than {MARGIN * 100:g} % apart"
    after = next((pair for pair in found.overall.pairs if pair.a == best and pair.b not in near), None)
    if after is None:
        first = _next(found)
        return (
            f"{listed([best, *near])} are less than {MARGIN * 100:g} % apart: {best} has the least error, "
            f"{size_words(first.change[0])} ({change_words(first.change[0])} than {first.b})."
        )
    return (
        f"{text}: as far as the error goes, take any of them. They are {size_words(after.change[0])} than the rest "
        f"({change_words(after.change[0])} than the next, {after.b})."
    )


def answer(found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...]) -> list[str]:
    """Paragraphs after the headline."""
    out: list[str] = []
    if value is not None and found.sweep.question == "collaboration":
        out += joining_answer(value)
    elif found.sweep.question == "curve" and (said := cost_answer(found)):
        out += said
        if found.overall is not None:
            out.append(f"Between the {found.sweep.thing}s: {_who(found)}")
        out.append(_left_behind(found))
    else:
        if found.overall is not None:
            out.append(_rules_words(found))
            out.append(_how_sure(found))
        out += [_places(found), _worth(found), _left_behind(found)]
    out.append(promise_words(promises, several_settings=value is not None))
    return [text for text in out if text]


# ---- clipping rules and other contenders ------------------------------------------------------------


def _next(found: Analysis) -> Paired:
    """The best against the one with the next least error."""
    assert found.overall is not None
    return next(pair for pair in found.overall.pairs if pair.a == found.overall.best)


def _rules_words(found: Analysis) -> str:
    """What the best clipping rules do, for who does not know them by name."""
    assert found.overall is not None
    names = [found.overall.best, *equal_in_practice(found.overall)] if found.sweep.question == "clippers" else []
    said = [f"{name}: {RULES[name].rstrip('.')}" for name in names[:3] if name in RULES]
    return f"What they do: {'; '.join(said)}. The other rules are explained at the end of the page." if said else ""


def _how_sure(found: Analysis) -> str:
    """The overall verdict for somebody who has never heard of a p-value; the exact one stands further down."""
    overall = found.overall
    assert overall is not None
    if overall.outcome == "cannot-tell":
        return overall.text
    pairs = {
        pair.b: (pair, q) for pair, q in zip(overall.pairs, overall.adjusted, strict=True) if pair.a == overall.best
    }
    basis = f"{found_words(found)}; that all pairs were compared is allowed for."
    if overall.outcome == "no-evidence":
        far, _ = max(pairs.values(), key=lambda item: abs(item[0].mean))
        return (
            f"{overall.best} has the least error, {change_words(far.change[0])} than {far.b}, but that may well be "
            f"chance ({interval_words(far)}). It does not mean that they are equal: differences inside that interval "
            f"would go unnoticed. From {basis}"
        )
    near = equal_in_practice(overall)
    beaten = [rule for rule in pairs if rule not in overall.not_worse and rule not in near]
    open_ = [rule for rule in pairs if rule in overall.not_worse]
    text = ""
    if near:
        text += (
            f"That {overall.best} is ahead of {listed(near)} is more than chance, but less than {MARGIN * 100:g} %: "
            "too little to choose by. "
        )
    if open_:
        first, _ = pairs[open_[0]]
        text += f"It is not told from {listed(open_)} (from {first.b}: {interval_words(first)}). "
    if beaten:
        first, q = pairs[beaten[0]]
        text += (
            f"More than chance: its error is lower than that of {listed(beaten)}. Against {first.b}, the closest of "
            f"these, {interval_words(first)}, better for {first.better * 100:.0f} % of "
            f"{'all clients of all partitions' if len(found.wheres) > 1 else 'clients'}. If nothing differed at "
            f"all, chance alone would produce a difference like this {_rarely(q)}. "
        )
        if cliff_word(first.cliff) == "negligible":
            text += "Sure does not mean large: against the spread between clients this difference is negligible. "
        ranks = overall.ranks
        if not open_ and ranks is not None and len(ranks.rules) > 2 and not ranks.separates(overall.best, first.b):
            text += (
                f"A rank test over clients, which ignores by how much, does not separate {overall.best} from "
                f"{first.b}. "
            )
    return f"{text}From {basis}"


def _rarely(p: float) -> str:
    """Of sweeps as a whole: p is adjusted for all comparisons of one."""
    return "in less than 1 of 1000 sweeps like this" if p < 0.001 else f"in about {p * 100:.2g} of 100 sweeps like this"


def found_words(found: Analysis) -> str:
    """`3 seeds and 8 clients, averaged over 2 partitions and 3 epsilons`."""
    trials = found.overall_trials
    assert trials is not None
    text = f"{len(trials.seeds)} seed{'s' if len(trials.seeds) > 1 else ''} and {clients_words(trials)}"
    parts = [f"{len(found.wheres)} {place_word(found)}s"] if len(found.wheres) > 1 else []
    parts += [f"{len(found.epsilons)} epsilons"] if len(found.epsilons) > 1 else []
    text += f", averaged over {' and '.join(parts)}" if parts else ""
    return text + (" (the same data dealt out anew, so no partition adds clients to another)" if trials.parts else "")


def _places(found: Analysis) -> str:
    """In which cells the same holds, and where something else does."""
    cells = [cell for cell in found.cells.values() if cell.verdict is not None and cell.epsilon is not None]
    if found.overall is None or len(cells) < 2:
        return ""
    best = found.overall.best
    least = [cell for cell in cells if cell.best == best]
    among = f"combinations of {place_word(found)} and epsilon"
    text = f"{best} has the least error in {len(least)} of {len(cells)} {among}."
    sure = [cell for cell in cells if cell.verdict and cell.verdict.outcome == "winner"]
    if not sure:
        text += " No combination by itself shows a single winner; the average over them is what decides."
    else:
        names = [f"{cell.verdict.best} ({cell_name(cell.where, cell.epsilon)})" for cell in sure if cell.verdict]
        text += f" Taken by itself, a combination shows a winner in {len(sure)}: {listed(names)}."
    partly = [cell for cell in cells if cell.verdict and cell.verdict.outcome == "tie"]
    if partly:
        text += (
            f" In {len(partly)} of them it shows that some {found.sweep.thing}s are better than others (“Each "
            "combination” below)."
        )
    worse = [
        cell for cell in cells if cell.verdict and best in cell.trials.rules and best not in cell.verdict.not_worse
    ]
    if worse:
        places = listed([f"{cell_name(cell.where, cell.epsilon)} ({cell.best} is better)" for cell in worse])
        text += f" Not everywhere: {best} is beaten at {places}."
    return text


def _worth(found: Analysis) -> str:
    """Against doing nothing private at all: the seasonal naive forecast."""
    rule, said, open_ = found.best, [], False
    for epsilon in found.epsilons:
        gain = against_naive(found, epsilon, rule)
        if gain is not None:
            said.append(f"{change_words(gain.change[0])} at epsilon {epsilon:g} ({interval_words(gain)})")
            open_ = open_ or gain.low <= 0 <= gain.high
    if not said:
        return ""
    text = f"Against repeating the last day (seasonal naive, which needs no training), {rule} has {listed(said)}."
    return text + (" Where the interval holds both less and more, the gain may be chance." if open_ else "")


def _left_behind(found: Analysis) -> str:
    """Who has more error than its own seasonal naive forecast under the best contender, and at which epsilon."""
    said: list[str] = []
    scored = False
    for epsilon in found.epsilons or (None,):
        every = losers_of(found, epsilon, found.best)
        scored = scored or every is not None
        if every:
            names = [f"{client} ({change * 100:+.1f} %)" for client, change in every]
            said.append(("" if epsilon is None else f"at epsilon {epsilon:g} ") + listed(names))
    if not scored:
        return ""
    if not said:
        return (
            f"Nobody is left behind in these runs: with {found.best} every client has less error, mean over seeds, "
            "than its own seasonal naive."
        )
    return (
        f"Not every client gains. More error with {found.best} than with their own seasonal naive forecast, mean over "
        f"seeds: {'; '.join(said)}."
    )


def losers_of(found: Analysis, epsilon: float | None, rule: str) -> list[tuple[str, float]] | None:
    """(client, relative change) of clients with more error than seasonal naive, worst first; None if not scored."""
    out: list[tuple[str, float]] = []
    scored = False
    for cell in found.cells.values():
        if cell.epsilon == epsilon:
            changes = client_changes(found, cell, rule)
            scored = scored or bool(changes)
            name = f"{cell.where} / " if len(found.wheres) > 1 else ""
            out += [(name + client, change) for client, (change, _) in changes.items() if change > 0]
    return sorted(out, key=lambda item: -item[1]) if scored else None


# ---- one contender over epsilon ---------------------------------------------------------------------


def _curve_headline(found: Analysis) -> str:
    rule = found.best
    even = beats_naive_from(found, found.wheres[0], rule)
    if even is None:
        return f"One contender was run ({rule}); there is nothing to compare it with."
    at = f" ({found.wheres[0]})" if found.wheres[0] else ""
    if math.isinf(even.epsilon):
        return f"At no epsilon up to {even.high_end:g} does {rule} beat the seasonal naive forecast{at}."
    if not even.within:
        return f"{rule} beats the seasonal naive forecast at every epsilon that was run, from {even.low_end:g} on{at}."
    return f"{rule} beats the seasonal naive forecast from epsilon {even.words()} on{at}."


# ---- the promise ------------------------------------------------------------------------------------


def promise_words(promises: tuple[Promise, ...], *, several_settings: bool = False) -> str:
    """What was promised to whom in these runs."""
    if not promises:
        return "None of these runs is private: nothing is promised to anyone."
    units = sorted({promise.unit for promise in promises})
    deltas = sorted({promise.delta for promise in promises if promise.delta is not None})
    budgets = sorted({promise.budget for promise in promises})
    several = len(budgets) * len(units) > 1
    text = (
        f"What is promised: {'in each private run ' if several else ''}every client gets epsilon "
        f"{or_words([f'{b:g}' for b in budgets])} for {or_words([f'one {unit}' for unit in units])} over the whole run"
        + (f", at delta {' or '.join(small(d) for d in deltas)}" if deltas else "")
        + (
            ". In the federation it holds against the server, the other clients and whoever sees the model; the other "
            "settings ask for other trust (“What is promised”)."
            if several_settings
            else f". It holds against the server, the other clients and whoever sees the model. Runs at one epsilon "
            f"{'for one unit ' if len(units) > 1 else ''}make the same promise, so their errors can be compared."
        )
    )
    worst = max(promises, key=lambda promise: promise.committed or 0.0)
    if worst.committed is not None and not several and worst.committed > worst.budget * (1 + 1e-9):
        text += f" The largest epsilon that any client committed is {at_most(worst.committed)}."
    if any(promise.seeded for promise in promises):
        text += " The noise was seeded to make runs repeatable: a simulation, not a guarantee."
    return text
