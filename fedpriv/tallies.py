"""Adding up the scores of one model on one client's held-out windows, in all and by the kind of what was hidden.

Sums of a model have keys `MODEL/sum...`, of the windows of one kind alone `MODEL.KIND/sum...`. In simulation only, like
all exact scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.distances import DISTANCES, Distances, measure
from fedpriv.examples import Examples
from fedpriv.laws import Law
from fedpriv.metrics import LEVELS as PINBALL_LEVELS
from fedpriv.metrics import METRICS, Score, score

KIND = "."
"""Between a model's name and the kind of windows that it was scored on."""


class Tally:
    """Adds up the scores of one model on one client's held-out windows.

    Args:
        data, scenario: of the client; its training part gives zero and unit of the scaled scores.
        kinds: [windows] what each window hides (`fedpriv.data.tasks.drawn_kinds`), to be scored apart as well; None:
            all together only.
    """

    def __init__(self, data: ClientData, scenario: Scenario, *, kinds: NDArray[np.str_] | None = None) -> None:
        loc, scale = training_moments(data)
        self._loc, self._scale = torch.from_numpy(loc), torch.from_numpy(scale)
        self._span = slice(scenario.task.context if scenario.task.kind == "forecast" else 0, scenario.task.window)
        self._names = set(scenario.evaluation.metrics) & set(DISTANCES)
        self._score, self._distances = Score(), Distances()
        self._kinds = kinds
        self._apart = {} if kinds is None else {str(kind): Score() for kind in np.unique(kinds)}

    def add(self, rows: slice, some: Examples, point: Tensor, drawn: Tensor | None, law: Law | None = None) -> None:
        """Windows `rows` with their point forecast [B, L, C] and samples [S, B, L, C], physical units.

        `law`: the law that the samples were drawn from, where it is one; what has a closed form is scored by it.
        """
        self._score = self._score.merge(self._scored(some, point, drawn, law))
        if self._kinds is not None:
            own = self._kinds[rows]
            for kind in self._apart:
                chosen = torch.from_numpy(np.flatnonzero(own == kind))
                if not len(chosen):
                    continue
                part = None if drawn is None else drawn[:, chosen]
                found = self._scored(some.rows(chosen), point[chosen], part, None if law is None else law.rows(chosen))
                self._apart[kind] = self._apart[kind].merge(found)
        if drawn is not None and self._names:
            found = measure(
                some.values * some.scale + some.loc,
                drawn,
                some.target,
                some.given,
                loc=self._loc,
                scale=self._scale,
                span=self._span,
                names=self._names,
            )
            self._distances = self._distances.merge(found)

    def _scored(self, some: Examples, point: Tensor, drawn: Tensor | None, law: Law | None) -> Score:
        truth = some.values * some.scale + some.loc
        scored = score(truth, point, drawn, some.target, self._scale)
        if law is None or drawn is None:
            return scored
        return replace(scored, **closed_sums(truth, law, some.target, self._scale))

    def sums(self, name: str) -> dict[str, float]:
        """All sums, keys `name/...`, and those of one kind of windows, keys `name.KIND/...`."""
        parts = [(name, self._score.to_dict()), (name, self._distances.to_dict())]
        parts += [(f"{name}{KIND}{kind}", one.to_dict()) for kind, one in self._apart.items()]
        return {f"{whose}/{key}": value for whose, sums in parts for key, value in sums.items()}


def training_moments(data: ClientData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] mean and standard deviation of the training part, physical units: the zero and unit of the scaled scores."""
    values = data.values[:, data.train].astype(np.float64)
    read = np.isfinite(values)
    count = np.maximum(read.sum(axis=(0, 1)), 1)
    mean = np.where(read, values, 0.0).sum(axis=(0, 1)) / count
    std = np.sqrt(np.where(read, np.square(values - mean), 0.0).sum(axis=(0, 1)) / count)
    return mean, np.where(std > 0, std, 1.0)


def model_and_split(whose: str, part: str) -> tuple[str, str]:
    """What stands before the `/` of a sum -> the model, and the split of its row: the part, or PART-KIND."""
    model, _, kind = whose.partition(KIND)
    return model, f"{part}-{kind}" if kind else part


def metrics_of(sums: Mapping[str, float], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Model -> metric -> value from the sums of `evaluate`; a metric that nothing was scored for is left out."""
    wanted = list(names)
    plain, distant = [n for n in wanted if n in METRICS], [n for n in wanted if n in DISTANCES]
    out: dict[str, dict[str, float]] = {}
    for model, one in scores(sums).items():
        own = {key.partition("/")[2]: value for key, value in sums.items() if key.startswith(f"{model}/")}
        out[model] = one.finalize(plain) | Distances.from_dict(own).finalize(distant)
    return out


def closed_sums(truth: Tensor, law: Law, target: Tensor, unit_scale: Tensor) -> dict[str, float]:
    """The sums of a `Score` that a forecast has in closed form, in place of those from samples.

    Args:
        truth: [B, L, C] physical units; read at targets only.
        law: of the forecast.
        target: [B, L, C] bool.
        unit_scale: [C]: the client's training standard deviation.
    """
    unit = unit_scale.double().expand(truth.shape)[target]  # [n]
    y, centre, spread = (x[target].double() for x in (truth, law.centre, law.spread))
    level = torch.tensor(PINBALL_LEVELS, dtype=torch.float64)[:, None]
    place = torch.tensor([law.standard_quantile(at) for at in PINBALL_LEVELS], dtype=torch.float64)[:, None]
    under = y - (centre + spread * place)  # [levels, n]
    loss = torch.maximum(level * under, (level - 1.0) * under).mean(dim=0)
    error = (y - centre).abs()
    sums = {
        "crps": (law.crps(truth, target) / unit).sum(),
        "covered50": (error <= law.standard_quantile(0.75) * spread).sum(),
        "covered90": (error <= law.standard_quantile(0.95) * spread).sum(),
        "pinball": (loss / unit).sum(),
        "raw_pinball": loss.sum(),
    }
    return {name: float(value) for name, value in sums.items()}


def scores(sums: Mapping[str, float]) -> dict[str, Score]:
    """The sums of `evaluate`, by model, without the sketches of distances."""
    names = {key.partition("/")[0] for key in sums}
    return {
        name: Score.from_dict({k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{name}/")})
        for name in sorted(names)
    }
