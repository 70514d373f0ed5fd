"""The pictures of a comparison: differences, error over epsilon, heat map, ranks, clients, examples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fedpriv.reports.comparison.analysis import Analysis, Cell, client_changes, option
from fedpriv.reports.comparison.axes import epsilon_axis, label_lines, look, percent_axis
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.joining_figures import joining_plans
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.critical import critical_difference_diagram
from fedpriv.reports.drawing import WIDTH, Draw, Palette, Picture, figure, png, svg, words
from fedpriv.reports.figures import example_drawing
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.statistics import paired

MAX_LINES = 8  # contenders drawn in colour; the rest are thin and grey
MAX_PANELS = 6
MAX_CLIENTS = 12
EXAMPLES = 2  # of each chosen run
_SHORT_NAME = 16  # three longer names do not fit beside each other
_AT_LINES = 8  # with more lines than this names stand in a legend
_CAP = 1.0  # shares beyond which a heat map's colour no longer deepens

Plan = tuple[str, str, Draw | None]


def pictures(found: Analysis, value: Collaboration | None, directory: Path) -> dict[str, Picture]:
    """Draws all that there are data for, writes the PNGs into `directory`, and gives the SVGs by name."""
    plans: list[Plan] = [
        (
            "differences",
            "Dot plot: how much more error each contender has than the best, with intervals",
            _forest(found),
        ),
        ("curve", "Line chart: error over epsilon for each contender with bands", _curve(found)),
        ("heat", "Heat map: error of each contender under each partition, against seasonal naive", _heat(found)),
        ("ranks", "Critical-difference diagram of mean ranks", _ranks(found)),
        ("clients", "Small charts: error of every client for each contender", _clients(found)),
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
    pairs = {rule: paired(trials, rule, best) for rule in order[1:]}
    not_worse = found.overall.not_worse

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.15 + 0.3 * len(order))
        axes.axvline(0, color=palette.muted, linewidth=1)
        axes.plot([0], [0], "D", color=palette.text, markersize=6)
        ends = [0.0]
        for row, rule in enumerate(order[1:], start=1):
            mean, low, high = pairs[rule].change
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
        axes.set_xlabel(f"error against {words(best, 20)} (right: more error)")
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
    for rule, gain in (plain.gains if plain else {}).items():
        own = look(palette, found.contenders, rule)
        name = words(rule, 26)
        name = name if rule not in found.contenders else f"{name}, no privacy"  # else it stands in the legend twice
        axes.axhline(gain.change[0], color=own.colour, linestyle=own.style, linewidth=1.5, label=name)
    if len(found.epsilons) > 1:
        epsilon_axis(axes, found.epsilons)
    percent_axis(axes, "y")
    axes.grid(axis="y")


# ---- heat map ---------------------------------------------------------------------------------------


def _heat(found: Analysis) -> Draw | None:
    if not found.baseline or len(found.contenders) < 2:
        return None
    private: list[float | None] = list(found.epsilons)
    epsilons: list[float | None] = private or [None]
    if len(found.wheres) == 1:  # one panel, epsilons across
        panels = [
            ("", [(f"epsilon {e:g}" if e is not None else "", found.cells.get((found.wheres[0], e))) for e in epsilons])
        ]
    else:
        panels = [
            (
                f"epsilon {e:g}" if e is not None else "without privacy",
                [(w, found.cells.get((w, e))) for w in found.wheres],
            )
            for e in epsilons[:MAX_PANELS]
        ]
    rules = [r for r in found.contenders if any(c and r in c.gains for _, columns in panels for _, c in columns)]
    columns = max(len(columns) for _, columns in panels)

    def draw(palette: Palette) -> Figure:
        height = 0.27 * len(rules)
        made = Figure(figsize=(WIDTH, 0.3 + (height + 0.75) * len(panels)), layout="constrained")
        for place, (title, cells) in enumerate(panels):
            axes = made.add_subplot(len(panels), 1, place + 1)
            for column, (_, cell) in enumerate(cells):
                for row, rule in enumerate(rules):
                    _square(axes, column, row, cell, rule, palette, many=columns > 4)
            axes.set_xlim(-0.5, columns - 0.5)
            axes.set_ylim(len(rules) - 0.5, -0.5)
            longest = 26 if columns <= 2 else 15 if columns <= 4 else 10
            axes.set_xticks(range(len(cells)), [words(name, longest) for name, _ in cells])
            axes.set_yticks(range(len(rules)), [words(rule, 25) for rule in rules])
            axes.xaxis.tick_top()
            axes.tick_params(length=0)
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
            if title:
                axes.set_title(title)
        return made

    return draw


def _square(axes: Axes, column: int, row: int, cell: Cell | None, rule: str, palette: Palette, *, many: bool) -> None:
    gain = cell.gains.get(rule) if cell else None
    if cell is None or gain is None:
        axes.text(column, row, "–", ha="center", va="center", color=palette.muted)
        return
    change = gain.change[0]
    shade, depth = (palette.ours if change < 0 else palette.naive), min(abs(change), _CAP) / _CAP
    if gain.low <= 0 <= gain.high:
        shade = palette.muted
    axes.add_patch(
        Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=shade, alpha=0.06 + 0.5 * depth**0.6, linewidth=0)
    )
    best = option(cell) == rule
    shown = f"{change * 100:+.0f}" if many else f"{change * 100:+.1f} %"
    text = shown.replace("-", "−") + (" ◆" if best else "")
    axes.text(
        column,
        row,
        text,
        ha="center",
        va="center",
        color=palette.text,
        fontsize=8.5,
        weight="bold" if best else "normal",
    )


def _ranks(found: Analysis) -> Draw | None:
    ranks = found.overall.ranks if found.overall else None
    return critical_difference_diagram(ranks) if ranks is not None and len(ranks.rules) > 2 else None


# ---- clients ----------------------------------------------------------------------------------------


def _clients(found: Analysis) -> Draw | None:
    """One small chart per client of the first partition: its own error against its own seasonal naive."""
    where = found.wheres[0]
    cells = [found.cells[where, e] for e in found.epsilons if (where, e) in found.cells]
    if not cells or not found.baseline:
        return None
    clients = cells[0].trials.clients[:MAX_CLIENTS]
    rules = found.contenders[: min(MAX_LINES, 5)]
    over = len(cells) > 1

    def draw(palette: Palette) -> Figure:
        columns = 2
        rows = math.ceil(len(clients) / columns)
        made = Figure(figsize=(WIDTH, 0.6 + 0.24 * math.ceil((len(rules) + 1) / 3) + 1.35 * rows), layout="constrained")
        for place, client in enumerate(clients):
            axes = made.add_subplot(rows, columns, place + 1)
            axes.axhline(0, color=palette.muted, linestyle=":", linewidth=1.2, label="seasonal naive")
            for r, rule in enumerate(rules):
                points = [(c.epsilon or 0.0, client_change(found, c, rule, client)) for c in cells]
                points = [(e, change) for e, change in points if change is not None]
                if points:
                    own = look(palette, found.contenders, rule)
                    axes.plot(
                        [e for e, _ in points] if over else [r],
                        [change for _, change in points],
                        color=own.colour,
                        linestyle=own.style,
                        marker=own.marker,
                        markersize=4,
                        linewidth=1.4,
                        label=words(rule, 26),
                    )
            if over:
                epsilon_axis(axes, [c.epsilon or 0.0 for c in cells])
            else:
                axes.set_xlim(-0.7, len(rules) - 0.3)
                axes.set_xticks([])
            percent_axis(axes, "y", 3)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y")
            axes.set_title(words(client, 26), fontsize=9.5)
            if over and place >= len(clients) - columns:
                axes.set_xlabel("epsilon", fontsize=9)
        handles, labels = made.axes[0].get_legend_handles_labels()
        columns = 2 if max(map(len, labels)) > _SHORT_NAME else 3
        made.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=2.0, columnspacing=1.0)
        return made

    return draw


def client_change(found: Analysis, cell: Cell, rule: str, client: str) -> float | None:
    """Mean over seeds of one client's error against its seasonal baseline, as a relative change."""
    change = client_changes(found, cell, rule).get(client)
    return None if change is None else change[0]


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
            draw = example_drawing(examples, int(i), title=f"{examples.client[i]}: {why}")
            plans.append((f"example-{len(plans) + 1}", f"Line chart: {examples.client[i]}, {why}, with truth", draw))
    return plans
