"""What the page says about personal models: every client's own beside the global one."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from fedpriv.reports.drawing import Draw, Palette, figure, legend, plain_ticks, words
from fedpriv.reports.numbers import number
from fedpriv.reports.tables import FEDERATED, METRICS, RunView

PERSONAL = "personal"
MAX_CLIENTS = 40  # more rows than this no longer fit a picture


@dataclass(frozen=True)
class Pair:
    """One client's error with the global and with its own model."""

    client: str
    shared: float
    own: float

    @property
    def reduction(self) -> float:
        """1 - own / shared; positive means that fine-tuning helped."""
        return 1 - self.own / self.shared if self.shared else float("nan")


def pairs(view: RunView, metric: str = "mse") -> list[Pair]:
    """Every client that has both scores, largest gain first."""
    found = [
        Pair(client, models[FEDERATED][metric], models[PERSONAL][metric])
        for client, models in view.scores().items()
        if metric in models.get(FEDERATED, {}) and metric in models.get(PERSONAL, {})
    ]
    return sorted(found, key=lambda pair: -pair.reduction)


def personal_text(view: RunView) -> list[str]:
    """Paragraphs of the section; empty where no client has a model of its own."""
    found, personal = pairs(view), view.scenario.personal
    if not found:
        return []
    shared, own = fmean(p.shared for p in found), fmean(p.own for p in found)
    better = sum(p.own < p.shared for p in found)
    change = f"{abs(1 - own / shared):.1%}".replace("%", " %") if shared else "–"
    word = "less" if own <= shared else "more"
    which = "the parameters that the federation trains" if personal.parameters == "same" else personal.parameters
    said = [
        f"Each client went on from the final model by {personal.steps} steps on its own training part ({which}). On "
        f"average its own model has {change} {word} squared error than the global one ({number(own)} against "
        f"{number(shared)}), and less on {better} of {len(found)} clients."
    ]
    if personal.kind == "private":
        said.append(
            "These steps are private steps: they are in every client's ledger, in the committed epsilon and in the "
            "ladder, and the noise of the whole run is larger because of them."
        )
    else:
        said.append(
            "Simulation only: these models were fine-tuned without noise. No promise covers them, so they must not "
            "leave their clients, nor may numbers computed with them, such as the ones here. A deployed client keeps "
            "its model in a file beside its ledger and sends nothing of it."
        )
    return said


def personal_picture(view: RunView, metric: str = "mse") -> Draw | None:
    """A line for each client from the error of the global model to that of its own."""
    found = pairs(view, metric)
    if len(found) > MAX_CLIENTS:
        found = found[: MAX_CLIENTS // 2] + found[-MAX_CLIENTS // 2 :]
    if not found:
        return None

    def draw(palette: Palette) -> Figure:
        made, axes = figure(1.25 + 0.27 * len(found))
        rows = np.arange(len(found))
        shared, own = np.array([p.shared for p in found]), np.array([p.own for p in found])
        axes.hlines(rows, shared, own, color=palette.muted, linewidth=1.4)
        axes.plot(shared, rows, "o", color=palette.ours, markersize=7, label="global model")
        axes.plot(own, rows, "s", color=palette.other, markersize=6, label="own model")
        axes.set_xlim(0, max(shared.max(), own.max()) * 1.06)
        plain_ticks(axes)
        axes.set_yticks(rows, [words(p.client) for p in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel(f"{METRICS[metric]} of scaled values, {view.split} part (less is better)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        legend(made, axes, 2)
        return made

    return draw
