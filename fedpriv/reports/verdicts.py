"""The answer in words: which rule won, by how much, how sure we are; or that nothing speaks for a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from fedpriv.reports.chance import Spread
from fedpriv.reports.ranks import RankTable, rank_table
from fedpriv.reports.statistics import LEVEL, Paired, Scale, Trials, cliff_word, holm, paired

Known = tuple[Spread | None, Spread | None]  # between seeds, between clients
Spreads = Callable[[str, str], Known]
MARGIN = 0.005  # share of the error within which two rules are equally good for whoever has to choose
_SAME = (0, b"", b"")
Outcome = Literal["winner", "tie", "no-evidence", "cannot-tell"]


@dataclass(frozen=True)
class Verdict:
    """What a comparison says.

    Attributes:
        outcome: `winner`: one rule beats every other; `tie`: some rules are better than others, but the best is not
            told from all; `no-evidence`: no pair differs; `cannot-tell`: one rule, or one seed and one client.
        best: the rule with the least mean error (geometric mean for ratios).
        not_worse: the rules that the data do not tell from the best, itself included.
        text: one paragraph.
        pairs: all pairs, with `adjusted` p-values by Holm in the same order.
        ranks: over clients; None with one client.
    """

    outcome: Outcome
    best: str
    not_worse: tuple[str, ...]
    text: str
    pairs: tuple[Paired, ...]
    adjusted: tuple[float, ...]
    ranks: RankTable | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for comparison.json."""
        ranks = self.ranks
        return {
            "outcome": self.outcome,
            "best": self.best,
            "not_worse": list(self.not_worse),
            "text": self.text,
            "pairs": [{**asdict(p), "p_holm": q} for p, q in zip(self.pairs, self.adjusted, strict=True)],
            "friedman": ranks and {"chi2": ranks.chi2, "p": ranks.p, "f": ranks.f, "f_p": ranks.f_p},
            "mean_ranks": ranks and dict(zip(ranks.rules, ranks.mean.tolist(), strict=True)),
            "critical_difference": ranks and ranks.critical,
        }


def verdict(
    trials: Trials,
    *,
    scale: Scale = "ratio",
    level: float = LEVEL,
    seed: int = 0,
    thing: str = "rule",
    clients: str = "",
    spreads: Spreads | None = None,
) -> Verdict:
    """Compares all pairs of rules, adjusts for their number, and says what follows.

    `thing` and `clients` are for the text: what a rule is called there, and what the clients are (`8 + 6 clients`).

    `spreads`: of a pair of rules, between seeds and between clients, where these are known better than from the table.

    All pairs count, not only those with the best rule: the best is picked from the same data, and testing
    it as if it had been named before would find winners among equals.
    """
    pooled = None if spreads is None else (lambda _, a, b: spreads(a, b))
    return verdicts({"": trials}, scale=scale, level=level, seed=seed, thing=thing, clients=clients, pooled=pooled)[""]


def verdicts(
    tables: Mapping[str, Trials],
    *,
    scale: Scale = "ratio",
    level: float = LEVEL,
    seed: int = 0,
    thing: str = "rule",
    clients: str = "",
    pooled: Callable[[str, str, str], Known] | None = None,
) -> dict[str, Verdict]:
    """A verdict for each table (a partition at an epsilon, say), adjusted for all pairs of all of them together.

    `pooled`: (table, rule, rule) -> spreads, what the tables say together about chance (`fedpriv.reports.pooling`).

    Who looks at twelve tables and reads the one with a winner has made twelve times as many comparisons.
    """
    known = pooled or (lambda *_: (None, None))
    orders = {name: _by_error(trials, scale) for name, trials in tables.items()}
    pairs = {
        name: tuple(
            paired(trials, a, b, scale=scale, level=level, seed=seed, spreads=known(name, a, b))
            for a, b in combinations(orders[name], 2)
        )
        for name, trials in tables.items()
    }
    keys = [_comparison(tables[name], p) for name, many in pairs.items() for p in many]
    asked = dict(zip(keys, (p.p for many in pairs.values() for p in many), strict=True))
    asked.pop(_SAME, None)
    by_key = dict(zip(asked, holm(list(asked.values())).tolist(), strict=True)) | {_SAME: 1.0}
    adjusted = iter([by_key[key] for key in keys])
    return {
        name: _decided(
            trials,
            orders[name],
            pairs[name],
            tuple(next(adjusted) for _ in pairs[name]),
            level=level,
            family=len(asked),
            thing=thing,
            clients=clients,
        )
        for name, trials in tables.items()
    }


def _comparison(trials: Trials, pair: Paired) -> tuple[int, bytes, bytes]:
    """What a pair compares: two rules that gave the same numbers everywhere are one rule, and ask nothing new."""
    one, two = (trials.of_rule(rule).tobytes() for rule in (pair.a, pair.b))
    return _SAME if one == two else (id(trials), min(one, two), max(one, two))


def _decided(
    trials: Trials,
    order: list[str],
    pairs: tuple[Paired, ...],
    adjusted: tuple[float, ...],
    *,
    level: float,
    family: int,
    thing: str,
    clients: str,
) -> Verdict:
    best = order[0]
    several = len(trials.rules) > 1 and len(trials.clients) > 1
    ranks = rank_table(trials.rules, trials.by_client, alpha=round(1 - level, 10)) if several else None
    if not pairs or not np.isfinite([p.p for p in pairs]).all():
        text = (
            f"{best} has the least {trials.metric}, but with {_count(len(trials.rules), thing)}, "
            f"{_count(len(trials.seeds), 'seed')} and {_count(len(trials.clients), 'client')} nothing can be said "
            "about chance."
        )
        return Verdict("cannot-tell", best, trials.rules, text, pairs, adjusted, ranks)
    found = [p for p, q in zip(pairs, adjusted, strict=True) if p.significant(q)]
    beaten = {p.b for p in found if p.a == best}
    not_worse = tuple(rule for rule in order if rule not in beaten)
    outcome: Outcome = "winner" if len(not_worse) == 1 else "tie" if found else "no-evidence"
    text = _text(trials, outcome, order, not_worse, pairs, adjusted, ranks, family, thing, clients)
    for names, source in ((trials.seeds, "seed"), (trials.clients, "client")):
        if len(names) == 1:
            text += f" With one {source}, how much results vary between {source}s is not known and not in this answer."
    return Verdict(outcome, best, not_worse, text, pairs, adjusted, ranks)


def _by_error(trials: Trials, scale: Scale) -> list[str]:
    """Rules by mean error, least first, in the mean that the pairs are compared in."""
    return [trials.rules[i] for i in np.argsort(trials.means(scale), kind="stable")]


def _text(
    trials: Trials,
    outcome: Outcome,
    order: list[str],
    not_worse: tuple[str, ...],
    pairs: tuple[Paired, ...],
    adjusted: tuple[float, ...],
    ranks: RankTable | None,
    family: int,
    thing: str,
    clients: str,
) -> str:
    best, last = order[0], order[-1]
    named = _listed([best])  # a name with a comma stands in quotation marks
    basis = f"{_count(len(trials.seeds), 'seed')} and {clients or _count(len(trials.clients), 'client')}"
    p_of = {(p.a, p.b): (p, q) for p, q in zip(pairs, adjusted, strict=True)}
    if outcome == "winner":
        second, q = p_of[best, order[1]]
        by_a_hair = second.scale == "ratio" and max(map(abs, second.change)) < MARGIN
        verb = "is ahead by a hair" if by_a_hair else "wins"
        than = f"{_change(second, trials.metric)} than {_listed(order[1:2])}"
        head = f"{named} {verb}: {than}, the next best ({_sure(second, q)})."
        if len(order) > 2:
            head += f" It also beats {_listed(order[2:])}."
        return f"{head} {_effect(second)} From {basis}, adjusted for {_count(family, 'comparison')}." + _omnibus(
            ranks, thing, order[:2]
        )
    if outcome == "no-evidence":
        far, q = p_of[best, last]
        return (
            f"No evidence of a difference between {_listed(order)} in {trials.metric}. The largest difference of "
            f"means, {named} against {_listed([last])}, is {_change(far, trials.metric)}, which may well be chance "
            f"({_sure(far, q)}). That is not proof that they are equal: differences inside the interval would go "
            f"unnoticed with {basis}." + _omnibus(ranks, thing, found=False)
        )
    worse = [rule for rule in order if rule not in not_worse]
    head = f"{named} has the least {trials.metric}, but there is no evidence that it differs from "
    head += _listed(not_worse[1:])
    near, q = p_of[best, not_worse[1]]
    head += f" ({_change(near, trials.metric)} than {_listed([not_worse[1]])}; {_sure(near, q)})."
    if worse:
        far, q = p_of[best, worse[-1]]
        than = f"{_change(far, trials.metric)} than {_listed(worse[-1:])}"
        head += f" It is better than {_listed(worse)}: {than} ({_sure(far, q)})."
    return f"{head} From {basis}, adjusted for {_count(family, 'comparison')}." + _omnibus(ranks, thing)


def _change(p: Paired, metric: str) -> str:
    mean = p.change[0]
    size = f"{abs(mean) * 100:.1f} %" if p.scale == "ratio" else f"{abs(mean):.3g}"
    return f"{size} {'less' if mean <= 0 else 'more'} {metric}"


def _sure(p: Paired, adjusted: float) -> str:
    """The interval in words and the adjusted p-value."""
    p_text = "p < 0.001" if adjusted < 0.001 else f"p = {adjusted:.2g}"
    return f"{p.level * 100:g} % interval: {between(p)}, {p_text}"


def between(p: Paired) -> str:
    """The interval from more to less error of the first rule: `1.2 % more to 6.9 % less`, `2.1 to 6.9 % less`."""
    _, low, high = p.change

    def size(value: float) -> str:
        return percent(value) if p.scale == "ratio" else f"{abs(value):.3g}"

    unit = " %" if p.scale == "ratio" else ""
    ends = [(size(value), "more" if value > 0 else "less") for value in (high, low)]
    if ends[0][1] == ends[1][1]:
        ends.sort(key=lambda end: float(end[0]))
        return f"{ends[0][0]} to {ends[1][0]}{unit} {ends[1][1]}"
    return " to ".join(f"{shown}{unit} {word}" for shown, word in ends)


def percent(change: float) -> str:
    """`4.1`, and of what would be 0.0 the first digit: `0.002`."""
    size = abs(change) * 100
    return f"{size:.1f}" if size >= 0.05 or size == 0 else f"{size:.1g}"


def _effect(p: Paired) -> str:
    return (
        f"It is better on {p.better * 100:.0f} % of clients; the shift is {cliff_word(p.cliff)} against the spread "
        f"between clients (Cliff's delta {p.cliff:+.2f})."
    )


def _omnibus(ranks: RankTable | None, thing: str, pair: list[str] | None = None, *, found: bool = True) -> str:
    if ranks is None or len(ranks.rules) < 3:
        return ""
    p = "p < 0.001" if ranks.f_p < 0.001 else f"p = {ranks.f_p:.2g}"
    if not ranks.differ:
        return f" The rank test over clients (Friedman, {p}) does not tell the {thing}s apart."
    if not found:
        return (
            f" The rank test over clients does (Friedman, {p}), but it takes the seeds that were run as given: luck "
            "that all clients share looks like a difference to it."
        )
    text = f" The rank test over clients (Friedman, {p}) says that not all {thing}s are equal"
    if pair is None:
        return f"{text}."
    if ranks.separates(*pair):
        return f"{text}, and tells {pair[0]} from {pair[1]}."
    return f"{text}, but does not tell {pair[0]} from {pair[1]}: ranks ignore by how much, and need larger differences."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    names = [f"“{name}”" if "," in name else name for name in names]  # a name with a comma would read as two
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
