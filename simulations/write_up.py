"""What a finished simulation leaves beside its numbers: label, model card, how clients differ, examples, page.

Only a simulation can: this process owns the data of all clients, and no client sends anything for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpriv.config import Scenario
from fedpriv.data.clients import describe, load_client
from fedpriv.data.roster import roster
from fedpriv.data.windows import day_steps
from fedpriv.evaluation import LEVELS, Forecasts
from fedpriv.privacy.diagnostics import diagnostics_mark
from fedpriv.reports import heterogeneity
from fedpriv.reports.diagnostics import read_diagnostics, write_summary
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.forecasts import ForecastExamples
from fedpriv.reports.label_page import write_label_page
from fedpriv.reports.model_card import ModelFacts, write_card
from fedpriv.training import LocalWorker

_PICTURED = 4  # clients shown in the report
_PICTURES = 2  # windows of each


def write_up(scenario: Scenario, folder: RunFolder, *, page: bool) -> None:
    """Label, model card, example forecasts and page, from what the run left behind."""
    if scenario.privacy.enabled and (scenario.steps_total or scenario.model.statistics):
        label = _label(scenario, folder)
        folder.write_label(label)
        write_label_page(folder.path / "label.html", label, name=scenario.run.name)
    if found := read_diagnostics(folder.path):
        write_summary(folder.path, found, mark=diagnostics_mark(scenario))
    write_card(folder, _facts(scenario))
    _heterogeneity(scenario, folder)
    folder.write_examples(_examples(scenario, folder))
    if not page:
        return
    from fedpriv.reports.page import write_report

    write_report(folder.path)


def _label(scenario: Scenario, folder: RunFolder) -> dict[str, Any]:
    from fedpriv.privacy.label import build_label

    public = roster(scenario)
    trained = {name: load_client(scenario, name).train for name in public.names}
    return build_label(
        scenario,
        {name: folder.ledger_path(name) for name in public.names},
        steps_per_day=day_steps(public.step),
        calendar_steps={name: part.stop - part.start for name, part in trained.items()},  # declared public
        heads=folder.heads(),
    )


def _heterogeneity(scenario: Scenario, folder: RunFolder) -> None:
    """How the clients differ, from all their readings: only a simulation has them, and no client sends anything."""
    public = roster(scenario)
    if len(public.names) < 2:
        return
    heterogeneity.store(
        folder.path, [load_client(scenario, name) for name in public.names], description=describe(scenario)
    )


def _facts(scenario: Scenario) -> ModelFacts:
    """Calendars, names and units of the training data: nothing of what was read."""
    public = roster(scenario)
    clients = [load_client(scenario, name) for name in public.names]
    clocks = {data.timezone for data in clients}
    return ModelFacts(
        step=public.step,
        channels=public.channels,
        unit=public.unit or clients[0].unit,
        timezone=clocks.pop() if len(clocks) == 1 else "",
        clients=public.names,
        start=min(data.start + data.train.start * data.step for data in clients),
        stop=max(data.start + (data.train.stop - 1) * data.step for data in clients),
        licence=public.licence,
        citation=public.citation,
    )


def _examples(scenario: Scenario, folder: RunFolder) -> ForecastExamples:
    """Windows of the first few clients. This process owns all data of a simulation; no client sends them."""
    found = folder.load_checkpoint()
    assert found is not None, "a run that has a model has a checkpoint"
    worker = LocalWorker.for_scenario(scenario)
    names = list(roster(scenario).names)[:_PICTURED]
    samples = max(scenario.evaluation.samples, 200)  # draws of one window err together: a smooth band takes many
    model, reference = found[1]["model"], found[1].get("reference")
    parts = [worker.forecasts(name, model, count=_PICTURES, samples=samples, reference=reference) for name in names]
    skipped = scenario.task.context if scenario.task.kind == "forecast" else 0

    def joined(attribute: str, begin: int, stop: int | None = None) -> NDArray[Any]:
        return np.concatenate([getattr(part, attribute)[..., begin:stop] for part in parts])

    first: Forecasts = parts[0]
    return ForecastExamples(
        client=np.array([name for name, part in zip(names, parts, strict=True) for _ in part.truth]),
        stamps=joined("stamps", 0),
        context=joined("given", 0, skipped or None),
        truth=joined("truth", skipped),
        point=joined("point", skipped),
        quantiles=joined("quantiles", skipped),
        levels=np.array(LEVELS, dtype=np.float64),
        baseline=joined("baseline", skipped),
        unit=first.unit,
    )
