"""Tables of the runs of a sweep: what was run, where it lies, what did not come to an end."""

from __future__ import annotations

import numpy as np

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import Analysis, cell_name
from fedpriv.reports.comparison.cells import Titled
from fedpriv.reports.comparison.sweep import FEDERATED, value_words
from fedpriv.reports.comparison.sweep_runs import DONE, EPSILON, SweepRun
from fedpriv.reports.numbers import at_most, number
from fedpriv.reports.tables import METRICS


def runs(found: Analysis) -> Titled:
    """Every run with a link to its page or folder."""
    sweep = found.sweep
    frame = sweep.errors[sweep.errors["model"] == FEDERATED]
    means = {
        str(run): float(np.exp(np.log(np.maximum(values, 1e-300)).mean()))
        for run, values in frame.groupby("run", sort=False)["value"]
    }
    same: dict[str, list[SweepRun]] = {}
    for run in sweep.runs:
        same.setdefault(run.run, []).append(run)
    arms, who = any(run.arm for run in sweep.runs), any(run.client for run in sweep.runs)
    heads = [
        Head("Run"),
        *([Head(sweep.thing if sweep.question == "collaboration" else "arm", "what the run serves")] if arms else []),
        *([Head("trained by")] if who else []),
        *(Head(key) for key in sweep.varying),
        Head("seed"),
        Head("status"),
        Head(f"mean {METRICS.get(sweep.metric, sweep.metric)}", "geometric mean over the clients of the run"),
        Head("committed epsilon", "the largest of its clients"),
        Head("seconds"),
    ]
    rows: list[list[Cell]] = []
    for run, *others in same.values():
        mean = means.get(run.run)
        rows.append(
            [
                Cell(run.run, link=_link(found, run)),
                *([Cell("; ".join(dict.fromkeys(sweep.arm_words(r) for r in (run, *others))))] if arms else []),
                *([Cell(run.client or "all clients")] if who else []),
                *(_axis(run, key) for key in sweep.varying),
                Cell(run.seed, _as_number(run.seed)),
                Cell(run.status, None, "good" if run.status == DONE else "bad"),
                Cell(number(mean), mean) if mean is not None else Cell("–"),
                Cell(at_most(run.epsilon), run.epsilon) if run.epsilon is not None else Cell("none"),
                Cell(f"{run.seconds:.0f}", run.seconds) if run.seconds is not None else Cell("–"),
            ]
        )
    text = "Each leads to the page of the run, or to its folder."
    if len(rows) < len(sweep.runs):
        text += (
            f" The plan has {len(sweep.runs)} lines; lines that ask for the same run (such as all epsilons of a "
            f"setting without privacy) share it, which leaves {len(rows)} runs."
        )
    return Titled("", Grid(heads, rows), text)


def _axis(run: SweepRun, key: str) -> Cell:
    value = run.axes.get(key)
    if key == EPSILON:
        return Cell("none" if run.budget is None else f"{run.budget:g}", run.budget)
    return Cell(value_words(value), float(value) if isinstance(value, int | float) else None)


def _link(found: Analysis, run: SweepRun) -> str:
    """Relative, so that the folder can be moved; empty where there is nothing."""
    folder = found.sweep.folder(run)
    if (folder / "report.html").exists():
        return f"runs/{run.run}/report.html"
    return f"runs/{run.run}/" if folder.is_dir() else ""


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def not_done(found: Analysis) -> Titled | None:
    """Failures and refusals with their reasons."""
    others = found.sweep.others
    if not others:
        return None
    heads = [Head("Run"), Head("what"), Head("seed"), Head("status"), Head("why")]
    rows = [
        [
            Cell(run.run, link=_link(found, run)),
            Cell(cell_name(" · ".join(filter(None, (found.sweep.contender(run), found.sweep.where(run)))), run.budget)),
            Cell(run.seed),
            Cell(run.status, None, "bad"),
            Cell(run.error or "–"),
        ]
        for run in others
    ]
    return Titled("", Grid(heads, rows), "", "wide client")
