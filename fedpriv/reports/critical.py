"""The critical-difference diagram: mean ranks on a line, bars under rules that the data do not tell apart."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fedpriv.reports.drawing import WIDTH, Draw, Palette, words
from fedpriv.reports.ranks import RankTable

_LABEL_STEP = 0.26  # inches between the labels of one side
_BAR_STEP = 0.13
_SHORT = 17  # characters of a name that fit into the usual margin
_WIDE_MARGIN = 1.05
_MARGIN = 0.62  # room for labels at each end, in lengths of the rank line


def critical_difference_diagram(table: RankTable) -> Draw:
    """Best rules left; the scale bar shows the critical difference (Demsar, JMLR 2006, figure 1).

    Bars join rules within the critical difference. Where the omnibus test finds no difference at all, one bar joins all
    of them and the title says so: Nemenyi's comparison is a follow-up of that test. It holds for the seeds that were
    run; see `ranks`.
    """
    order = np.argsort(table.mean, kind="stable").tolist()
    groups = table.groups() if table.differ else [tuple(table.rules[i] for i in order)]

    def draw(palette: Palette) -> Figure:
        count = len(order)
        left, right = order[: (count + 1) // 2], order[(count + 1) // 2 :][::-1]
        drop = _BAR_STEP * (len(groups) + 1)
        below = drop + _LABEL_STEP * (len(left) + 0.4)
        made = Figure(figsize=(WIDTH, below + 1.2), layout="constrained")
        axes = made.add_subplot()
        longest = max(map(len, table.rules))
        margin = (_MARGIN if longest <= _SHORT else _WIDE_MARGIN) * (count - 1)
        axes.set_xlim(1 - margin, count + margin)
        axes.set_ylim(-below, 0.62)  # inches, the rank line at 0
        axes.axis("off")
        axes.plot([1, count], [0, 0], color=palette.text, linewidth=1.2)
        for rank in range(1, count + 1):
            axes.plot([rank, rank], [0, 0.07], color=palette.text, linewidth=1)
            if count < 12 or rank % 2:
                axes.text(rank, 0.1, str(rank), ha="center", va="bottom", color=palette.text)
        width = min(table.critical, count - 1)
        axes.plot([1, 1 + width], [0.48, 0.48], color=palette.naive, linewidth=2, solid_capstyle="butt")
        axes.text(1 + width, 0.48, f"  critical difference {table.critical:.2f}", va="center", color=palette.text)
        for row, group in enumerate(groups):
            ranks = [float(table.mean[table.rules.index(rule)]) for rule in group]
            y = -_BAR_STEP * (row + 0.8)
            axes.plot([min(ranks), max(ranks)], [y, y], color=palette.ours, linewidth=4, solid_capstyle="round")
        for side, rules in (("left", left), ("right", right)):
            for row, index in enumerate(rules):
                rank, y = float(table.mean[index]), -drop - _LABEL_STEP * (row + 0.5)
                end = 1 - 0.04 * (count - 1) if side == "left" else count + 0.04 * (count - 1)
                axes.plot([rank, rank, end], [0, y, y], color=palette.muted, linewidth=0.9)
                axes.plot([rank], [0], "o", color=palette.text, markersize=4)
                name = words(table.rules[index], _SHORT if longest <= _SHORT else 24)
                text = f"{name} {rank:.2f} " if side == "left" else f" {rank:.2f} {name}"
                away = "right" if side == "left" else "left"  # outside the lines, where it can cross none
                axes.text(end, y, text, ha=away, va="center", color=palette.text, fontsize=9)
        verdict = "ranks differ" if table.differ else "no evidence of a difference"
        p = "p < 0.001" if table.f_p < 0.001 else f"p = {table.f_p:.2g}"
        axes.set_title(f"Mean rank over {table.blocks} clients, 1 is best\n({verdict}, {p})", fontsize=10)
        return made

    return draw
