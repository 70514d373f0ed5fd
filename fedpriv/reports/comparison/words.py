"""The answer in words for who reads nothing else: first the decision, then how sure, then the promise."""

from __future__ import annotations

import math

from fedpriv.reports.comparison.analysis import Analysis, Cell, cell_name
from fedpriv.reports.comparison.collaboration import WORDS, AtEpsilon, Collaboration, Setting
from fedpriv.reports.comparison.curves import BreakEven, break_even
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.statistics import Paired, cliff_word
from fedpriv.reports.tables import at_most, small
from fedpriv.reports.verdicts import between

OTHERS: tuple[Setting, ...] = (("centralised", True), ("local", True), ("federated", False))
_MANY = 4  # more names than this are counted, not listed


def headline(found: Analysis, value: Collaboration | None) -> str:
    """The decision in one sentence."""
    if value is not None and found.sweep.question == "collaboration":
        return _joining_headline(value)
    overall = found.overall
    if overall is None:
        return _curve_headline(found)
    rules = found.overall_trials.rules if found.overall_trials else found.contenders
    if overall.outcome == "winner":
        second = _next(found)
        return (
            f"{overall.best} is the best of {len(rules)}: {change_words(second.change[0])} than the next, {second.b}."
        )
    if overall.outcome == "no-evidence":
        return f"No evidence of a difference between {listed(rules)}."
    if overall.outcome == "cannot-tell":
        return f"{overall.best} has the least error, but these runs cannot say whether that is more than chance."
    others = [rule for rule in overall.not_worse if rule != overall.best]
    return f"{overall.best} has the least error; {listed(others)} may be as good."


def answer(found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...]) -> list[str]:
    """Paragraphs after the headline."""
    out: list[str] = []
    if value is not None and found.sweep.question == "collaboration":
        out += _joining(value)
    else:
        if found.overall is not None:
            out.append(_how_sure(found))
        out += [text for text in (_places(found), _worth(found), _left_behind(found)) if text]
    out.append(promise_words(promises))
    return [text for text in out if text]


# ---- clipping rules and other contenders ------------------------------------------------------------


def _next(found: Analysis) -> Paired:
    """The best against the one with the next least error."""
    assert found.overall is not None
    return next(pair for pair in found.overall.pairs if pair.a == found.overall.best)


def _how_sure(found: Analysis) -> str:
    """The overall verdict for somebody who has never heard of a p-value; the exact one stands further down."""
    overall = found.overall
    assert overall is not None
    if overall.outcome == "cannot-tell":
        return overall.text
    pairs = {
        pair.b: (pair, q) for pair, q in zip(overall.pairs, overall.adjusted, strict=True) if pair.a == overall.best
    }
    basis = f"{found_words(found)}; all {len(overall.pairs)} comparisons are allowed for."
    if overall.outcome == "no-evidence":
        far, _ = max(pairs.values(), key=lambda item: abs(item[0].mean))
        return (
            f"{overall.best} has the least error, {change_words(far.change[0])} than {far.b}, but that may well be "
            f"chance ({interval_words(far)}). It does not mean that they are equal: differences inside that interval "
            f"would go unnoticed. From {basis}"
        )
    beaten = [rule for rule in pairs if rule not in overall.not_worse]
    open_ = [rule for rule in pairs if rule in overall.not_worse]
    text = ""
    if open_:
        near, _ = pairs[open_[0]]
        text += f"It is not told from {listed(open_)} (from {near.b}: {interval_words(near)}). "
    if beaten:
        first, q = pairs[beaten[0]]
        text += (
            f"More than chance: its error is lower than that of {listed(beaten)}. Against {first.b}, the closest of "
            f"these, {interval_words(first)}, better for {first.better * 100:.0f} % of clients; if they were equal, a "
            f"difference like this would show up {_rarely(q)}. "
        )
        if cliff_word(first.cliff) == "negligible":
            text += "Certain is not large: against the spread between clients this difference is negligible. "
    return f"{text}From {basis}"


def _rarely(p: float) -> str:
    return "less than once in 1000 such comparisons" if p < 0.001 else f"about once in {1 / p:.0f} such comparisons"


def found_words(found: Analysis) -> str:
    """`3 seeds and 8 clients, averaged over 2 partitions and 3 epsilons`."""
    trials = found.overall_trials
    assert trials is not None
    clients = sorted({len(cell.trials.clients) for cell in found.cells.values()})
    text = (
        f"{len(trials.seeds)} seed{'s' if len(trials.seeds) > 1 else ''} and {' or '.join(map(str, clients))} clients"
    )
    parts = [f"{len(found.wheres)} partitions"] if len(found.wheres) > 1 else []
    parts += [f"{len(found.epsilons)} epsilons"] if len(found.epsilons) > 1 else []
    return text + (f", averaged over {' and '.join(parts)}" if parts else "")


def _places(found: Analysis) -> str:
    """In which cells the same holds, and where something else does."""
    cells = [cell for cell in found.cells.values() if cell.verdict is not None and cell.epsilon is not None]
    if found.overall is None or len(cells) < 2:
        return ""
    best = found.overall.best
    least = [cell for cell in cells if cell.best == best]
    text = f"{best} has the least error in {len(least)} of {len(cells)} combinations of partition and epsilon."
    sure = [cell for cell in cells if cell.verdict and cell.verdict.outcome == "winner"]
    if not sure:
        text += " No combination by itself has enough seeds to show a winner; the average over them is what decides."
    else:
        names = [f"{cell.verdict.best} ({cell_name(cell.where, cell.epsilon)})" for cell in sure if cell.verdict]
        text += f" Taken by itself, a combination shows a winner in {len(sure)}: {listed(names)}."
    worse = [
        cell for cell in cells if cell.verdict and best in cell.trials.rules and best not in cell.verdict.not_worse
    ]
    if worse:
        places = listed([f"{cell_name(cell.where, cell.epsilon)} ({cell.best} is better)" for cell in worse])
        text += f" Not everywhere: {best} is beaten at {places}."
    return text


def _worth(found: Analysis) -> str:
    """Against doing nothing private at all: the seasonal naive forecast."""
    rule, said = found.best, []
    for epsilon in found.epsilons:
        cells = [c for c in found.cells.values() if c.epsilon == epsilon and rule in c.gains]
        if cells:
            said.append(f"{_naive_words(cells, rule)} at epsilon {epsilon:g}")
    if not said:
        return ""
    return f"Against repeating the last day (seasonal naive, free of charge for privacy), {rule} has {listed(said)}."


def _naive_words(cells: list[Cell], rule: str) -> str:
    gains = [cell.gains[rule] for cell in cells]
    mean = sum(g.mean for g in gains) / len(gains)
    text = change_words(math.expm1(mean))
    if len(gains) == 1:
        return f"{text} ({interval_words(gains[0])})"
    worst = max(gains, key=lambda g: g.mean)
    return f"{text} (worst partition: {change_words(worst.change[0])})" if worst.mean > 0 > mean else text


def _left_behind(found: Analysis) -> str:
    epsilon = found.epsilons[-1] if found.epsilons else None
    fair = found.fairness.get((found.best, epsilon))
    if fair is None or math.isnan(fair.losers):
        return ""
    at = "" if epsilon is None else f" at epsilon {epsilon:g}"
    if fair.losers == 0:
        return f"Nobody is left behind{at}: with {found.best} every client has less error than its own seasonal naive."
    return (
        f"Not every client gains{at}: with {found.best}, {fair.losers * 100:.0f} % of clients have more error than "
        f"their own seasonal naive forecast; the worst has {-fair.gain_worst * 100:.0f} % more."
    )


# ---- one contender over epsilon ---------------------------------------------------------------------


def naive_break_even(found: Analysis, where: str, rule: str) -> BreakEven | None:
    """From which epsilon on a contender beats the seasonal baseline in one partition."""
    cells = sorted(
        (c for c in found.cells.values() if c.where == where and c.epsilon is not None and rule in c.gains),
        key=lambda c: c.epsilon or 0.0,
    )
    if not cells:
        return None
    shares = [c.gains[rule].change for c in cells]
    return break_even([c.epsilon or 0.0 for c in cells], *([-s[i] for s in shares] for i in (0, 2, 1)))


def _curve_headline(found: Analysis) -> str:
    rule = found.best
    even = naive_break_even(found, found.wheres[0], rule)
    if even is None:
        return f"One contender was run ({rule}); there is nothing to compare it with."
    at = f" ({found.wheres[0]})" if found.wheres[0] else ""
    if math.isinf(even.epsilon):
        return f"At no epsilon up to {even.high_end:g} does {rule} beat the seasonal naive forecast{at}."
    if not even.within:
        return f"{rule} beats the seasonal naive forecast at every epsilon that was run, from {even.low_end:g} on{at}."
    return f"{rule} beats the seasonal naive forecast from epsilon {even.words()} on{at}."


# ---- joining ----------------------------------------------------------------------------------------


def _joining_headline(value: Collaboration) -> str:
    last = value.joining[-1]
    mean, low, high = last.gain
    at = f"at epsilon {last.epsilon:g}"
    helped = sum(gain.gain > 0 for gain in last.clients)
    of = f"{helped} of {len(last.clients)} clients have less error than alone"
    if low > 0:
        return f"Joining pays {at}: {mean * 100:.1f} % less error than training alone on average; {of}."
    if high < 0:
        return f"Joining does not pay {at}: {-mean * 100:.1f} % more error than training alone on average; {of}."
    return f"No evidence that joining helps or hurts on average {at} ({change_words(-mean)} than alone); {of}."


def _joining(value: Collaboration) -> list[str]:
    alone = (
        "training alone, without noise because nothing is published"
        if not value.alternative[1]
        else ("training alone under the same promise")
    )
    last = value.joining[-1]
    text = [f"Joining means a federation that protects every client. It is compared with {alone}."]
    rows = [f"epsilon {at.epsilon:g}: {_gain_words(at)}" for at in value.joining]
    text.append("Average gain of joining, over seeds and clients: " + "; ".join(rows) + ".")
    if value.overall is not None and len(value.joining) > 1:
        text.append(_even_words(value, value.overall))
    losers, unsure = last.of("loses"), last.of("not told")
    said = []
    if losers:
        said.append(f"clearly lose: {listed(losers)}")
    if unsure:
        said.append(f"cannot be told with these seeds: {listed(unsure)}")
    if last.of("gains"):
        said.append(f"clearly gain: {listed(last.of('gains'))}")
    text.append(
        f"Client by client at epsilon {last.epsilon:g} (adjusted for {len(last.clients)} clients): "
        + "; ".join(said)
        + "."
    )
    against = [
        f"{WORDS[setting].lower()}: {change_words(pair.change[0])} ({between(pair)})"
        for setting in OTHERS
        if (pair := value.price.get((setting, last.epsilon))) is not None
    ]
    if against:
        text.append(f"The private federation at epsilon {last.epsilon:g} against " + "; against ".join(against) + ".")
    return text


def _even_words(value: Collaboration, even: BreakEven) -> str:
    if math.isinf(even.epsilon):
        text = f"By the means alone joining pays at no epsilon up to {even.high_end:g}."
    elif not even.within:
        text = f"By the means alone joining pays at every epsilon that was run, from {even.low_end:g} on."
    else:
        text = f"By the means alone joining pays from epsilon {even.words()} on."
    never = [client for client, own in value.by_client.items() if math.isinf(own.epsilon)]
    return text + (f" No break-even in this range for {listed(never)}." if never else "")


def _gain_words(at: AtEpsilon) -> str:
    return f"{change_words(-at.gain[0])} ({between(at.mean)})"


# ---- the promise ------------------------------------------------------------------------------------


def promise_words(promises: tuple[Promise, ...]) -> str:
    """What was promised to whom in these runs."""
    if not promises:
        return "None of these runs is private: nothing is promised to anyone."
    units = sorted({promise.unit for promise in promises})
    deltas = sorted({promise.delta for promise in promises if promise.delta is not None})
    budgets = sorted({promise.budget for promise in promises})
    epsilons = listed([f"{b:g}" for b in budgets]) if len(budgets) > 1 else f"{budgets[0]:g}"
    text = (
        f"What is promised: every client gets epsilon {epsilons} for one {' or one '.join(units)} over the whole run"
        + (f", at delta {' or '.join(small(d) for d in deltas)}" if deltas else "")
        + (", depending on the run" if len(budgets) > 1 else "")
        + ". Runs at one epsilon make the same promise, so their errors can be compared."
    )
    worst = max(promises, key=lambda promise: promise.committed or 0.0)
    if worst.committed is not None:
        text += f" The largest epsilon that any client committed is {at_most(worst.committed)}."
    if any(promise.seeded for promise in promises):
        text += " The noise was seeded to make runs repeatable: a simulation, not a guarantee."
    return text


# ---- small words ------------------------------------------------------------------------------------


def change_words(change: float) -> str:
    """`4.1 % less error`."""
    return f"{abs(change) * 100:.1f} % {'less' if change <= 0 else 'more'} error"


def interval_words(found: Paired) -> str:
    """`95 % interval: 6.9 % less to 1.2 % more`."""
    return f"{found.level * 100:g} % interval: {between(found)}"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """`a, b and c`; of many the first few and how many more."""
    if len(names) > 2 * _MANY:
        return f"{', '.join(names[:_MANY])} and {len(names) - _MANY} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
