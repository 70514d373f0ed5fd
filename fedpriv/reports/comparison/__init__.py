"""From a sweep folder to a page that one can decide from: `comparison.json`, `report.html`, `figures/`. (io)

`sweep` reads, `analysis` and `collaboration` compare (statistics: `fedpriv.reports.statistics`, `ranks`, `verdicts`),
`words` answers, `figures`, `tables` and `page` show.
"""

from __future__ import annotations

from pathlib import Path

from fedpriv.reports.atomic import write_json, write_text

__all__ = ["is_sweep", "write_comparison"]


def is_sweep(folder: Path) -> bool:
    """Whether `folder` was written by `fedpriv compare`."""
    return (Path(folder) / "sweep.toml").is_file()


def write_comparison(folder: Path) -> None:
    """Writes `comparison.json`, `report.html` and `figures/*.png` of a sweep, finished or not; trains nothing.

    Raises:
        InputError: no sweep folder, a damaged file in it, or no finished run to compare.
    """
    from fedpriv.reports.comparison.analysis import analyse
    from fedpriv.reports.comparison.collaboration import value_of_joining
    from fedpriv.reports.comparison.figures import pictures
    from fedpriv.reports.comparison.page import render
    from fedpriv.reports.comparison.promises import promises
    from fedpriv.reports.comparison.summary import summary
    from fedpriv.reports.comparison.sweep import Sweep

    sweep = Sweep.open(folder)
    found, value, promised = analyse(sweep), value_of_joining(sweep), promises(sweep)
    drawn = pictures(found, value, sweep.path / "figures")
    write_text(sweep.path / "report.html", render(found, value, promised, drawn))
    write_json(sweep.path / "comparison.json", summary(found, value, promised))
