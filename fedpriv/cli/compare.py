"""compare: a sweep of scenarios in parallel, and the comparison that follows from it."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

if TYPE_CHECKING:
    from simulations.sweep.estimate import Estimate
    from simulations.sweep.grid import Planned
    from simulations.sweep.run import Sweep
    from simulations.sweep.spec import Spec

HELP = """Run a grid of scenarios in parallel, and compare them.

SWEEP is a named study (`fedpriv compare --list`), a TOML file, or a sweep folder. Every run of the grid is checked
before the first one starts. A run that fails does not stop the others (exit code 1 at the end); one that the privacy
budget refuses is a result. How long all of it takes is said first: from earlier runs of the same kind on this machine,
else a few rounds of each kind are timed. Killed at any moment, --resume goes on: finished runs are kept, half-done ones
continued.

\b
The studies, and the smallest of one:
  fedpriv compare --list
  fedpriv compare clippers-noniid --quick --set data.dir=data
Your own, four runs at a time:
  fedpriv compare mine.toml --jobs 4 --out runs/mine
Fewer rules and other epsilons than the file says:
  fedpriv compare clippers-noniid --set grid.privacy.clipper=flat,psac --set grid.privacy.epsilon=1,8,inf
What would be run and how long it would take, without running it:
  fedpriv compare mine.toml --plan
"""


class Engine(StrEnum):
    """Where the runs go."""

    processes = "processes"
    ray = "ray"


def compare(
    sweep: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="A study, a TOML file or a folder.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key of all runs, such as federation.rounds=50, or of the sweep: sweep.seeds=5, "
            "grid.privacy.epsilon=1,8. Repeat for more; unknown keys are refused.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Sweep folder; default runs/NAME-DIGEST.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=0, help="Runs at a time; 0: one per core.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted sweep in that folder.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The short version that the sweep file defines.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="processes: on this machine; ray: also on a cluster and its GPUs (run.num_gpus).")
    ] = Engine.processes,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="An existing Ray cluster; its machines must share the folder.")
    ] = "",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where finished runs are kept for other sweeps.", show_default=False),
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what would be run and how long it takes.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the named studies and leave.")] = False,
    as_json: Json = False,
) -> int:
    """Runs the sweep, writes its tables and page, prints what came out."""
    if listing:
        return _list(as_json)
    from fedpriv.cli.sweep_progress import make_progress
    from fedpriv.config import parse_assignments
    from fedpriv.errors import InputError
    from simulations.sweep import run as launch

    if sweep is None:
        raise InputError("which sweep? Give a name (`fedpriv compare --list`), a TOML file or a folder.")
    overrides = parse_assignments(changes or [])
    progress = make_progress()
    try:
        if plan_only:
            spec = launch.prepare(sweep, overrides, quick=quick)
            points, estimate = launch.foresee(spec, jobs=jobs, engine=engine.value, address=address, progress=progress)
            progress.finish()
            return _plan(spec, points, estimate, as_json)
        done = launch.compare(
            sweep,
            overrides,
            out=out,
            jobs=jobs,
            resume=resume,
            quick=quick,
            engine=engine.value,
            address=address,
            cache=cache,
            progress=progress,
        )
    finally:
        progress.finish()
    return _say(done, as_json)


def _list(as_json: bool) -> int:
    from simulations.sweep import studies

    found = [(name, studies.describe(name)) for name in studies.names()]
    if as_json:
        state.emit({"studies": [{"name": name, "about": about} for name, about in found]})
        return 0
    from fedpriv.cli.text import table

    state.say(table(("name", "what it compares"), found))
    state.say("\nRun one: fedpriv compare NAME      Its short version: fedpriv compare NAME --quick")
    return 0


def _plan(spec: Spec, points: list[Planned], estimate: Estimate | None, as_json: bool) -> int:
    from simulations.sweep.grid import distinct
    from simulations.sweep.store import word

    lines = [
        {"run": p.run, "arm": p.arm, "seed": p.seed, "client": p.client, **{k: word(v) for k, v in p.axes.items()}}
        for p in points
    ]
    if as_json:
        found = {"sweep": spec.sweep.name, "runs": lines, "distinct": len(distinct(points))}
        state.emit({**found, "estimate": asdict(estimate) if estimate else None})
        return 0
    from fedpriv.cli.sweep_progress import estimate_words
    from fedpriv.cli.text import table

    heads = list(dict.fromkeys(key for line in lines for key in line))
    heads = [head for head in heads if any(line.get(head) not in (None, "") for line in lines)]
    state.say(table(heads, [[line.get(head, "") for head in heads] for line in lines]))
    state.say(f"\n{len(points)} combinations, {len(distinct(points))} different runs. None of them was run.")
    if estimate is not None:
        state.say(f"Time, tuning included: {estimate_words(estimate)}.")
    return 0


def _say(sweep: Sweep, as_json: bool) -> int:
    runs = sweep.runs
    counts = {status: sum(r["status"] == status for r in runs) for status in ("done", "refused", "failed")}
    failed = sweep.failures
    page = sweep.path / "report.html"
    if as_json:
        state.emit(
            {
                "folder": str(sweep.path),
                "name": sweep.spec.sweep.name,
                "question": sweep.spec.sweep.question,
                **counts,
                "failures": [
                    {"run": r["run"], "arm": r["arm"], "axes": r["axes"], "error": r["error"]} for r in failed
                ],
                "report": str(page) if page.exists() else None,
            }
        )
        return 1 if failed else 0
    words = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    state.say(f"\n{len(runs)} combinations: {words}. Table: {sweep.path / 'results.parquet'}")
    for entry in failed:
        axes = ", ".join(f"{key}={value}" for key, value in entry["axes"].items())
        state.say(f"failed: {entry['run']} ({', '.join(filter(None, [entry['arm'], axes]))}): {entry['error']}")
    if failed:
        state.say(f"Try the failed ones again: fedpriv compare {sweep.path} --out {sweep.path} --resume")
    if page.exists():
        state.say(f"Report: {page}")
    return 1 if failed else 0
