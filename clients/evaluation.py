"""The evaluation request: exact scores in simulation, noisy ones where they are paid for, the client's own model."""

from __future__ import annotations

import logging

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from clients.agreed import check_agreed, reference_of
from clients.ledgers import ledgers
from clients.node import Node
from clients.personal_file import write_personal
from clients.releases import released_metrics, side_release
from fedpriv.messages import (
    EvaluateReply,
    EvaluateRequest,
    Refusal,
    WireError,
    decode_model,
)
from fedpriv.personal import private_steps
from fedpriv.training import LocalWorker
from fedpriv.training.fine_tuning import evaluate_personal, personal_weights, personalise

_log = logging.getLogger("fedpriv.clients")
Vector = NDArray[np.float32]


def evaluate(message: Message, node: Node) -> Message:
    """`EvaluateRequest` -> `EvaluateReply`."""
    request = EvaluateRequest.from_record(message.content)
    check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    part = "test" if request.part == "test" else "validation"
    sums: dict[str, float] = {}
    reference = reference_of(request.reference, worker)
    if node.mode == "simulation":
        # A copy: torch does not take the read-only view of the message.
        parameters = decode_model(request.model, num_parameters=worker.num_parameters).copy()
        sums = worker.evaluate(node.client, parameters, part=part, samples=request.samples, reference=reference)
    released = released_metrics(node, request, worker, part, reference)
    sums |= _personal(node, request, worker)
    charged = bool(released) or _pays_for_personal(request, worker)
    seq, head = ledgers.get(node, create=False).head() if charged else (0, "")
    reply = EvaluateReply(
        run_id=request.run_id,
        round=request.round,
        part=request.part,
        withheld=int(node.mode == "deployment"),  # an exact score of private rows is a release nobody paid for
        ledger_seq=seq,
        ledger_head=head,
        sums=sums,
        released=released,
    )
    return Message(reply.to_record(), reply_to=message)


def _personal(node: Node, request: EvaluateRequest, worker: LocalWorker) -> dict[str, float]:
    """Makes the client's own model of the finished run and keeps it beside the ledger; its scores, in simulation."""
    if not _asks_for_personal(request, worker):
        return {}
    parameters = decode_model(request.model, num_parameters=worker.num_parameters).copy()
    if node.mode == "deployment" and not _pays_for_personal(request, worker):
        # Steps without noise, which nobody paid for: whether they went well must not be seen in the answer. A server
        # could choose a model that overflows on some readings and not on others.
        try:
            _keep_personal(node, request, worker, parameters)
        except Exception:
            _log.debug("the client's own model was not made", exc_info=True)
        return {}
    personal = _keep_personal(node, request, worker, parameters)
    if node.mode == "deployment":
        return {}  # exact scores of private rows
    return evaluate_personal(worker, node.client, parameters, personal, part="test", samples=request.samples)


def _keep_personal(node: Node, request: EvaluateRequest, worker: LocalWorker, parameters: Vector) -> Vector:
    """Makes the client's own model from the global one, paid for where it is private, and writes it down."""

    def make() -> bytes:
        found = personalise(worker, node.client, parameters, mode=node.mode)
        if not np.isfinite(found).all():
            raise WireError("the personal model is not finite", Refusal.INTERNAL)
        return np.ascontiguousarray(found, dtype="<f4").tobytes()

    if _pays_for_personal(request, worker):
        ledger = ledgers.asked(node, request, first=False)
        steps = worker.scenario.personal.steps
        made = side_release(node, ledger, worker, request.run_id, "personal", 1, request.digest(), make, steps=steps)
    else:
        made = make()
    personal = np.frombuffer(made, dtype="<f4")
    write_personal(node.personal, personal_weights(worker, parameters, personal), about={"run": request.run_id})
    return personal


def _asks_for_personal(request: EvaluateRequest, worker: LocalWorker) -> bool:
    """Personal models are made once, of the model after the last round."""
    scenario = worker.scenario
    return scenario.personal.kind != "none" and request.part == "test" and request.round == scenario.federation.rounds


def _pays_for_personal(request: EvaluateRequest, worker: LocalWorker) -> bool:
    return _asks_for_personal(request, worker) and private_steps(worker.scenario) > 0
