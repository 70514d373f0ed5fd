"""The training request: checked, reserved in the ledger, and only then a look at private rows."""

from __future__ import annotations

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from clients.agreed import check_agreed, reference_of, rule_state_of
from clients.ledgers import ledgers
from clients.node import Node, NotConfigured
from fedpriv.messages import (
    Refusal,
    TrainReply,
    TrainRequest,
    WireError,
    decode_model,
)
from fedpriv.privacy.renyi_contract import AnyContract
from fedpriv.training import LocalWorker, Trained

Vector = NDArray[np.float32]


def train(message: Message, node: Node) -> Message:
    """`TrainRequest` -> `TrainReply`."""
    request = TrainRequest.from_record(message.content)
    check_agreed(request.source, request.scenario, node)
    federation = node.scenario.federation
    if request.steps != federation.local_steps or request.round > node.scenario.rounds:
        raise WireError(
            f"asked for {request.steps} steps in round {request.round}, agreed are {federation.local_steps} steps "
            f"in each of {node.scenario.rounds} rounds"
        )
    worker = LocalWorker.for_scenario(node.local)
    parameters = decode_model(request.model, num_parameters=worker.num_parameters)
    start = Trained(parameters, rule_state_of(request, worker))
    reference = reference_of(request.reference, worker)
    if request.steps == 0:
        return _sent(message, _reply(request, start, 0, ""))
    contract = worker.commitments.contract(request.run_id)
    if contract is None:
        if node.mode == "deployment":
            raise NotConfigured("a deployed client trains with privacy only")
        return _sent(message, _reply(request, _trained(worker, node, request, start, reference), 0, ""))
    return _train_privately(message, node, request, worker, start, reference, contract)


def _train_privately(
    message: Message,
    node: Node,
    request: TrainRequest,
    worker: LocalWorker,
    start: Trained,
    reference: Vector | None,
    contract: AnyContract,
) -> Message:
    ledger = ledgers.asked(node, request)
    ledgers.enrol(node, ledger, contract, *worker.commitments.side_contracts(request.run_id))
    reservation = ledger.reserve(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        request_digest=request.digest(),
        event=worker.commitments.round_event(request.round, request.steps),
    )
    # From here on the reservation is on disk; private rows may be read.
    if reservation.stored is not None:
        seq, head = ledger.head()
        stored = TrainReply.from_bytes(reservation.stored, ledger_seq=seq, ledger_head=head)
        return _sent(message, stored)
    if reservation.repeated and node.mode == "deployment":
        # Fresh noise for the same charge would be a second, unpaid release.
        raise WireError("this round was charged before and its reply is lost", Refusal.LOST)
    # In simulation the streams are seeded by client and round: computing again gives the identical release.
    trained = _trained(worker, node, request, start, reference)
    ledger.store_reply(reservation, _reply(request, trained, 0, "").to_bytes())
    return _sent(message, _reply(request, trained, *ledger.head()))


def _trained(
    worker: LocalWorker, node: Node, request: TrainRequest, start: Trained, reference: Vector | None
) -> Trained:
    trained = worker.train(
        node.client,
        start.parameters,
        round=request.round,
        steps=request.steps,
        mode=node.mode,
        rule_state=start.rule_state,
        reference=reference,
    )
    pairs = [(trained.parameters, start.parameters), (trained.rule_state, start.rule_state)]
    for after, before in pairs:
        if (after is None) != (before is None) or (
            after is not None
            and before is not None
            and (after.dtype != np.float32 or after.shape != before.shape or not np.isfinite(after).all())
        ):
            raise WireError("what was trained is not a finite float32 vector of the same length", Refusal.INTERNAL)
    return trained


def _reply(request: TrainRequest, trained: Trained, seq: int, head: str) -> TrainReply:
    return TrainReply(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        ledger_seq=seq,
        ledger_head=head,
        parameters=trained.parameters,
        rule=trained.rule_state,
    )


def _sent(message: Message, reply: TrainReply) -> Message:
    return Message(reply.to_record(), reply_to=message)
