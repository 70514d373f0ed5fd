"""Scores in all and by the kind of what was hidden; exact where the forecast's law is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.evaluation import evaluate
from fedpriv.laws import Law
from fedpriv.metrics import crps, pinball, quantile
from fedpriv.tallies import closed_sums, metrics_of, model_and_split, scores
from fedpriv.training import LocalWorker

SMALL = {
    "data.days": 200,
    "partition.clients": 1,
    "task.context": 48,
    "evaluation.windows": 60,
    "model.depth": 0,
    "privacy.enabled": False,
    "model.warm_start": "",
}


def _sums(**changes: object) -> dict[str, float]:
    scenario = Scenario().override(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    data = load_client(scenario, roster(scenario).names[0])
    model = LocalWorker(scenario).model
    return evaluate(model, data, scenario, part="test", samples=5, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "mask", "kinds"),
    [
        ("mixed", "any", {"forecast", "random", "block", "stride"}),
        ("mixed", "gap", {"forecast", "gap"}),
        ("imputation", "any", {"random", "block", "stride"}),
    ],
)
def test_kinds_of_windows_add_up_to_all(kind, mask, kinds) -> None:
    sums = _sums(task__kind=kind, task__mask=mask)
    by_name = scores(sums)
    models = {name for name in by_name if "." not in name}
    assert models == {"federated", "seasonal-naive", "last-value", "linear-interpolation", "climatology"}
    for model in models:
        apart = {name: one for name, one in by_name.items() if name.startswith(f"{model}.")}
        assert {name.partition(".")[2] for name in apart} == kinds
        whole = apart.pop(f"{model}.{min(kinds)}")
        for one in apart.values():
            whole = whole.merge(one)
        assert whole.to_dict() == pytest.approx(by_name[model].to_dict(), rel=1e-9)
    found = metrics_of(sums, ["mse", "crps"])
    assert found[f"federated.{min(kinds)}"].keys() == {"mse", "crps"}
    # the end of a window is harder than what has neighbours on both sides
    if "random" in kinds:
        assert found["linear-interpolation.random"]["mse"] < found["linear-interpolation.block"]["mse"]


@pytest.mark.parametrize(("kind", "mask"), [("forecast", "any"), ("imputation", "block")])
def test_where_all_windows_hide_the_same_there_is_one_score(kind, mask) -> None:
    sums = _sums(task__kind=kind, task__mask=mask)
    assert not [key for key in sums if "." in key.partition("/")[0]]


def test_rows_name_model_and_split() -> None:
    assert model_and_split("federated", "test") == ("federated", "test")
    assert model_and_split("seasonal-naive.block", "test") == ("seasonal-naive", "test-block")


@pytest.mark.parametrize("dof", [float("inf"), 3.0])
def test_closed_sums_are_what_many_samples_come_to(dof: float) -> None:
    rng = np.random.default_rng(4)
    shape = (5, 8, 2)
    truth, centre = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    law = Law(centre, torch.from_numpy(rng.uniform(0.5, 2.0, size=shape)), dof)
    noise = rng.normal(size=(5000, *shape)) if np.isinf(dof) else rng.standard_t(dof, size=(5000, *shape))
    target, unit = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7, torch.tensor([1.0, 3.0])
    ordered = (law.centre + law.spread * torch.from_numpy(noise))[:, target].sort(dim=0).values  # [S, n]
    y, per_unit = truth[target], unit.expand(shape)[target]
    inside = [(y >= quantile(ordered, low)) & (y <= quantile(ordered, 1 - low)) for low in (0.25, 0.05)]
    exact = closed_sums(truth, law, target, unit)
    assert exact.keys() == {"crps", "covered50", "covered90", "pinball", "raw_pinball"}
    assert exact["crps"] == pytest.approx(float((crps(ordered, y) / per_unit).sum()), rel=0.01)
    assert exact["pinball"] == pytest.approx(float((pinball(ordered, y) / per_unit).sum()), rel=0.01)
    assert exact["raw_pinball"] == pytest.approx(float(pinball(ordered, y).sum()), rel=0.01)
    for name, found in zip(("covered50", "covered90"), inside, strict=True):
        assert abs(exact[name] - float(found.sum())) <= 1  # one entry may lie at the very edge
