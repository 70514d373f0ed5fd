"""The picture of a plan: what noise buys for each unit, what data buy, and what would help.

Drawn from public numbers alone: the situation of each kind of client, and the accountant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import ladder_of, ladder_units
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.plan import Outlook, Plan, Situation
from fedpriv.privacy.plan import plan as make_plan
from fedpriv.reports.drawing import Palette, plain_ticks, png, words

Plans = Sequence[tuple[tuple[str, ...], Situation, Plan]]
_NOISES = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)  # times the planned noise
_SIZES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # times the data of the largest client
_BUDGETS = (0.5, 1.0, 2.0)  # times the budget
_WIDTH = 7.6  # inches; a picture of its own, not of the page
_MARKS = ("o", "s", "^", "D")
_STYLES = ("-", "--", "-.", ":")


def draw_plan(plans: Plans, path: Path) -> None:
    """Writes the picture of a plan as PNG.

    Raises:
        InputError: the file cannot be written.
    """
    _, first, made = plans[0]
    curves, budgets = epsilon_curves(first, made), size_curves(plans)

    def draw(palette: Palette) -> Figure:
        helps = sorted(made.helps, key=lambda each: each.gain)
        figure = Figure(figsize=(_WIDTH, 6.6 + 0.27 * len(helps)), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, height_ratios=[3.1, 3.1, 0.5 + 0.3 * len(helps)])
        _noise(top, curves, first, made, palette)
        _data(middle, budgets, plans, palette)
        _helps(bottom, helps, palette)
        return figure

    try:
        png(draw, path)
    except OSError as error:
        raise InputError(f"the picture {path} cannot be written ({error.strerror}).") from None


def epsilon_curves(situation: Situation, made: Plan) -> dict[str, list[tuple[float, float]]]:
    """Unit -> [(noise multiplier, epsilon)] in the situation's relation; points without a finite epsilon left out."""
    relation, curves = situation.relation, dict[str, list[tuple[float, float]]]()
    for factor in _NOISES:
        sigma = factor * made.now.noise_multiplier
        parts = [
            (situation.sampler, discrete_event(each) if situation.hardened else each, count)
            for each, count in situation.stages(sigma)
        ]
        units = [unit for unit in ladder_units(situation.steps_per_day) if unit.kind != "meter"]
        rungs = ladder_of(
            parts,
            units,
            delta=situation.delta,
            relation=relation,
            calendar_steps=None,
            extra=dict(situation.side_rungs),
        )
        for name, epsilon in rungs.items():
            if math.isfinite(epsilon) and epsilon > 0:
                curves.setdefault(name, []).append((sigma, epsilon))
    return curves


def size_curves(plans: Plans) -> dict[float, list[tuple[float, float]]]:
    """Epsilon -> [(meters x days of a client, noise over signal after all steps)]; the noise is calibrated to each."""
    largest = max((situation for _, situation, _ in plans), key=meter_days)
    curves = dict[float, list[tuple[float, float]]]()
    for factor in _BUDGETS:
        budget = factor * largest.epsilon
        try:
            now = outlook_of(replace(largest, epsilon=budget, noise_multiplier=None))
        except InputError:  # no noise keeps so small a budget
            continue
        curves[budget] = [(size * meter_days(largest), now.noise_to_signal_all / size) for size in _SIZES]
    return curves


def outlook_of(situation: Situation) -> Outlook:
    """The outlook of a situation as planned."""
    return make_plan(situation).now


def meter_days(situation: Situation) -> float:
    """How much data a client trains on: meters times days."""
    return situation.num_meters * situation.calendar_steps / situation.steps_per_day


def _noise(
    axes: Axes, curves: dict[str, list[tuple[float, float]]], situation: Situation, made: Plan, palette: Palette
) -> None:
    colours = (palette.ours, palette.naive, palette.other, palette.last)
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colours[i % 4],
            linestyle=_STYLES[i % 4],
            marker=_MARKS[i % 4],
            markersize=4,
            label=f"one {name}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvline(made.now.noise_multiplier, color=palette.muted, linewidth=1)
    axes.axhline(situation.epsilon, color=palette.muted, linewidth=1, linestyle=":")
    axes.annotate(
        f"planned noise {made.now.noise_multiplier:.3g}", (made.now.noise_multiplier, 1), (4, -2), va="top",
        xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9, color=palette.muted,
    )  # fmt: skip
    axes.annotate(
        f"budget {situation.epsilon:g}", (1, situation.epsilon), (-2, 3), ha="right",
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9, color=palette.muted,
    )  # fmt: skip
    axes.set_title(f"Epsilon of each unit ({situation.relation}), {situation.steps} steps")
    axes.set_xlabel("noise multiplier")
    axes.set_ylabel("epsilon")
    axes.grid(True)
    plain_ticks(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _data(axes: Axes, curves: dict[float, list[tuple[float, float]]], plans: Plans, palette: Palette) -> None:
    colours = (palette.last, palette.ours, palette.other)
    for i, (budget, points) in enumerate(curves.items()):
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=colours[i % 3], linestyle=_STYLES[(i + 1) % 3],
            label=f"epsilon {budget:g}",
        )  # fmt: skip
    xs = [meter_days(situation) for _, situation, _ in plans]
    ys = [made.now.noise_to_signal_all for _, _, made in plans]
    axes.plot(xs, ys, "o", color=palette.text, markersize=6, label="clients as planned", zorder=3)
    if len(plans) <= 6:
        for (clients, _, _), x, y in zip(plans, xs, ys, strict=True):
            name = words(clients[0]) + (f" +{len(clients) - 1}" if len(clients) > 1 else "") if clients else "as given"
            axes.annotate(name, (x, y), (7, 5), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axhline(1.0, color=palette.naive, linewidth=1)
    axes.annotate(
        "above: mostly noise", (1, 1.0), (-4, 3), ha="right", xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9, color=palette.naive,
    )  # fmt: skip
    axes.set_title("Noise over signal after all steps")
    axes.set_xlabel("data of one client, meters x days of training")
    axes.set_ylabel("noise / signal")
    axes.grid(True)
    plain_ticks(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _helps(axes: Axes, helps: Sequence[Outlook], palette: Palette) -> None:
    axes.barh([each.change for each in helps], [each.gain for each in helps], height=0.62, color=palette.ours)
    axes.axvline(1.0, color=palette.muted, linewidth=1)
    for row, each in enumerate(helps):
        axes.annotate(
            f"{each.gain:.2f}x", (each.gain, row), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_xlim(0, max([1.0, *(each.gain for each in helps)]) * 1.15)
    axes.set_title("What would help: noise against signal shrinks by")
    axes.grid(True, axis="x")
