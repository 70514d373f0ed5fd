"""simulate, report, scenarios."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json, ScenarioArgument, Set

SIMULATE = """Train one federation; write model, privacy label and report.

Every client keeps its data, clips and noises its own updates, and books the privacy it spends in its own ledger.
Without SCENARIO the embedded default runs: synthetic utilities, no download, under two minutes on two cores.

\b
Eight real utilities, after `fedpriv data download eia930`:
  fedpriv simulate eia-8 --set data.dir=data
Less epsilon, another clipping rule:
  fedpriv simulate eia-8 --set privacy.epsilon=2 --set privacy.clipper=psac --out runs/eps2
Go on after an interruption, with the same ledgers:
  fedpriv simulate eia-8 --set privacy.epsilon=2 --set privacy.clipper=psac --out runs/eps2 --resume
Your own scenario file, on worker processes, for a script:
  fedpriv simulate mine.toml --engine ray --json
"""
REPORT = """Write the page and figures of a run or a sweep again.

Works for interrupted ones too; nothing is trained and no ledger is touched.

\b
A run:
  fedpriv report runs/eia-8
A sweep of `fedpriv compare` (comparison.json, report.html, figures/):
  fedpriv report sweeps/clippers
"""
SCENARIOS = """List the named scenarios, or show one in full.

\b
All of them, one line each:
  fedpriv scenarios
Every key of one, as TOML, to change and give to `fedpriv simulate`:
  fedpriv scenarios eia-8 > mine.toml
"""


class Engine(StrEnum):
    """Where the clients run."""

    inline = "inline"
    ray = "ray"
    flower = "flower"


def simulate(
    scenario: ScenarioArgument = None,
    changes: Set = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="inline: in this process; ray: worker processes, also on a cluster; flower: `flwr run`. The same "
            "scenario and seed gives the same model on all three. Default: what the scenario says.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder; default runs/NAME-DIGEST.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in that folder.")] = False,
    as_json: Json = False,
) -> None:
    """Runs the federation, writes the report, prints the answer."""
    from fedpriv.cli.progress import make_progress
    from fedpriv.config import parse_assignments
    from fedpriv.reports.page import write_report
    from fedpriv.reports.tables import run_summary
    from simulations import launch, scenarios

    if out is not None:
        state.set_run_folder(out)
    chosen = scenarios.load(scenario)
    progress = make_progress()
    progress.note(f"preparing {chosen.run.name}")
    try:
        run = launch.simulate(
            chosen,
            parse_assignments(changes or []),
            engine=engine.value if engine else None,
            out=out,
            resume=resume,
            progress=progress,
        )
    finally:
        progress.finish()
    page = run.path / "report.html"
    if not page.exists():
        page = write_report(run.path)
    summary = run_summary(run.path)
    if as_json:
        state.emit(summary)
        return
    state.say(f"\n{summary['answer']}\n\nReport: {page}")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or the folder of a sweep.")],
    as_json: Json = False,
) -> None:
    """Writes report.html and figures/ of a run or a sweep."""
    from fedpriv.reports.atomic import read_json
    from fedpriv.reports.comparison import is_sweep, write_comparison
    from fedpriv.reports.page import write_report
    from fedpriv.reports.tables import run_summary

    if is_sweep(folder):
        write_comparison(folder)
        found = read_json(folder / "comparison.json")
        if as_json:
            state.emit(found)
            return
        paragraphs = [found["headline"], *cast("list[str]", found["answer"])]
        state.say("\n\n".join(map(str, paragraphs)) + f"\n\nReport: {folder / 'report.html'}")
        return
    page = write_report(folder)
    summary = run_summary(folder)
    if as_json:
        state.emit(summary)
        return
    state.say(f"{summary['answer']}\n\nReport: {page}")


def scenarios(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one in full.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists or shows named scenarios."""
    from simulations import scenarios as known

    if name is not None:
        scenario = known.load(name)
        if as_json:
            state.emit(scenario.nested())
        else:
            state.say(scenario.to_toml().rstrip())
        return
    if as_json:
        state.emit({"scenarios": [{"name": n, "about": known.describe(n)} for n in known.names()]})
        return
    from fedpriv.cli.text import table

    state.say(table(("name", "what it is"), [(n, known.describe(n)) for n in known.names()]))
    state.say("\nRun one: fedpriv simulate NAME      Show one in full: fedpriv scenarios NAME")
