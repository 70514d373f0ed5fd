"""Numbers beside the model: count, statistics, noisy scores.

Each is enrolled and reserved in the ledger, only then made from private rows, and stored before it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from clients.agreed import check_agreed
from clients.ledgers import ledgers
from clients.node import Node, NotConfigured
from fedpriv.messages import (
    CountReply,
    CountRequest,
    EvaluateRequest,
    Refusal,
    StatisticsReply,
    StatisticsRequest,
    WireError,
    decode_model,
)
from fedpriv.privacy.ledger import Ledger
from fedpriv.releases import Kind, side_run
from fedpriv.training import LocalWorker


def released_metrics(
    node: Node,
    request: EvaluateRequest,
    worker: LocalWorker,
    part: Literal["validation", "test"],
    reference: NDArray[np.float32] | None,
) -> dict[str, float]:
    """Noisy scores, if the scenario pays for them; nothing otherwise."""
    if all(c.run_id != side_run(request.run_id, "metrics") for c in worker.commitments.side_contracts(request.run_id)):
        return {}
    number = 2 * request.round + (part == "test")
    parameters = decode_model(request.model, num_parameters=worker.num_parameters).copy()

    def make() -> bytes:
        found = worker.release_metrics(
            node.client, parameters, part=part, number=number, mode=node.mode, reference=reference
        )
        return json.dumps(found).encode()

    ledger = ledgers.asked(node, request, first=request.round == 0)
    return json.loads(side_release(node, ledger, worker, request.run_id, "metrics", number, request.digest(), make))


def count(message: Message, node: Node) -> Message:
    """`CountRequest` -> `CountReply`."""
    request = CountRequest.from_record(message.content)
    check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    if all(c.run_id != side_run(request.run_id, "count") for c in worker.commitments.side_contracts(request.run_id)):
        raise WireError("the scenario pays for no count")

    def make() -> bytes:
        return json.dumps(worker.release_count(node.client, mode=node.mode)).encode()

    ledger = ledgers.asked(node, request)
    found = json.loads(side_release(node, ledger, worker, request.run_id, "count", 0, request.digest(), make))
    seq, head = ledger.head()
    reply = CountReply(run_id=request.run_id, count=found, ledger_seq=seq, ledger_head=head)
    return Message(reply.to_record(), reply_to=message)


def statistics(message: Message, node: Node) -> Message:
    """`StatisticsRequest` -> `StatisticsReply`."""
    request = StatisticsRequest.from_record(message.content)
    check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    if worker.one_round is None:
        raise WireError("the scenario fits no one-round model")

    def make() -> bytes:
        return np.ascontiguousarray(worker.release_statistics(node.client, mode=node.mode), dtype="<f4").tobytes()

    seq, head = 0, ""
    if node.scenario.privacy.enabled:
        ledger = ledgers.asked(node, request)
        made = side_release(node, ledger, worker, request.run_id, "statistics", 0, request.digest(), make)
        seq, head = ledger.head()
    elif node.mode == "deployment":
        raise NotConfigured("a deployed client releases statistics with privacy only")
    else:
        made = make()
    found = np.frombuffer(made, dtype="<f4")
    if found.size != worker.one_round.statistics:
        raise WireError("the stored statistics are damaged; they were not sent", Refusal.LEDGER_CONFLICT)
    reply = StatisticsReply(run_id=request.run_id, ledger_seq=seq, ledger_head=head, statistics=found)
    return Message(reply.to_record(), reply_to=message)


def side_release(
    node: Node,
    ledger: Ledger,
    worker: LocalWorker,
    run_id: str,
    kind: Kind,
    number: int,
    digest: str,
    make: Callable[[], bytes],
    *,
    steps: int = 1,
) -> bytes:
    """The stored bytes of a side release, or new ones: enrolled, reserved, and only then made from private rows."""
    contract = worker.commitments.contract(run_id)  # none where the statistics are all of the run
    ledgers.enrol(node, ledger, *([] if contract is None else [contract]), *worker.commitments.side_contracts(run_id))
    reservation = ledger.reserve(run_id=side_run(run_id, kind), round=number, steps=steps, request_digest=digest)
    if reservation.stored is not None:
        return reservation.stored
    if reservation.repeated and node.mode == "deployment":
        raise WireError("this release was charged before and its reply is lost", Refusal.LOST)
    made = make()
    ledger.store_reply(reservation, made)
    return made
