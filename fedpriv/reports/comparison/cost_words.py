"""What privacy costs, in words, tiles and a table; the answer of a page whose question is the curve over epsilon."""

from __future__ import annotations

import math

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import Analysis, place_word
from fedpriv.reports.comparison.cells import Titled, change, span
from fedpriv.reports.comparison.cost import NEAR, Cost, costs
from fedpriv.reports.comparison.curves import BreakEven
from fedpriv.reports.comparison.phrases import change_words, listed
from fedpriv.reports.statistics import Paired
from fedpriv.reports.verdicts import between

_NEAR_WORDS = f"within {NEAR * 100:g} % of no noise"


def main_costs(found: Analysis) -> list[Cost]:
    """Of the contender with the least error, place by place."""
    every = costs(found)
    first = next((rule for rule in found.contenders if any(c.contender == rule for c in every)), "")
    return [cost for cost in every if cost.contender == first]


def cost_headline(found: Analysis) -> str:
    """The cost at the largest and at the least epsilon in one sentence; empty where no run without privacy is there."""
    main = main_costs(found)
    if not main:
        return ""
    first, *rest = main
    ends = _ends(first)
    sizes = " and ".join(f"{_size(pair)} at epsilon {epsilon:g}" for epsilon, pair in ends)
    name = first.contender if several(costs(found)) else "the model"
    text = f"With privacy{_for(first.where)} {name} has {sizes} than the same model without noise"
    more = [f"{_at(cost.where)} {' and '.join(_size(pair) for _, pair in _ends(cost))}" for cost in rest[:2]]
    return f"{text}{'; ' if more else ''}{'; '.join(more)}."


def cost_answer(found: Analysis) -> list[str]:
    """Paragraphs after it: every epsilon with its interval, from which epsilon on it is near, the other contenders."""
    main, out = main_costs(found), []
    for cost in main:
        place = _for(cost.where).strip()
        start = (
            f"{place[:1].upper()}{place[1:]}: {_NEAR_WORDS}" if place else f"{_NEAR_WORDS[0].upper()}{_NEAR_WORDS[1:]}"
        )
        text = f"{start} {_from(cost.near)}"
        if cost.beats is not None:
            text += f"; better than repeating the last day (seasonal naive) {_from(cost.beats)}"
        rows = [f"{epsilon:g}: {change_words(p.change[0])} ({between(p)})" for epsilon, p in cost.points.items()]
        out.append(f"{text}. Against no noise, with 95 % intervals, at epsilon {'; at '.join(rows)}.")
    if not main:
        return out
    if main[0].other:
        out.append(f"The runs without noise also differ in {listed(main[0].other)}: what suits them best.")
    others = [cost for cost in costs(found) if cost.contender != main[0].contender and cost.where == main[0].where]
    for cost in others[:3]:
        sizes = " and ".join(f"{_size(pair)} at epsilon {epsilon:g}" for epsilon, pair in _ends(cost))
        out.append(f"The same{_for(cost.where)} with {cost.contender}: {sizes}.")
    return out


def cost_tiles(found: Analysis) -> list[dict[str, str]]:
    """The cost at both ends, and from which epsilon on it is small."""
    main = main_costs(found)
    if not main:
        return []
    first, place = main[0], _for(main[0].where)
    tiles = [
        {
            "value": change(pair.change[0]).text,
            "text": f"error at epsilon {epsilon:g} against no noise{place}{_chance(pair)}",
        }
        for epsilon, pair in _ends(first)
    ]
    tiles.append({"value": _short(first.near), "text": f"from here on {_NEAR_WORDS}{place}"})
    if first.beats is not None:
        tiles.append({"value": _short(first.beats), "text": f"from here on better than seasonal naive{place}"})
    return tiles


def cost_table(found: Analysis) -> Titled | None:
    """Every contender at every place and epsilon against its twin without noise and against seasonal naive."""
    every = costs(found)
    if not every:
        return None
    places, many = len(found.wheres) > 1, several(every)
    heads = [
        *([Head(found.sweep.thing.capitalize())] if many else []),
        *([Head(place_word(found).capitalize())] if places else []),
        Head("epsilon"),
        Head("against no noise", "error against the same model without privacy, geometric mean over seeds and clients"),
        Head("95 % interval", "over seeds and clients"),
        Head(_NEAR_WORDS),
        Head("against naive", "error against the seasonal naive forecast"),
        Head("95 % interval", "over seeds and clients"),
    ]
    rows: list[list[Cell]] = []
    for cost in every:
        for epsilon, pair in cost.points.items():
            cell = found.cells[cost.where, epsilon]
            gain = cell.gains.get(cost.contender)
            row = [Cell(cost.contender)] if many else []
            row += [Cell(cost.where)] if places else []
            row += [
                Cell(f"{epsilon:g}", epsilon),
                change(pair.change[0], sure=not pair.low <= 0 <= pair.high),
                span(*pair.change[1:]),
                _near(pair),
            ]
            if gain is None:
                row += [Cell("–")] * 2
            else:
                row += [change(gain.change[0], sure=not gain.low <= 0 <= gain.high), span(*gain.change[1:])]
            rows.append(row)
    text = (
        f"Plus: privacy costs that much more error. “Yes” and “no” under “{_NEAR_WORDS}”: the whole interval is on "
        "that side; else it is said what the mean says. Grey: may be chance."
    )
    return Titled("At every epsilon", Grid(heads, rows), text)


def several(every: list[Cost]) -> bool:
    """Whether there are costs of more than one contender, so that they need names."""
    return len({cost.contender for cost in every}) > 1


def _ends(cost: Cost) -> list[tuple[float, Paired]]:
    """The largest epsilon, and the least one."""
    points = list(cost.points.items())
    return [points[-1], *points[:1]] if len(points) > 1 else points


def _near(pair: Paired) -> Cell:
    limit = math.log1p(NEAR)
    if pair.high <= limit:
        return Cell("yes", 0.0, "good")
    if pair.low > limit:
        return Cell("no", 2.0, "bad")
    return Cell("on average, may be chance" if pair.mean <= limit else "no on average, may be chance", 1.0)


def _size(pair: Paired) -> str:
    return change_words(pair.change[0]) + (" (may be chance)" if pair.low <= 0 <= pair.high else "")


def _chance(pair: Paired) -> str:
    return "; may be chance" if pair.low <= 0 <= pair.high else ""


def _from(even: BreakEven) -> str:
    """`from epsilon about 2.1 (1.5 to 3.2) on`, `at every epsilon that was run, from 0.5 on`."""
    if math.isinf(even.epsilon):
        return f"at no epsilon up to {even.high_end:g}"
    if even.within:
        return f"from epsilon {even.words()} on"
    sure = even.most <= even.low_end
    unsure = "" if sure else " (beyond chance "
    if not sure:
        unsure += "at none of them)" if math.isinf(even.most) else f"from about {even.most:.2g} on)"
    return f"at every epsilon that was run, from {even.low_end:g} on{unsure}"


def _short(even: BreakEven) -> str:
    if math.isinf(even.epsilon):
        return f"none up to ε {even.high_end:g}"
    return f"ε {even.epsilon:.2g}" if even.within else f"ε {even.low_end:g} or less"


def _for(where: str) -> str:
    """` for one day` of a unit of privacy, ` (iid)` of any other place."""
    unit = where.removeprefix("unit ")
    return "" if not where else f" for one {unit}" if unit != where and " " not in unit else f" ({where})"


def _at(where: str) -> str:
    return _for(where).strip()
