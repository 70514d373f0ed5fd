"""What is checked of a request before anything is done for it: that it is what this client agreed to."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord

from clients.node import Node
from fedpriv.data.roster import roster
from fedpriv.errors import InputError
from fedpriv.messages import (
    Refusal,
    TrainRequest,
    WireError,
    decode_model,
)
from fedpriv.provenance import source_digest
from fedpriv.training import LocalWorker


def check_agreed(source: str, scenario: str, node: Node) -> None:
    """Raises WireError where a request comes of other code, or asks for a scenario that the owner has not agreed to."""
    if source != source_digest():
        raise WireError("the server runs other code than this client", Refusal.SOURCE_MISMATCH)
    if scenario != node.digest:
        raise WireError("the server runs another scenario than this client", Refusal.SCENARIO_MISMATCH)
    if node.agreed is not None and scenario not in node.agreed:
        raise WireError("the owner has not agreed to this scenario", Refusal.SCENARIO_MISMATCH)
    if node.mode == "deployment" and node.scenario.data.source == "nodes":
        ours, theirs = roster(node.local), roster(node.scenario)
        if ours.step != theirs.step or len(ours.channels) != len(theirs.channels):
            # The server's label counts days on the federation's calendar.
            raise WireError("this node's data have another step, or other channels, than the federation agreed on")


def rule_state_of(request: TrainRequest, worker: LocalWorker) -> np.ndarray | None:
    """The memory of the rules that came with a request, of the size that the scenario says."""
    size = worker.rule_state_size
    if (request.rule is None) != (size == 0):
        raise WireError(f"the rules of this scenario keep {size} numbers, but the request says otherwise")
    return None if request.rule is None else decode_model(request.rule, num_parameters=size)


def reference_of(record: ArrayRecord | None, worker: LocalWorker) -> np.ndarray | None:
    """The fitted one-round model that came with a request; checked, and in place in the worker's model."""
    size = worker.one_round.state_size if worker.one_round is not None else 0
    if (record is None) != (size == 0):
        raise WireError("a request carries a one-round model if and only if the scenario fits one")
    if record is None:
        return None
    state = decode_model(record, num_parameters=size)
    try:
        worker.set_reference(state)
    except InputError as error:
        raise WireError(f"the one-round model is none: {error}") from None
    return state
