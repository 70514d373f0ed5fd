"""The tables of a run's page: averages, clients, personal models, how clients differ, settings and facts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedpriv.config import Scenario
from fedpriv.data.heterogeneity import Card
from fedpriv.data.registry import dataset
from fedpriv.reports import heterogeneity
from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.numbers import at_most, number
from fedpriv.reports.personal import pairs
from fedpriv.reports.tables import FEDERATED, KINDS, METRICS, MODELS, SHARES, RunView

DATASETS = {"eia930": "eia930", "pjm": "pjm", "ett": "ett", "sgsc": "sgsc10"}  # source -> registry


def differences_table(card: Card) -> Grid:
    """How the clients differ, a number each."""
    found = [(text, value) for _, text, value in heterogeneity.rows(card) if math.isfinite(value)]
    return Grid([Head("measure"), Head("value")], [[Cell(text), Cell(number(value), value)] for text, value in found])


def averages_table(view: RunView) -> Grid:
    """Every metric of every model, averaged over clients."""
    averages = view.averages()
    metrics = [name for name in METRICS if any(name in row for row in averages.values())]
    heads = [Head("Model"), *(Head(METRICS[name], _TITLES.get(name, "")) for name in metrics)]
    rows = [
        [Cell(MODELS.get(model, model)), *(_metric_cell(name, averages[model].get(name)) for name in metrics)]
        for model in averages
    ]
    return Grid(heads, rows)


def kinds_table(view: RunView) -> Grid:
    """Errors of every model by what a window hides, averaged over clients; empty where all hide the same."""
    kinds = view.kinds()
    by_kind = {kind: view.averages(kind) for kind in kinds}
    shown = [
        name for name in ("mse", "crps") if any(name in row for found in by_kind.values() for row in found.values())
    ]
    heads = [Head("Model")]
    heads += [Head(f"{METRICS[name]}, {KINDS[kind]}", _TITLES[name]) for kind in kinds for name in shown]
    rows = [
        [
            Cell(MODELS.get(model, model)),
            *(_metric_cell(name, by_kind[kind].get(model, {}).get(name)) for kind in kinds for name in shown),
        ]
        for model in view.models()
    ]
    return Grid(heads, rows if kinds else [])


def client_table(view: RunView) -> Grid:
    """Every client: errors of the models, gain over the seasonal naive forecast, committed epsilon."""
    scores, found = view.scores(), view.compare()
    models = view.models()
    extras = [
        name
        for name in ("nmae", "crps", "coverage90")
        if any(name in models_.get(FEDERATED, {}) for models_ in scores.values())
    ]
    committed: Mapping[str, Any] = (view.label.get("committed") or {}) if view.private else {}
    heads = [
        Head("Client"),
        *(Head(f"MSE {MODELS.get(model, model).lower()}", _TITLES["mse"]) for model in models),
        Head("against naive", "1 - model / seasonal naive, in MSE"),
        *(Head(f"{METRICS[name]} federated", _TITLES[name]) for name in extras),
        *([Head("epsilon", "committed")] if committed else []),
    ]
    rows: list[list[Cell]] = []
    for client, by_model in scores.items():
        change = found.reductions.get(client) if found else None
        row = [Cell(client), *(_metric_cell("mse", by_model.get(model, {}).get("mse")) for model in models)]
        row.append(_change_cell(change))
        row += [_metric_cell(name, by_model.get(FEDERATED, {}).get(name)) for name in extras]
        if committed:
            epsilon = committed.get(client)
            row.append(Cell(at_most(epsilon), epsilon))
        rows.append(row)
    return Grid(heads, rows)


def personal_table(view: RunView) -> Grid:
    """Every client's own model against the global one."""
    heads = [
        Head("Client"),
        Head("MSE global", _TITLES["mse"]),
        Head("MSE own", _TITLES["mse"]),
        Head("own against global", "1 - own / global, in MSE"),
    ]
    rows = [
        [Cell(p.client), _metric_cell("mse", p.shared), _metric_cell("mse", p.own), _change_cell(p.reduction)]
        for p in pairs(view)
    ]
    return Grid(heads, rows)


_TITLES = {
    "mse": "mean squared error of scaled values",
    "mae": "mean absolute error of scaled values",
    "rmse": "square root of the MSE",
    "nmae": "sum of absolute errors / sum of absolute readings",
    "energy-score": "the CRPS of whole windows",
    "pinball": "mean loss of the forecast quantiles",
    "wql": "weighted quantile loss, share of the sum of readings",
    "coverage50": "share of readings inside the 50 % band",
    "crps": "continuous ranked probability score of scaled values",
    "coverage90": "share of readings inside the 90 % band",
    "mape": "mean of absolute error / reading",
    "r2": "share of the variance of the targets that is explained; below 0: worse than their mean",
    "dist-kl": "Kullback-Leibler divergence of all forecast values from all readings, nats",
    "dist-js": "Jensen-Shannon divergence of all forecast values and all readings, 0 to 1",
    "dist-ws": "1-Wasserstein distance of all forecast values and all readings, scaled",
    "dist-ks": "Kolmogorov-Smirnov distance of all forecast values and all readings",
    "mmd": "squared maximum mean discrepancy of whole windows; about 0 is right",
    "spectrum-distance": "mean squared difference of the normalised power spectra",
}


def _metric_cell(metric: str, value: float | None) -> Cell:
    if value is None:
        return Cell("–", None)
    text = percent(value) if metric in SHARES else number(value)
    return Cell(text, value)


def _change_cell(reduction: float | None) -> Cell:
    if reduction is None or reduction != reduction:
        return Cell("–", None)
    sign = "\N{MINUS SIGN}" if reduction > 0 else "+"
    return Cell(f"{sign}{percent(abs(reduction))}", -reduction, "good" if reduction > 0 else "bad")


def changes(scenario: Scenario) -> list[tuple[str, str, str]]:
    """(key, value, default) of what the scenario sets otherwise than the defaults."""
    here, default = scenario.flat(), Scenario().flat()
    # Where files lie says nothing about the result, and a page that is mailed need not tell it.
    local = ("run.out", "data.dir", "run.workers")
    return [
        (key, _show(here[key]), _show(default[key])) for key in here if here[key] != default[key] and key not in local
    ]


def facts(view: RunView) -> Iterable[tuple[str, str]]:
    """(name, value) of what identifies the run: digests, seed, engine, data, versions."""
    status = view.status
    yield "Scenario digest", view.scenario.digest()
    if status.get("source_digest"):
        yield "Source digest", str(status["source_digest"])
    yield "Seed", str(view.scenario.run.seed)
    yield "Engine and device", f"{status.get('engine', '–')}, {status.get('device', '–')}"
    if status.get("source_changes"):
        yield "Source changed", "the run was continued by other code: " + _show(status["source_changes"])
    seconds = status.get("seconds")
    if isinstance(seconds, int | float):
        yield "Time", f"{number(float(seconds))} s"
    if status.get("created"):
        yield "Started", str(status["created"])
    key = DATASETS.get(view.scenario.data.source)
    if key:
        known = dataset(key)
        yield "Data", known.title
        yield "Licence of the data", known.licence
        yield "Cite", known.citation
    versions = status.get("versions")
    if isinstance(versions, Mapping):
        yield "Versions", ", ".join(f"{key} {value}" for key, value in versions.items())


def _show(value: object) -> str:
    return "(empty)" if value == "" else str(value)


def percent(value: float) -> str:
    """A share, as a percentage."""
    return f"{value * 100:.1f} %"
