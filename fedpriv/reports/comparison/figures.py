"""The pictures of a comparison: differences, error over epsilon, heat map, ranks, clients, examples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.axes import MAX_LINES, MAX_PANELS, epsilon_axis, label_lines, look, percent_axis
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.cost_figures import cost_figure
from fedpriv.reports.comparison.joining_figures import joining_plans
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.phrases import equal_in_practice
from fedpriv.reports.comparison.place_figures import client_charts, heat_map
from fedpriv.reports.critical import critical_difference_diagram
from fedpriv.reports.drawing import WIDTH, Draw, Palette, Picture, figure, png, svg, words
from fedpriv.reports.figures import example_drawing
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.verdicts import MARGIN

EXAMPLES = 2  # of each chosen run
_TITLE = 44  # characters of a picture's title
_AT_LINES = 8  # with more lines than this names stand in a legend

Plan = tuple[str, str, Draw | None]


def pictures(found: Analysis, value: Collaboration | None, directory: Path) -> dict[str, Picture]:
    """Draws all that there are data for, writes the PNGs into `directory`, and gives the SVGs by name."""
    plans: list[Plan] = [
        (
            "differences",
            "Dot plot: how much more error each contender has than the best, with intervals",
            _forest(found),
        ),
        ("cost", "Line chart: error against the same model without privacy, over epsilon", cost_figure(found)),
        ("curve", "Line chart: error over epsilon for each contender with bands", _curve(found)),
        ("heat", "Heat map: error of each contender under each partition, against seasonal naive", heat_map(found)),
        ("ranks", "Critical-difference diagram of mean ranks", _ranks(found)),
        ("clients", "Small charts: error of every client for each contender", client_charts(found)),
        *(joining_plans(value) if value is not None else ()),
        *_examples(found),
    ]
    directory.mkdir(exist_ok=True, parents=True)
    drawn: dict[str, Picture] = {}
    for name, alt, draw in plans:
        if draw is not None:
            drawn[name] = Picture(name, alt, svg(draw, name, alt))
            png(draw, directory / f"{name}.png")
    return drawn


# ---- by how much ------------------------------------------------------------------------------------


def _forest(found: Analysis) -> Draw | None:
    trials = found.overall_trials
    if trials is None or len(trials.rules) < 2 or found.overall is None:
        return None
    order = [rule for rule in found.contenders if rule in trials.rules]
    best = order[0]
    pairs = {pair.b: pair for pair in found.overall.pairs if pair.a == best}
    not_worse, near = found.overall.not_worse, equal_in_practice(found.overall)

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.25 + 0.3 * len(order))
        axes.axvline(0, color=palette.muted, linewidth=1)
        if near:
            axes.axvspan(0, MARGIN, color=palette.muted, alpha=0.13, linewidth=0)
        axes.plot([0], [0], "D", color=palette.text, markersize=6)
        ends = [0.0]
        for row, rule in enumerate(order[1:], start=1):
            pair = pairs[rule]  # the best against it: turned round
            mean, high, low = np.expm1([-pair.mean, -pair.low, -pair.high]).tolist()
            told = rule not in not_worse
            shade = palette.naive if told else palette.muted
            if math.isfinite(low) and math.isfinite(high):
                axes.plot([low, high], [row, row], color=shade, linewidth=2.2, solid_capstyle="butt")
                ends += [low, high]
            axes.plot([mean], [row], "o", color=shade, markersize=6.5, markerfacecolor=shade if told else "none")
            ends.append(mean)
        axes.set_yticks(range(len(order)), [words(rule, 24) for rule in order])
        axes.set_ylim(len(order) - 0.4, -0.6)
        span = max(ends) - min(ends) or 0.01
        axes.set_xlim(min(ends) - 0.06 * span, max(ends) + 0.06 * span)
        percent_axis(axes, "x")
        label = f"error against {words(best, 28)}"
        axes.set_xlabel(f"{label}{' ' if len(label) < 32 else chr(10)}(right: more error)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        handles = [
            axes.plot([], [], "o-", color=palette.naive, label="more error")[0],
            axes.plot([], [], "o-", color=palette.muted, markerfacecolor="none", label="not told apart")[0],
            axes.plot([], [], "D", color=palette.text, label="least error")[0],
        ]
        made.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)
        return made

    return draw


# ---- over epsilon -----------------------------------------------------------------------------------


def _curve(found: Analysis) -> Draw | None:
    if len(found.epsilons) < 2 or not found.baseline:
        return None
    wheres = [w for w in found.wheres if any((w, e) in found.cells for e in found.epsilons)][:MAX_PANELS]
    shown = found.contenders[:MAX_LINES]

    def draw(palette: Palette) -> Figure:
        columns = 1 if len(wheres) <= 2 else 2
        rows = math.ceil(len(wheres) / columns)
        made = Figure(figsize=(WIDTH, 0.55 + 0.24 * math.ceil(len(shown) / 3) + 2.5 * rows), layout="constrained")
        first: Axes | None = None
        for place, where in enumerate(wheres):
            axes = made.add_subplot(rows, columns, place + 1, sharey=first)
            first = first or axes
            _lines(axes, found, where, palette)
            if len(wheres) > 1:
                axes.set_title(words(where, 26 if columns == 2 else 40))
            if place >= len(wheres) - columns:
                axes.set_xlabel("epsilon (less is more private)" if columns == 1 else "epsilon")
            if place % columns:
                axes.tick_params(axis="y", labelleft=False)
            else:
                axes.set_ylabel("error against\nseasonal naive")
        assert first is not None
        handles, labels = first.get_legend_handles_labels()
        if len(wheres) > 1 or len(labels) > _AT_LINES:
            made.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=2.2, columnspacing=1.0)
        else:  # names where the lines end, and no legend to look up
            ends = [
                (float(np.atleast_1d(line.get_ydata())[-1]), str(line.get_label()), str(line.get_color()))
                for line in handles
                if isinstance(line, Line2D)
            ]
            label_lines(first, ends)
        return made

    return draw


def _lines(axes: Axes, found: Analysis, where: str, palette: Palette) -> None:
    axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.2, label="seasonal naive")
    for place, rule in enumerate(found.contenders):
        points = [
            (e, cell.gains[rule])
            for e in found.epsilons
            if (cell := found.cells.get((where, e))) is not None and rule in cell.gains
        ]
        if not points:
            continue
        x = [e for e, _ in points]
        mean, low, high = (np.array([g.change[i] for _, g in points]) for i in range(3))
        own = look(palette, found.contenders, rule)
        shade, known = own.colour, place < MAX_LINES
        if place == 0 and np.isfinite(low).all():  # bands of all would hide each other
            axes.fill_between(x, low, high, color=shade, alpha=0.16, linewidth=0)
        axes.plot(
            x,
            mean,
            color=shade,
            linestyle=own.style,
            marker=own.marker,
            markersize=4.5,
            linewidth=1.7 if known else 0.7,
            label=words(rule, 26) if known else None,
        )
    plain = found.cells.get((where, None))
    private = {rule for cell in found.cells.values() if cell.epsilon is not None for rule in cell.trials.rules}
    for rule, gain in (plain.gains if plain else {}).items():
        own = look(palette, found.contenders, rule)
        name = words(rule, 26)
        if rule in private:  # else it stands in the legend twice
            name = f"{name}, no privacy"
        axes.axhline(gain.change[0], color=own.colour, linestyle=own.style, linewidth=1.5, label=name)
    if len(found.epsilons) > 1:
        epsilon_axis(axes, found.epsilons)
    percent_axis(axes, "y")
    axes.grid(axis="y")


def _ranks(found: Analysis) -> Draw | None:
    ranks = found.overall.ranks if found.overall else None
    return critical_difference_diagram(ranks) if ranks is not None and len(ranks.rules) > 2 else None


# ---- examples ---------------------------------------------------------------------------------------


def example_runs(found: Analysis) -> list[tuple[str, str]]:
    """(run, why it was chosen): the best contender (of a collaboration the private federation) at the largest and at
    the least epsilon, first seed; not by result of the run itself."""
    chosen: list[tuple[str, str]] = []
    federation = WORDS["federated", True]
    shown = federation if federation in found.contenders else found.best
    epsilons: list[float | None] = list(dict.fromkeys(found.epsilons[-1:] + found.epsilons[:1])) or [None]
    for epsilon in epsilons:
        for run in found.sweep.done:
            fits = found.sweep.contender(run) == shown and run.budget == epsilon
            if fits and (found.sweep.folder(run) / "examples.npz").exists():
                at = "without privacy" if epsilon is None else f"epsilon {epsilon:g}"
                where = f", {found.sweep.where(run)}" if found.sweep.where(run) else ""
                chosen.append((run.run, f"{shown} at {at}{where}, seed {run.seed}"))
                break
    return chosen


def _examples(found: Analysis) -> list[Plan]:
    plans: list[Plan] = []
    for name, why in example_runs(found):
        examples = RunFolder.open(found.sweep.path / "runs" / name).examples
        if examples is None:
            continue
        # one window of each client first, then the next
        order = np.argsort(
            [np.flatnonzero(examples.client == c).tolist().index(i) for i, c in enumerate(examples.client)],
            kind="stable",
        )
        for i in order[:EXAMPLES]:
            title = f"{examples.client[i]}: {why}"
            title = title if len(title) <= _TITLE else f"{examples.client[i]}:\n{words(why, _TITLE)}"
            draw = example_drawing(examples, int(i), title=title)
            plans.append((f"example-{len(plans) + 1}", f"Line chart: {examples.client[i]}, {why}, with truth", draw))
    return plans
