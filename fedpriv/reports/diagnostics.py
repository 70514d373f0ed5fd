"""Gradient diagnostics of a simulated run on disk and on the page. Raw, without noise: marked wherever they go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpriv.errors import InputError
from fedpriv.privacy.diagnostics import Snapshot, distribution, summary
from fedpriv.reports.atomic import replace_file, write_json
from fedpriv.reports.drawing import WIDTH, Draw, Palette, legend, plain_ticks
from fedpriv.reports.numbers import number

_NAME = "round-{:07d}.npz"
_SCALARS = ("bound", "mean_norm", "bias_norm", "cosine", "cosine_rule", "dropped")


@dataclass(frozen=True)
class Diagnosed:
    """The snapshots of one round, one for each client.

    Attributes:
        round: 0 before the first.
        clients: name -> snapshot.
    """

    round: int
    clients: Mapping[str, Snapshot]


def write_diagnostics(folder: Path, found: Diagnosed, *, mark: str) -> None:
    """diagnostics/round-NNNNNNN.npz; the same round again replaces it."""
    directory = folder / "diagnostics"
    directory.mkdir(exist_ok=True, mode=0o700)
    snapshots = list(found.clients.values())
    arrays: dict[str, Any] = {
        "mark": np.array(mark),
        "client": np.array(list(found.clients)),
        "rows": np.array([len(s.norms) for s in snapshots]),
        "norms": np.concatenate([s.norms for s in snapshots]),
        "conditioning": np.concatenate([s.conditioning for s in snapshots]),
        **{name: np.array([getattr(s, name) for s in snapshots], dtype=np.float64) for name in _SCALARS},
    }

    def write(path: Path) -> None:
        with path.open("wb") as handle:
            np.savez(handle, **arrays)

    replace_file(directory / _NAME.format(found.round), write, durable=False)


def read_diagnostics(folder: Path) -> list[Diagnosed]:
    """All rounds that were written, in order; empty where there are none.

    Raises:
        InputError: a damaged file.
    """
    found: list[Diagnosed] = []
    for path in sorted((folder / "diagnostics").glob("round-*.npz")):
        match = re.fullmatch(r"round-(\d+)\.npz", path.name)
        if match is None:
            continue
        try:
            with np.load(path, allow_pickle=False) as arrays:
                edges = np.concatenate([[0], np.cumsum(arrays["rows"])])
                norms, conditioning = arrays["norms"], arrays["conditioning"]
                numbers = {name: arrays[name] for name in _SCALARS}
                clients: dict[str, Snapshot] = {}
                for i, client in enumerate(arrays["client"]):
                    part = slice(edges[i], edges[i + 1])
                    single = {name: float(values[i]) for name, values in numbers.items()}
                    dropped = int(single.pop("dropped"))
                    clients[str(client)] = Snapshot(norms[part], conditioning[part], dropped=dropped, **single)
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise InputError(f"{path} cannot be read ({error}); nothing was drawn.") from None
        found.append(Diagnosed(int(match[1]), clients))
    return found


def write_summary(folder: Path, found: list[Diagnosed], *, mark: str) -> None:
    """diagnostics.json: the mark, the statistics over all rounds and samples, and those of each round."""
    rounds = [{"round": one.round, **summary(one.clients.values())} for one in found]
    whole = summary(snapshot for one in found for snapshot in one.clients.values())
    write_json(folder / "diagnostics.json", {"mark": mark, "all": whole, "rounds": rounds})


_SHOWN = {
    "total-p95": "norm p95",
    "total-p99": "norm p99",
    "cond-p99": "conditioning p99",
    "other-p99": "other p99",
    "p-clip": "share clipped",
    "eta-mean": "severity mean",
    "eta-p10": "severity p10",
    "eta-p50": "severity p50",
    "distortion": "distortion",
    "cosine": "cosine flat",
    "cosine-rule": "cosine rule",
}


def diagnostics_table(folder: Path) -> list[list[str]]:
    """Heading and rows of the page: all rounds together, then each; empty where there are none."""
    found = read_diagnostics(folder)
    if not found:
        return []
    each = [("all", summary(s for one in found for s in one.clients.values()))]
    each += [(str(one.round), summary(one.clients.values())) for one in found]
    return [["round", *_SHOWN.values()], *[[name, *(number(row.get(key)) for key in _SHOWN)] for name, row in each]]


# ---- pictures ---------------------------------------------------------------------------------------


def tails_picture(found: list[Diagnosed]) -> Draw | None:
    """ECDF and CCDF of the norms, over all rounds and samples."""
    snapshots = [s for one in found for s in one.clients.values() if len(s.norms)]
    if not snapshots:
        return None
    groups = {"whole": np.concatenate([s.norms for s in snapshots])}
    conditioning = np.concatenate([s.conditioning for s in snapshots])
    if conditioning.any():
        groups |= {"conditioning": conditioning, "other": np.concatenate([s.other for s in snapshots])}
    bound = snapshots[0].bound

    def draw(palette: Palette) -> Figure:
        made = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        upper, lower = made.subplots(2, 1)
        colours = {"whole": palette.ours, "conditioning": palette.other, "other": palette.naive}
        dashes = {"whole": "-", "conditioning": "-", "other": (0, (3, 2))}  # often as good as the whole
        for name, values in groups.items():
            x, share = distribution(values[values > 0])
            if not len(x):
                continue
            upper.plot(x, share, color=colours[name], linestyle=dashes[name], label=name)
            # The largest value has the share 0 above it, which a logarithm cannot show.
            lower.plot(x[:-1], 1.0 - share[:-1], color=colours[name], linestyle=dashes[name])
        for axes in (upper, lower):
            axes.set_xscale("log")
            axes.axvline(bound, color=palette.muted, linestyle=":", label="bound C" if axes is upper else None)
            axes.set_xlabel("gradient norm of a sample")
            axes.grid()
            plain_ticks(axes)
        lower.set_yscale("log")
        upper.set_ylabel("share of samples below")
        lower.set_ylabel("share of samples above")
        legend(made, upper, 4)
        return made

    return draw


def steps_picture(found: list[Diagnosed]) -> Draw | None:
    """Tails, severity and direction over rounds."""
    rows = [(one.round, values) for one in found if (values := summary(one.clients.values()))]
    if len(rows) < 2:
        return None
    conditioned = any(values["cond-p99"] > 0 for _, values in rows)

    def draw(palette: Palette) -> Figure:
        made = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        upper, lower = made.subplots(2, 1)
        rounds = [number for number, _ in rows]

        def line(axes: Axes, key: str, label: str, **style: Any) -> None:
            # A norm of zero (the conditioning before the first step) has no place on a logarithmic axis.
            axes.plot(rounds, [values.get(key) or np.nan for _, values in rows], label=label, **style)

        line(upper, "total-p99", "norm p99", color=palette.ours)
        line(upper, "total-p95", "norm p95", color=palette.ours, linestyle="--")
        if conditioned:
            line(upper, "cond-p99", "conditioning p99", color=palette.other)
        upper.set_yscale("log")
        upper.set_ylabel("gradient norm")
        line(lower, "eta-mean", "mean severity", color=palette.naive)
        line(lower, "cosine", "cosine, flat", color=palette.last)
        line(lower, "cosine-rule", "cosine, rule", color=palette.last, linestyle="--")
        lower.set_ylim(min(0.0, *(v.get("cosine", 0.0) for _, v in rows)), 1.02)
        lower.set_ylabel("severity and cosine")
        for axes in (upper, lower):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(axis="y")
        handles = [axes.get_legend_handles_labels() for axes in (upper, lower)]
        made.legend(
            handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="outside upper left", ncols=3,
            handlelength=1.6, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
        return made

    return draw
