"""The Flower ClientApp: a request in, a checked release or a coded refusal out.

Order of a training request: who am I, is the request what I agreed to, *then* a durable reservation in the
ledger, *then* the first private row. Whatever goes wrong is answered with a code; the details stay with the
`fedpriv.clients` logger of this process, at DEBUG.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from clients.ledgers import ledgers
from clients.node import BadScenario, Node, NotConfigured, identify
from clients.personal_file import write_personal
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.messages import (
    SCHEMA,
    BudgetReply,
    CountReply,
    CountRequest,
    EvaluateReply,
    EvaluateRequest,
    Hello,
    Refusal,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
    WireError,
    decode_model,
)
from fedpriv.personal import private_steps
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.renyi_contract import AnyContract
from fedpriv.provenance import source_digest
from fedpriv.releases import Kind, side_run
from fedpriv.training import LocalWorker, Trained
from fedpriv.training.fine_tuning import evaluate_personal, personal_weights, personalise

_log = logging.getLogger("fedpriv.clients")

Handler = Callable[[Message, Node], Message]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local private training: `TrainRequest` -> `TrainReply`."""
    return _guarded(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Scores on held-out data: `EvaluateRequest` -> `EvaluateReply`; withheld in deployment."""
    return _guarded(message, context, _evaluate)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is there: -> `Hello`."""
    return _guarded(message, context, _hello)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """A noisy count of readings: `CountRequest` -> `CountReply`; refused unless the scenario pays for it."""
    return _guarded(message, context, _count)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """What windows add up to, noised: `StatisticsRequest` -> `StatisticsReply`; refused unless paid for."""
    return _guarded(message, context, _statistics)


@app.query("budget")
def budget(message: Message, context: Context) -> Message:
    """What is committed, spent and allowed: -> `BudgetReply`."""
    return _guarded(message, context, _budget)


def _guarded(message: Message, context: Context, handler: Handler) -> Message:
    """The reply of `handler`, or a code: no text of an exception leaves this function."""
    try:
        node = identify(context.node_config, context.run_config)
        if node.mode == "simulation":
            _one_thread()
        return handler(message, node)
    except Exception as error:
        refusal = _refusal(error)
        _log.debug("%s refused: %s", message.metadata.message_type, refusal.word, exc_info=True)
        return refusal.to_message(message)


def _refusal(error: Exception) -> Refusal:
    match error:
        case WireError():
            return error.refusal
        case BudgetExceeded():
            return Refusal.BUDGET_EXCEEDED
        case LedgerError():
            return Refusal.LEDGER_CONFLICT
        case NotConfigured():
            return Refusal.NOT_CONFIGURED
        case BadScenario():
            return Refusal.BAD_REQUEST
        case InputError():
            return Refusal.NO_DATA
        case _:
            return Refusal.INTERNAL


# ---- handlers ------------------------------------------------------------------------------------------


def _train(message: Message, node: Node) -> Message:
    request = TrainRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    federation = node.scenario.federation
    if request.steps != federation.local_steps or request.round > node.scenario.rounds:
        raise WireError(
            f"asked for {request.steps} steps in round {request.round}, agreed are {federation.local_steps} steps "
            f"in each of {node.scenario.rounds} rounds"
        )
    worker = LocalWorker.for_scenario(node.local)
    parameters = decode_model(request.model, num_parameters=worker.num_parameters)
    start = Trained(parameters, _rule_state(request, worker))
    _reference(request.reference, worker)
    if request.steps == 0:
        return _reply(message, request, start, 0, "")
    contract = worker.commitments.contract(request.run_id)
    if contract is None:
        if node.mode == "deployment":
            raise NotConfigured("a deployed client trains with privacy only")
        return _reply(message, request, _trained(worker, node, request, start), 0, "")
    return _train_privately(message, node, request, worker, start, contract)


def _train_privately(
    message: Message,
    node: Node,
    request: TrainRequest,
    worker: LocalWorker,
    start: Trained,
    contract: AnyContract,
) -> Message:
    ledger = ledgers.get(node, create=node.mode == "simulation" and request.ledger_seq == 0)
    ledger.check_descends((request.ledger_seq, request.ledger_head))  # an old copy or a fork stops here
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
        return Message(stored.to_record(), reply_to=message)
    if reservation.repeated and node.mode == "deployment":
        # Fresh noise for the same charge would be a second, unpaid release.
        raise WireError("this round was charged before and its reply is lost", Refusal.LOST)
    # In simulation the streams are seeded by client and round: computing again gives the identical release.
    trained = _trained(worker, node, request, start)
    reply = TrainReply(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        ledger_seq=0,
        ledger_head="",
        parameters=trained.parameters,
        rule=trained.rule_state,
    )
    ledger.store_reply(reservation, reply.to_bytes())
    return _reply(message, request, trained, *ledger.head())


def _trained(worker: LocalWorker, node: Node, request: TrainRequest, start: Trained) -> Trained:
    trained = worker.train(
        node.client,
        start.parameters,
        round=request.round,
        steps=request.steps,
        mode=node.mode,
        rule_state=start.rule_state,
        reference=_reference(request.reference, worker),
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


def _rule_state(request: TrainRequest, worker: LocalWorker) -> np.ndarray | None:
    """The memory of the rules that came with a request, of the size that the scenario says."""
    size = worker.rule_state_size
    if (request.rule is None) != (size == 0):
        raise WireError(f"the rules of this scenario keep {size} numbers, but the request says otherwise")
    return None if request.rule is None else decode_model(request.rule, num_parameters=size)


def _reference(record: ArrayRecord | None, worker: LocalWorker) -> np.ndarray | None:
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


def _reply(message: Message, request: TrainRequest, trained: Trained, seq: int, head: str) -> Message:
    reply = TrainReply(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        ledger_seq=seq,
        ledger_head=head,
        parameters=trained.parameters,
        rule=trained.rule_state,
    )
    return Message(reply.to_record(), reply_to=message)


def _evaluate(message: Message, node: Node) -> Message:
    request = EvaluateRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    part = "test" if request.part == "test" else "validation"
    sums: dict[str, float] = {}
    reference = _reference(request.reference, worker)
    if node.mode == "simulation":
        # A copy: torch does not take the read-only view of the message.
        parameters = decode_model(request.model, num_parameters=worker.num_parameters).copy()
        sums = worker.evaluate(node.client, parameters, part=part, samples=request.samples, reference=reference)
    released = _released_metrics(node, request, worker, part)
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

    def make() -> bytes:
        found = personalise(worker, node.client, parameters, mode=node.mode)
        if not np.isfinite(found).all():
            raise WireError("the personal model is not finite", Refusal.INTERNAL)
        return np.ascontiguousarray(found, dtype="<f4").tobytes()

    if _pays_for_personal(request, worker):
        ledger = ledgers.get(node, create=False)
        ledger.check_descends((request.ledger_seq, request.ledger_head))
        steps = worker.scenario.personal.steps
        made = _side_release(node, ledger, worker, request.run_id, "personal", 1, request.digest(), make, steps=steps)
    else:
        made = make()
    personal = np.frombuffer(made, dtype="<f4")
    write_personal(node.personal, personal_weights(worker, parameters, personal), about={"run": request.run_id})
    if node.mode == "deployment":
        return {}  # exact scores of private rows
    return evaluate_personal(worker, node.client, parameters, personal, part="test", samples=request.samples)


def _asks_for_personal(request: EvaluateRequest, worker: LocalWorker) -> bool:
    """Personal models are made once, of the model after the last round."""
    scenario = worker.scenario
    return scenario.personal.kind != "none" and request.part == "test" and request.round == scenario.federation.rounds


def _pays_for_personal(request: EvaluateRequest, worker: LocalWorker) -> bool:
    return _asks_for_personal(request, worker) and private_steps(worker.scenario) > 0


def _released_metrics(
    node: Node, request: EvaluateRequest, worker: LocalWorker, part: Literal["validation", "test"]
) -> dict[str, float]:
    """Noisy scores, if the scenario pays for them; nothing otherwise."""
    if all(c.run_id != side_run(request.run_id, "metrics") for c in worker.commitments.side_contracts(request.run_id)):
        return {}
    number = 2 * request.round + (part == "test")
    parameters = decode_model(request.model, num_parameters=worker.num_parameters).copy()
    reference = _reference(request.reference, worker)

    def make() -> bytes:
        found = worker.release_metrics(
            node.client, parameters, part=part, number=number, mode=node.mode, reference=reference
        )
        return json.dumps(found).encode()

    fresh = request.round == 0 and request.ledger_seq == 0
    ledger = ledgers.get(node, create=node.mode == "simulation" and fresh)
    ledger.check_descends((request.ledger_seq, request.ledger_head))
    return json.loads(_side_release(node, ledger, worker, request.run_id, "metrics", number, request.digest(), make))


def _count(message: Message, node: Node) -> Message:
    request = CountRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    if all(c.run_id != side_run(request.run_id, "count") for c in worker.commitments.side_contracts(request.run_id)):
        raise WireError("the scenario pays for no count")

    def make() -> bytes:
        return json.dumps(worker.release_count(node.client, mode=node.mode)).encode()

    ledger = ledgers.get(node, create=node.mode == "simulation" and request.ledger_seq == 0)
    ledger.check_descends((request.ledger_seq, request.ledger_head))
    found = json.loads(_side_release(node, ledger, worker, request.run_id, "count", 0, request.digest(), make))
    seq, head = ledger.head()
    reply = CountReply(run_id=request.run_id, count=found, ledger_seq=seq, ledger_head=head)
    return Message(reply.to_record(), reply_to=message)


def _statistics(message: Message, node: Node) -> Message:
    request = StatisticsRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    worker = LocalWorker.for_scenario(node.local)
    if worker.one_round is None:
        raise WireError("the scenario fits no one-round model")

    def make() -> bytes:
        return np.ascontiguousarray(worker.release_statistics(node.client, mode=node.mode), dtype="<f4").tobytes()

    seq, head = 0, ""
    if node.scenario.privacy.enabled:
        ledger = ledgers.get(node, create=node.mode == "simulation" and request.ledger_seq == 0)
        ledger.check_descends((request.ledger_seq, request.ledger_head))
        made = _side_release(node, ledger, worker, request.run_id, "statistics", 0, request.digest(), make)
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


def _side_release(
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


def _hello(message: Message, node: Node) -> Message:
    reply = Hello(
        schema=SCHEMA,
        client=node.client,
        partition=node.partition,
        partitions=node.partitions,
        source=source_digest(),
        mode=node.mode,
    )
    return Message(reply.to_record(), reply_to=message)


def _budget(message: Message, node: Node) -> Message:
    enabled = node.scenario.privacy.enabled
    exists = enabled and (node.mode == "deployment" or node.ledger.exists())
    ledger = ledgers.get(node, create=False) if exists else None
    seq, head = ledger.head() if ledger else (0, "")
    reply = BudgetReply(
        client=node.client,
        enabled=int(enabled),
        committed=float(ledger.committed()) if ledger else 0.0,
        nominal=float(ledger.nominal()) if ledger else 0.0,
        budget=node.epsilon if enabled else 0.0,
        delta=node.delta if enabled else 0.0,
        ledger_seq=seq,
        ledger_head=head,
    )
    return Message(reply.to_record(), reply_to=message)


def _check_agreed(source: str, scenario: str, node: Node) -> None:
    if source != source_digest():
        raise WireError("the server runs other code than this client", Refusal.SOURCE_MISMATCH)
    if scenario != node.digest:
        raise WireError("the server runs another scenario than this client", Refusal.SCENARIO_MISMATCH)
    if node.agreed is not None and scenario not in node.agreed:
        raise WireError("the owner has not agreed to this scenario", Refusal.SCENARIO_MISMATCH)


def release() -> None:
    """Closes what this process keeps open between messages (an in-process engine calls it at its end)."""
    ledgers.close()


_memory_kept = False


def _one_thread() -> None:
    """Same number of threads on every engine, so that sums are added in the same order: bit-equal results.

    And memory that is freed stays in the process: per-row gradients are large and short-lived (docs/performance.md).
    """
    global _memory_kept
    import torch

    if torch.get_num_threads() != 1:  # whatever else this process does in between
        torch.set_num_threads(1)
    if not _memory_kept:
        from fedpriv.privacy.engines.allocator import keep_freed_memory

        keep_freed_memory()
        _memory_kept = True
