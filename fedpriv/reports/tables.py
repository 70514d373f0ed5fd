"""What a run folder says, as plain values: the comparison, the tables of the page, and the summary for scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedpriv.config import Scenario
from fedpriv.reports.atomic import plain
from fedpriv.reports.folder import RunFolder
from fedpriv.reports.numbers import at_most, number, small
from fedpriv.reports.rows import COLUMNS

FEDERATED, NAIVE = "federated", "seasonal-naive"
MODELS = {
    "federated": "Federated model",
    "personal": "Own models",
    "local": "Trained alone",
    "seasonal-naive": "Seasonal naive",
    "last-value": "Last value",
    "linear-interpolation": "Linear interpolation",
    "climatology": "Climatology",
    "ridge": "Ridge regression",
    "gaussian": "Gaussian",
}
METRICS = {
    "mse": "MSE",
    "mae": "MAE",
    "rmse": "RMSE",
    "nmae": "nMAE",
    "crps": "CRPS",
    "energy-score": "Energy score",
    "pinball": "Pinball",
    "wql": "WQL",
    "coverage50": "Coverage 50 %",
    "coverage90": "Coverage 90 %",
    "mape": "MAPE",
    "r2": "R²",
    "dist-kl": "KL",
    "dist-js": "JS",
    "dist-ws": "Wasserstein",
    "dist-ks": "KS",
    "mmd": "MMD²",
    "spectrum-distance": "Spectrum",
}
SHARES = frozenset({"nmae", "mape", "wql", "coverage50", "coverage90"})  # shown in per cent
UNITS = ("reading", "day", "week", "month", "meter")

KINDS = {
    "forecast": "the horizon",
    "random": "single steps",
    "block": "the window's end",
    "stride": "blocks at a stride",
    "gap": "steps in a row",
}
"""What a window may hide (`fedpriv.data.tasks.mask_kinds`), in words."""

# The only metrics that the page may show over rounds. A list of what is allowed, so that a clip fraction or a
# gradient norm that somebody wrote down by mistake cannot reach the page of a private run.
SHOWN = frozenset({*METRICS, "epsilon", "epsilon_nominal"})

_MEANINGFUL = 30.0  # an epsilon above this says nothing that a person could rely on

# One value per (client, model, metric) of one split.
Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Comparison:
    """The federated model against a baseline, by one metric where less is better, on held-out data.

    Attributes:
        reductions: client -> 1 - federated / baseline; positive means less error.
        federated, baseline: means over the clients that have both.
    """

    metric: str
    split: str
    baseline_name: str
    federated: float
    baseline: float
    reductions: dict[str, float]

    @property
    def better(self) -> int:
        """Clients on which the federated model has less error."""
        return sum(value > 0 for value in self.reductions.values())

    @property
    def reduction(self) -> float:
        """1 - federated / baseline of the two means; NaN when the baseline is without error."""
        return 1 - self.federated / self.baseline if self.baseline else math.nan


@dataclass(frozen=True)
class Epsilons:
    """Nominal epsilon over rounds: the smallest and largest of the clients at each round."""

    rounds: list[int]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class RunView:
    """A run folder, read once."""

    folder: RunFolder
    scenario: Scenario
    status: dict[str, Any]
    label: dict[str, Any]
    final: list[dict[str, Any]]
    rounds: dict[str, list[Any]] = field(repr=False)

    @classmethod
    def of(cls, folder: RunFolder) -> RunView:
        """Reads what is there; an interrupted run has less."""
        frame = folder.rounds()
        shown = frame[frame["metric"].isin(list(SHOWN))] if len(frame) else frame
        return cls(
            folder=folder,
            scenario=folder.scenario,
            status=folder.status,
            label=folder.label(),
            final=folder.metrics(),
            rounds={str(name): shown[name].tolist() for name in shown.columns},
        )

    @property
    def private(self) -> bool:
        """Whether the run promises anything."""
        return self.scenario.privacy.enabled

    @property
    def split(self) -> str:
        """The held-out part that the page speaks of: test, else whatever was scored."""
        splits = {str(row["split"]) for row in self.final}
        return "test" if "test" in splits or not splits else sorted(splits)[-1]

    def scores(self, kind: str = "") -> Scores:
        """Client -> model -> metric -> value of the final table; of one of `kinds` alone, if named."""
        out: Scores = {}
        split = f"{self.split}-{kind}" if kind else self.split
        for row in self.final:
            value = row["value"]
            if row["split"] == split and row["metric"] in SHOWN and value is not None and row["client"]:
                out.setdefault(row["client"], {}).setdefault(row["model"], {})[row["metric"]] = float(value)
        return out

    def models(self) -> list[str]:
        """Models that were scored, federated first, in the order of `MODELS`."""
        found = {model for models in self.scores().values() for model in models}
        return [*(name for name in MODELS if name in found), *sorted(found - set(MODELS))]

    def averages(self, kind: str = "") -> dict[str, dict[str, float]]:
        """Model -> metric -> plain mean over clients; of the windows that hide one of `kinds` alone, if named."""
        collected: dict[str, dict[str, list[float]]] = {}
        for models in self.scores(kind).values():
            for model, metrics in models.items():
                for metric, value in metrics.items():
                    collected.setdefault(model, {}).setdefault(metric, []).append(value)
        return {
            model: {metric: fmean(values) for metric, values in collected[model].items()}
            for model in self.models()
            if model in collected
        }

    def kinds(self) -> list[str]:
        """What the windows hid, where one hides this and another that; in the order of `KINDS`."""
        found = {str(row["split"]).removeprefix(f"{self.split}-") for row in self.final} - {self.split}
        return [kind for kind in KINDS if kind in found]

    def compare(self, metric: str = "mse", baseline: str = NAIVE) -> Comparison | None:
        """Federated against `baseline`; None when no client has both scores."""
        scores = self.scores()
        pairs = {
            client: (models[FEDERATED][metric], models[baseline][metric])
            for client, models in scores.items()
            if metric in models.get(FEDERATED, {}) and metric in models.get(baseline, {})
        }
        if not pairs:
            return None
        return Comparison(
            metric=metric,
            split=self.split,
            baseline_name=baseline,
            federated=fmean(ours for ours, _ in pairs.values()),
            baseline=fmean(theirs for _, theirs in pairs.values()),
            reductions={client: 1 - a / b if b else math.nan for client, (a, b) in pairs.items()},
        )

    def ladder(self) -> dict[str, float | None]:
        """Unit -> epsilon, smallest unit first; None where nothing finite can be said."""
        given: Mapping[str, Any] = self.label.get("ladder") or {}
        known = [unit for unit in UNITS if unit in given]
        return {unit: _finite(given[unit]) for unit in [*known, *(u for u in given if u not in UNITS)]}

    def errors_over_rounds(self, metric: str = "mse") -> tuple[str, dict[str, list[tuple[int, float]]]]:
        """(split, client -> [(round, error)]) of the federated model, on the split scored most often."""
        table: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for round_, client, split, model, name, value in self._rows():
            if name == metric and model == FEDERATED and client and math.isfinite(value):
                table.setdefault(split, {}).setdefault(client, []).append((round_, value))
        if not table:
            return "", {}
        split = max(sorted(table), key=lambda name: len({r for points in table[name].values() for r, _ in points}))
        return split, {client: sorted(points) for client, points in table[split].items()}

    def baseline_errors(self, split: str, metric: str = "mse", baseline: str = NAIVE) -> dict[str, float]:
        """Client -> error of a baseline on `split`, from the rounds table or the final one."""
        found = {
            client: value
            for _, client, part, model, name, value in self._rows()
            if (part, model, name) == (split, baseline, metric) and client
        }
        for row in self.final:
            if (row["split"], row["model"], row["metric"]) == (split, baseline, metric) and row["value"] is not None:
                found.setdefault(row["client"], float(row["value"]))
        return found

    def epsilons(self) -> Epsilons:
        """Nominal epsilon over rounds, from rows with the metric `epsilon` (or `epsilon_nominal`)."""
        by_round: dict[int, list[float]] = {}
        for round_, client, _, _, name, value in self._rows():
            if name in ("epsilon", "epsilon_nominal") and client and math.isfinite(value):
                by_round.setdefault(round_, []).append(value)
        rounds = sorted(by_round)
        return Epsilons(rounds, [min(by_round[r]) for r in rounds], [max(by_round[r]) for r in rounds])

    def clients(self) -> list[str]:
        """Every client that the folder speaks of."""
        names = [*self.scores(), *(self.label.get("committed") or {}), *(self.label.get("mechanism") or {})]
        names += [str(client) for client in dict.fromkeys(self.rounds.get("client", [])) if client]
        return list(dict.fromkeys(names))

    def _rows(self) -> Iterable[tuple[int, str, str, str, str, float]]:
        if not self.rounds:
            return ()
        return zip(*(self.rounds[name] for name in COLUMNS), strict=True)


def answer(view: RunView) -> list[str]:
    """The result in words, one sentence or two per paragraph; what a reader needs who reads nothing else."""
    return [text for text in (_verdict(view), _promise(view)) if text]


def _verdict(view: RunView) -> str:
    found = view.compare()
    planned = view.scenario.federation.rounds
    if found is None:
        done, state = view.folder.last_round, view.status.get("status", "interrupted")
        where = f"after round {done} of {planned}" if done else "before its first checkpoint"
        if state == "running":
            return f"This run is at work or was killed ({where}); there are no final scores yet."
        if state == "refused":
            return f"This run was refused {where}: the privacy budget did not allow it. There are no final scores."
        return f"This run has no final scores: it was {state} {where}."
    kind = "Private training" if view.private else "Training without privacy"
    count = len(found.reductions)
    clients = "the only client" if count == 1 else f"{found.better} of {count} clients"
    change = f"{abs(found.reduction):.1%}".replace("%", " %")
    numbers = f"mean squared error {number(found.federated)} against {number(found.baseline)} on the {found.split} part"
    if found.better and found.reduction > 0:
        return f"{kind} beat the seasonal naive forecast on {clients}: {change} less error on average ({numbers})."
    if found.better:
        return (
            f"{kind} beat the seasonal naive forecast on {clients} but not on average: {change} more error ({numbers})."
        )
    return f"{kind} did not beat the seasonal naive forecast on any client: {change} more error on average ({numbers})."


def _promise(view: RunView) -> str:
    if not view.private:
        return "Privacy was off: nothing is promised to anyone, and the model may repeat what it was trained on."
    label = view.label
    epsilon = _finite(label.get("max_epsilon"))
    if epsilon is None:
        budget = view.scenario.privacy
        return (
            f"No label was written. The budget was epsilon {number(budget.epsilon)} per {budget.unit} at delta "
            f"{small(budget.delta)}; the ledgers in this folder say what is spent."
        )
    unit = str(label.get("unit", view.scenario.privacy.unit))
    text = f"Promise to every client: epsilon at most {at_most(epsilon)} for one {unit}"
    larger = {name: value for name, value in view.ladder().items() if name != unit}
    said = [f"{at_most(value)} for one {name}" for name, value in larger.items() if value and value <= _MEANINGFUL]
    if said:
        text += f" ({', '.join(said)})"
    text += f", at delta {small(float(label.get('delta', view.scenario.privacy.delta)))}."
    # None is not known rather than large: the label had no calendar to derive it from.
    weak = [name for name, value in larger.items() if value and value > _MEANINGFUL]
    if weak:
        names = " or ".join(filter(None, (", ".join(weak[:-1]), weak[-1])))
        text += f" Nothing worth calling a promise for one {names}."
    if label.get("seeded"):
        text += " The noise was seeded so that the run can be repeated: this is a simulation, not a guarantee."
    return text


def run_summary(folder: RunFolder | Path | str) -> dict[str, Any]:
    """What `--json` prints: one JSON-ready object, the same keys for every run; null where a part is missing.

    Raises:
        InputError: not a run folder, or a damaged file in it.
    """
    if not isinstance(folder, RunFolder):
        folder = RunFolder.open(folder)
    view = RunView.of(folder)
    found, privacy, label = view.compare(), view.scenario.privacy, view.label
    report = folder.path / "report.html"
    summary = {
        "path": str(folder.path),
        "name": view.scenario.run.name,
        "status": view.status.get("status"),
        "digest": view.scenario.digest(),
        "engine": view.status.get("engine"),
        "rounds": {"done": folder.last_round, "planned": view.scenario.federation.rounds},
        "clients": view.clients(),
        "privacy": {
            "enabled": privacy.enabled,
            "unit": label.get("unit", privacy.unit) if privacy.enabled else None,
            "relation": label.get("relation", privacy.relation) if privacy.enabled else None,
            "delta": label.get("delta", privacy.delta) if privacy.enabled else None,
            "budget": privacy.epsilon if privacy.enabled else None,
            "max_epsilon": label.get("max_epsilon"),
            "ladder": view.ladder(),
            "seeded": label.get("seeded"),
            "mode": label.get("mode"),
        },
        "split": view.split,
        "averages": view.averages(),
        "comparison": found
        and {
            "metric": found.metric,
            "baseline": found.baseline_name,
            "better": found.better,
            "clients": len(found.reductions),
            "reduction": found.reduction,
        },
        "answer": " ".join(answer(view)),
        "seconds": view.status.get("seconds"),
        "report": str(report) if report.exists() else None,
    }
    converted = plain(summary)
    assert isinstance(converted, dict)
    return converted


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
