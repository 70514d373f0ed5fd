"""The table and the figure of the stored results of `dp_engine.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dp_engine_steps import BASE, ENGINES, WHOLE_BASE

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "dp_engine.png"
KEPT = "freed memory kept"
SETTING = ("patch", "width", "batch", "draws", "threads", "microbatch", "allocator", "code")
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
    draw([r for r in rows if "ratios" in r])


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


def draw(rows: list[dict[str, Any]]) -> None:
    """Bars for the three patch lengths of the standard cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {"width": 64, "batch": 64, "draws": 1, "threads": 1, "microbatch": 0, "allocator": KEPT}
    cells = sorted((r for r in rows if all(r[k] == v for k, v in wanted.items())), key=lambda r: r["patch"])
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
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)
    pyplot.close(figure)
