"""Tables for a terminal or a pipe: aligned columns, no lines drawn, no colours to strip."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their content; the last one is wrapped to the terminal."""
    cells = [tuple(heads), *(tuple("" if v is None else str(v) for v in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads) - 1)]
    indent = sum(widths) + 2 * len(widths)
    # A pipe gets whole lines, so that grep and cut see every row on one line.
    room = max(30, shutil.get_terminal_size().columns - indent) if sys.stdout.isatty() else 10**6
    lines: list[str] = []
    for row in cells:
        start = "".join(text.ljust(width + 2) for text, width in zip(row, widths, strict=False))
        wrapped = textwrap.wrap(row[-1], room) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * indent + more for more in wrapped[1:])]
    return "\n".join(lines)
