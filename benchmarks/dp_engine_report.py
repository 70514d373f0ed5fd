"""The table and the figure of the stored results of `dp_engine.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dp_engine_steps import BASE, ENGINES, WHOLE_BASE

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
KEPT = "freed memory kept"
SETTING = ("patch", "width", "batch", "draws", "threads", "microbatch", "allocator", "code", "load")
COLOURS = {
    "ghost": "#1b6ca8",
    "native": "#63b0e3",
    "functional": "#8a8a8a",
    "opacus-hooks": "#c8553d",
    "opacus-functorch": "#e08e45",
    "opacus-ghost": "#8f2d56",
    "opacus-fast": "#d4a5a5",
}


def write(results: Path) -> None:
    """The Markdown table beside the results, and the figure."""
    stored: dict[str, Any] = json.loads(results.read_text())
    rows = sorted(stored["rows"], key=lambda r: [str(r[k]).rjust(6) for k in ("allocator", "threads", *SETTING[:4])])
    lines = ["# Gradient engines: step time and peak memory", ""]
    lines += ["Machine: " + "; ".join(f"{key} {value}" for key, value in stored["machine"].items()) + ".", ""]
    lines += ["## Time as a multiple of the non-private step", ""]
    lines += _table([r for r in rows if "ratios" in r], "ratios", (BASE,), lambda r: [f"{r['base_ms'][BASE]:.1f} ms"])
    lines += ["", "## Whole step: gradient, noise and optimiser, as a multiple of the non-private whole step", ""]
    whole = [r for r in rows if WHOLE_BASE in r.get("base_ms", {})]
    lines += _table(whole, "ratios", (WHOLE_BASE,), lambda r: [f"{r['base_ms'][WHOLE_BASE]:.1f} ms"], whole=True)
    lines += ["", "## Peak memory of a step above the resting process, MB", ""]
    lines += _table([r for r in rows if "peak_mb" in r], "peak_mb", (BASE,), lambda r: [f"{r['peak_mb'][BASE]:.0f}"])
    results.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fresh = [r for r in rows if "ratios" in r and r["allocator"] == KEPT]
    draw(fresh)
    draw_grid([r for r in fresh if r["draws"] == 1 and r["microbatch"] == 0])


def _table(rows: list[dict[str, Any]], key: str, bases: tuple[str], base: Any, *, whole: bool = False) -> list[str]:
    names = [n for n in ENGINES if n.startswith("whole-") == whole and any(n in r[key] for r in rows)]
    head = [*SETTING, *bases, *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        if not any(n in r[key] for n in names):
            continue
        digits = 2 if key == "ratios" else 0
        values = [f"{r[key][n]:.{digits}f}" if n in r[key] else "" for n in names]
        lines.append("| " + " | ".join([*(str(r[k]) for k in SETTING), *base(r), *values]) + " |")
    return lines


def _joined(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each patch, with the ratios of all its rows."""
    found: dict[int, dict[str, Any]] = {}
    for r in rows:
        found.setdefault(r["patch"], r | {"ratios": {}})["ratios"].update(r["ratios"])
    return [found[patch] for patch in sorted(found)]


def draw(rows: list[dict[str, Any]]) -> None:
    """Bars for the three patch lengths of the standard cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {"width": 64, "batch": 64, "draws": 1, "threads": 1, "microbatch": 0}
    cells = _joined([r for r in rows if all(r[k] == v for k, v in wanted.items())])
    if not cells:
        return
    figure, axes = pyplot.subplots(figsize=(6.4, 2.8), dpi=120)
    names = [n for n in COLOURS if any(n in r["ratios"] for r in cells)]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(cells))]
        heights = [r["ratios"].get(name, 0.0) for r in cells]
        axes.bar(places, heights, width * 0.92, color=COLOURS[name], label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(cells)), [f"{96 // r['patch']} tokens (patch {r['patch']})" for r in cells])
    axes.set_ylabel("step time / non-private")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left")
    figure.tight_layout()
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "dp_engine.png")
    pyplot.close(figure)


def draw_grid(rows: list[dict[str, Any]]) -> None:
    """Every cell of the grid as a line of marks, engines apart by colour; logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = ("patch", "width", "batch", "threads")
    cells = sorted({tuple(r[k] for k in places) for r in rows}, key=lambda c: (-c[0], *c[1:]))
    if not cells:
        return
    figure, axes = pyplot.subplots(figsize=(6.4, 0.9 + 0.22 * len(cells)), dpi=120)
    for name, colour in COLOURS.items():
        marks = [(r["ratios"][name], cells.index(tuple(r[k] for k in places))) for r in rows if name in r["ratios"]]
        if marks:
            axes.scatter(*zip(*marks, strict=True), color=colour, s=22, label=name, zorder=2)
    axes.set_xscale("log")
    ticks = [1, 1.25, 1.5, 2, 3, 4, 6]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cells)), [f"{96 // c[0]} tokens, {c[1]} wide, batch {c[2]}, {c[3]} thr." for c in cells])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.9", zorder=0)
    axes.set_xlabel("step time / non-private")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=6.5, ncols=4, loc="lower center", bbox_to_anchor=(0.35, 1.0))
    figure.savefig(FIGURES / "dp_engine_grid.png", bbox_inches="tight")
    pyplot.close(figure)
