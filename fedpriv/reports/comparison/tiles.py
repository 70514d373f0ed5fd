"""The tiles under the answer: a few numbers to remember, each with what it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.cells import change
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.cost_words import cost_tiles
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.phrases import equal_in_practice, listed, size_words
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.numbers import at_most


def tiles(found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...]) -> list[dict[str, str]]:
    """`value` and `text` of each."""
    tiles: list[dict[str, str]] = []
    if value is not None and found.sweep.question == "collaboration":
        tiles += _joining_tiles(value)
    elif found.sweep.question == "curve" and (cost := cost_tiles(found)):
        tiles += cost
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
