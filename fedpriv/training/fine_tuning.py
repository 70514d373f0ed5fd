"""The clients' own models: fine-tuned at the client from the global one, kept there, never sent.

What their steps are and cost stands in `fedpriv.personal`; where they are private the caller has reserved them before.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedpriv import evaluation
from fedpriv.data.clients import load_client
from fedpriv.errors import InputError
from fedpriv.models.parameters import REFERENCE, load_trainable, merged_parameters, trainable_vector
from fedpriv.personal import PERSONAL, personal_scenario
from fedpriv.products import matrix_products
from fedpriv.training.streams import Mode
from fedpriv.training.worker import LocalWorker

Vector = NDArray[np.float32]


def personalise(worker: LocalWorker, client: str, parameters: Vector, *, mode: Mode) -> Vector:
    """The client's own model, fine-tuned from the global `parameters` [P] by `personal.steps` steps.

    Where these are private the caller has reserved them before. Reads private rows; the result is never sent.

    Args:
        worker: of the run's scenario, the one-round model set where it has one.
        client: whose data.
        parameters: [P] the global model.
        mode: simulation (seeded streams) or deployment.

    Returns:
        [P'] float32, `personal.parameters` of the model.

    Raises:
        InputError: the scenario asks for no personal models.
    """
    own = _own_worker(worker, parameters)
    start = trainable_vector(own.model).numpy()
    rounds, steps = own.scenario.federation.rounds, own.scenario.federation.local_steps
    found = own.model.reference
    reference = None if found is None else found.state.numpy()
    return own.train(client, start, round=rounds, steps=steps, mode=mode, reference=reference).parameters


def personal_weights(worker: LocalWorker, parameters: Vector, personal: Vector) -> dict[str, Vector]:
    """All parameters of a personal model by name: the file alone makes a forecast."""
    own = _own_worker(worker, parameters)
    load_trainable(own.model, torch.from_numpy(personal.copy()))
    named = {name: value.cpu().numpy().copy() for name, value in merged_parameters(own.model).items()}
    if (found := own.model.reference) is not None:
        named[REFERENCE + found.kind] = found.state.numpy().copy()
    return named


def evaluate_personal(
    worker: LocalWorker,
    client: str,
    parameters: Vector,
    personal: Vector,
    *,
    part: Literal["validation", "test"],
    samples: int,
) -> dict[str, float]:
    """Mergeable sums of a personal model's scores, keys `personal/...`. Reads private rows; simulation only."""
    scenario = worker.scenario
    with matrix_products(scenario.run.products, worker.device):
        own, data = _own_worker(worker, parameters), load_client(scenario, client)
        load_trainable(own.model, torch.from_numpy(personal.copy()))
        return evaluation.evaluate_model(
            PERSONAL, own.model, data, scenario, part=part, samples=samples, device=worker.device
        )


def _own_worker(worker: LocalWorker, parameters: Vector) -> LocalWorker:
    """The worker of the fine-tuning, its model set to the global one."""
    scenario = worker.scenario
    if scenario.personal.kind == "none":
        raise InputError("personal.kind=none: this scenario asks for no personal models. Nothing was trained.")
    own = LocalWorker.for_scenario(personal_scenario(scenario))
    load_trainable(worker.model, torch.from_numpy(parameters.copy()))
    own.model.load_state_dict(worker.model.state_dict())
    own.model.reference = worker.model.reference
    inside = scenario.personal.parameters in ("all", "transformer", "modulation", "bias")
    own.model.run_transformer = worker.model.run_transformer or (inside and own.model.transformer is not None)
    return own
