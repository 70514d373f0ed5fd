"""The heterogeneity card of a partition in a run folder: `heterogeneity.json`, a picture, and rows for a table.

Simulation only, and said so in all three: it is computed from all clients' readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedpriv.data.client_data import ClientData
from fedpriv.data.heterogeneity import Card, heterogeneity
from fedpriv.errors import InputError
from fedpriv.reports.atomic import read_json, write_json
from fedpriv.reports.drawing import WIDTH, Draw, Palette, Picture, png, svg, words

FILE, NAME = "heterogeneity.json", "heterogeneity"
NOTE = (
    "Computed from all clients' readings, as only a simulation can; a deployment computes and releases nothing of it."
)
ALT = "Three panels: daily profiles, level and missing share, and distances between the distributions of clients"
MAX_CLIENTS = 24  # more rows than this no longer fit the picture; the table has all of them

MEANINGS = {
    "scale_ratio_max_min": "Largest client's mean level over the smallest's",
    "scale_ratio_p90_p10": "The same between the 90 % and 10 % quantiles",
    "cv_median": "Standard deviation over mean, median client",
    "profile_l1_median": "Distance of daily profiles, median pair (share of the mean)",
    "profile_l1_max": "Distance of daily profiles, most different pair",
    "w1_scaled_median": "Wasserstein distance after own scaling, median pair (standard deviations)",
    "w1_scaled_max": "Wasserstein distance after own scaling, most different pair",
    "w1_raw_median": "Wasserstein distance without scaling, median pair (physical units)",
    "correlation_mean": "Correlation of clients, mean over pairs",
    "quantity_gini": "Gini coefficient of the numbers of readings (0 equal, 1 one has all)",
    "missing_median": "Missing share, median client",
    "missing_max": "Missing share, worst client",
}


def write_card(
    folder: Path, clients: Sequence[ClientData], *, description: Mapping[str, Any] | None = None
) -> tuple[Card, Picture]:
    """Computes the card of the training parts, and writes `heterogeneity.json` and `figures/heterogeneity.png`.

    Args:
        folder: a run folder; made if need be.
        clients: all clients of the partition. Simulation only.
        description: of the partition, from `fedpriv.data.clients.describe`; stored with the card.

    Returns:
        The card, and its picture for a page.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    card = store(folder, clients, description=description)
    return card, _picture(folder, card)


def _picture(folder: Path, card: Card) -> Picture:
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    draw = drawing(card)
    png(draw, figures / f"{NAME}.png")
    return Picture(NAME, ALT, svg(draw, NAME, ALT))


def store(folder: Path, clients: Sequence[ClientData], *, description: Mapping[str, Any] | None = None) -> Card:
    """`heterogeneity.json` alone; the page makes the picture of it."""
    card = heterogeneity(clients)
    write_json(folder / FILE, {"note": NOTE, "partition": dict(description or {}), **card.to_dict()})
    return card


def stored(folder: Path) -> tuple[Card, Picture] | None:
    """The card in a run folder and its picture, whose PNG is written to figures/; None when there is no card.

    Raises:
        InputError: the file is damaged.
    """
    found = read_json(folder / FILE)
    if not found:
        return None
    try:
        card = Card.from_dict(found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / FILE} is not a heterogeneity card ({error}); nothing was changed.") from None
    return card, _picture(folder, card)


def rows(card: Card) -> list[tuple[str, str, float]]:
    """(name, meaning, value) of the numbers that a page shows."""
    return [(name, text, card.summary[name]) for name, text in MEANINGS.items()]


def drawing(card: Card) -> Draw:
    """The picture: how clients differ in shape, in size and gaps, and from each other."""
    shown = _shown(card)

    def draw(palette: Palette) -> Figure:
        count = len(shown)
        heights = [1.9, 0.5 + 0.2 * count, 0.9 + 0.17 * count]
        made = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
        grid = made.add_gridspec(3, 2, height_ratios=heights)
        _profiles(made.add_subplot(grid[0, :]), card, palette)
        left = made.add_subplot(grid[1, 0])
        _levels(left, card, shown, palette)
        _missing(made.add_subplot(grid[1, 1], sharey=left), card, shown, palette)
        _distances(made.add_subplot(grid[2, :]), card, shown, palette)
        return made

    return draw


def _shown(card: Card) -> list[int]:
    """Clients by level, largest first; of many, evenly chosen ones."""
    levels = np.nan_to_num([facts.level for facts in card.clients])
    order = np.argsort(-levels, kind="stable")
    if len(order) > MAX_CLIENTS:
        order = order[np.linspace(0, len(order) - 1, MAX_CLIENTS).round().astype(int)]
    return order.tolist()


def _profiles(axes: Axes, card: Card, palette: Palette) -> None:
    hours = np.arange(card.profiles.shape[1]) + 0.5
    for profile in card.profiles:
        axes.plot(hours, profile, color=palette.ours, alpha=max(0.15, min(0.7, 6 / len(card.profiles))), linewidth=1.1)
    axes.axhline(1.0, color=palette.muted, linestyle=":", linewidth=1)
    axes.set_title("Mean day of each client, own mean = 1")
    axes.set_xlim(0, 24)
    axes.set_xticks([0, 6, 12, 18, 24])
    axes.set_xlabel("hour of the day")
    axes.grid(axis="y")


def _levels(axes: Axes, card: Card, shown: list[int], palette: Palette) -> None:
    values = np.array([card.clients[i].level for i in shown])
    rows_ = np.arange(len(shown))
    axes.plot(values, rows_, "o", color=palette.ours, markersize=5)
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) == len(values) and positive.max() > 8 * positive.min():
        axes.set_xscale("log")
        axes.set_xlim(positive.min() / 1.5, positive.max() * 1.5)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    elif len(positive) == len(values):
        axes.set_xlim(0, positive.max() * 1.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(rows_, [words(card.clients[i].client, 14) for i in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Mean level")
    axes.set_xlabel(words(card.unit) or "value")
    axes.grid(axis="x")


def _missing(axes: Axes, card: Card, shown: list[int], palette: Palette) -> None:
    values = [100 * card.clients[i].missing for i in shown]
    axes.barh(np.arange(len(shown)), values, height=0.55, color=palette.naive, linewidth=0)
    axes.set_xlim(0, max(1.0, *values) * 1.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.set_title("Missing")
    axes.set_xlabel("share of the calendar")
    axes.grid(axis="x")


def _distances(axes: Axes, card: Card, shown: list[int], palette: Palette) -> None:
    """Squares whose depth is the distance: opacity works in every palette, a colour map would not."""
    matrix = card.pairs["w1_scaled"][np.ix_(shown, shown)]
    most = float(np.nanmax(matrix)) if np.isfinite(matrix).any() else 0.0
    for i, j in np.ndindex(matrix.shape):
        if i != j and np.isfinite(matrix[i, j]):
            depth = float(matrix[i, j]) / most if most > 0 else 0.0
            axes.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, color=palette.ours, alpha=depth, linewidth=0))
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_aspect("equal")
    axes.set_yticks(range(len(shown)), [words(card.clients[i].client, 14) for i in shown])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title("Wasserstein distance, scaled")
    axes.set_xlabel(f"same order across; full colour = {most:.2g} standard deviations")
