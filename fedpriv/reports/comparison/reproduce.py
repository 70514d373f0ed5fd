"""How to reproduce a sweep: task, data, code, the command, and what all runs share."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fedpriv.config import Scenario
from fedpriv.provenance import source_digest
from fedpriv.reports.atomic import read_json
from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.sweep import value_words
from fedpriv.reports.comparison.sweep_runs import dotted

_LOCAL = ("run.out", "data.dir", "run.workers", "run.name", "run.engine", "run.device")


def task(base: Scenario) -> str:
    """`forecast 24 steps ahead from the last 168`."""
    if base.task.kind == "forecast":
        return f"forecast {base.task.horizon} steps ahead from the last {base.task.context}"
    return f"{base.task.kind}, windows of {base.task.context + base.task.horizon} steps"


def base(found: Analysis) -> dict[str, Any]:
    """What all runs share, as dotted keys."""
    settings = found.sweep.settings
    return {**dotted(settings.get("base") or {}), **dotted(settings.get("set") or {})}


def facts(found: Analysis) -> list[tuple[str, str]]:
    """Task, dates of the data, code: as the runs wrote them down."""
    rows = [("task", task(Scenario().override(base(found))))]
    for run in found.sweep.done[:1]:
        model: dict[str, Any] = dict(read_json(found.sweep.folder(run) / "model.json"))
        data: dict[str, Any] = model.get("data") or {}
        if model.get("step"):
            rows.append(("step", f"{model['step']}; {', '.join(map(str, model.get('channels') or []))}"))
        if data.get("train_start"):
            rows.append(("trained on", f"{data['train_start']} to {data['train_stop']}; what is held out comes later"))
        if data.get("citation"):
            rows.append(("data", f"{data['citation']} ({data.get('licence') or 'no licence named'})"))
    records: list[dict[str, Any]] = [dict(read_json(found.sweep.folder(run) / "run.json")) for run in found.sweep.done]
    sources = dict.fromkeys(str(record["source_digest"]) for record in records if record.get("source_digest"))
    if sources:
        rows.append(("source digest of the runs", ", ".join(sources)))
    versions: list[dict[str, Any]] = [record["versions"] for record in records if record.get("versions")]
    if versions:
        rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions[0].items())))
    return rows


def reproduce() -> dict[str, str]:
    """How to run the same again, with paths relative to the folder."""
    return {
        "reproduce_text": "The folder's sweep.toml is complete: settings, grid, arms and seeds. The same seeds give "
        "the same runs. A sweep that was interrupted goes on with --resume and the same folder. In the folder of this "
        "page:",
        "command": "fedpriv compare sweep.toml --out ../again",
    }


def shared(found: Analysis) -> list[tuple[str, str]]:
    """Settings of all runs that differ from the defaults; where files lie says nothing about the result."""
    here, default = Scenario().override(base(found)).flat(), Scenario().flat()
    varied = {*found.sweep.varying}
    return [
        (key, value_words(here[key]))
        for key in here
        if here[key] != default[key] and key not in varied and key not in _LOCAL
    ]


def version() -> str:
    """Of the installed package, else the digest of the sources."""
    try:
        return metadata.version("fedpriv")
    except metadata.PackageNotFoundError:
        return f"from source {source_digest()[:12]}"
