"""The Flower ClientApp: a request in, a checked release or a coded refusal out.

Order of a training request: who am I, is the request what I agreed to, *then* a durable reservation in the
ledger, *then* the first private row. Whatever goes wrong is answered with a code; the details stay with the
`fedpriv.clients` logger of this process, at DEBUG.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.node import Node, NotConfigured, identify
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.messages import (
    SCHEMA,
    BudgetReply,
    EvaluateReply,
    EvaluateRequest,
    Hello,
    Refusal,
    TrainReply,
    TrainRequest,
    WireError,
    decode_model,
)
from fedpriv.privacy.contract import Contract
from fedpriv.privacy.ledger import Ledger
from fedpriv.provenance import source_digest
from fedpriv.training import LocalWorker

_log = logging.getLogger("fedpriv.clients")
_MAX_LEDGERS = 128  # open files; the least recently used is closed

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
        case InputError():
            return Refusal.NO_DATA
        case _:
            return Refusal.INTERNAL


# ---- handlers ------------------------------------------------------------------------------------------


def _train(message: Message, node: Node) -> Message:
    request = TrainRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    federation = node.scenario.federation
    if request.steps != federation.local_steps or request.round > federation.rounds:
        raise WireError(
            f"asked for {request.steps} steps in round {request.round}, agreed are {federation.local_steps} steps "
            f"in each of {federation.rounds} rounds"
        )
    worker = LocalWorker.for_scenario(node.local)
    parameters = decode_model(request.model, num_parameters=worker.num_parameters)
    if request.steps == 0:
        return _reply(message, request, parameters, 0, "")
    contract = worker.contract(request.run_id)
    if contract is None:
        if node.mode == "deployment":
            raise NotConfigured("a deployed client trains with privacy only")
        return _reply(message, request, _trained(worker, node, request, parameters), 0, "")
    return _train_privately(message, node, request, worker, parameters, contract)


def _train_privately(
    message: Message,
    node: Node,
    request: TrainRequest,
    worker: LocalWorker,
    parameters: np.ndarray,
    contract: Contract,
) -> Message:
    ledger = _ledgers.get(node, create=node.mode == "simulation" and request.ledger_seq == 0)
    ledger.check_descends((request.ledger_seq, request.ledger_head))  # an old copy or a fork stops here
    _ledgers.enrol(node, ledger, contract)
    reservation = ledger.reserve(
        run_id=request.run_id, round=request.round, steps=request.steps, request_digest=request.digest()
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
    trained = _trained(worker, node, request, parameters)
    reply = TrainReply(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        ledger_seq=0,
        ledger_head="",
        parameters=trained,
    )
    ledger.store_reply(reservation, reply.to_bytes())
    return _reply(message, request, trained, *ledger.head())


def _trained(worker: LocalWorker, node: Node, request: TrainRequest, parameters: np.ndarray) -> np.ndarray:
    trained = worker.train(node.client, parameters, round=request.round, steps=request.steps, mode=node.mode)
    if trained.dtype != np.float32 or trained.shape != parameters.shape or not np.isfinite(trained).all():
        raise WireError("the trained model is not a finite float32 vector of the same length", Refusal.INTERNAL)
    return trained


def _reply(message: Message, request: TrainRequest, parameters: np.ndarray, seq: int, head: str) -> Message:
    reply = TrainReply(
        run_id=request.run_id,
        round=request.round,
        steps=request.steps,
        ledger_seq=seq,
        ledger_head=head,
        parameters=parameters,
    )
    return Message(reply.to_record(), reply_to=message)


def _evaluate(message: Message, node: Node) -> Message:
    request = EvaluateRequest.from_record(message.content)
    _check_agreed(request.source, request.scenario, node)
    sums: dict[str, float] = {}
    if node.mode == "simulation":
        worker = LocalWorker.for_scenario(node.local)
        parameters = decode_model(request.model, num_parameters=worker.num_parameters)
        part = "test" if request.part == "test" else "validation"
        # A copy: torch does not take the read-only view of the message.
        sums = worker.evaluate(node.client, parameters.copy(), part=part, samples=request.samples)
    withheld = int(node.mode == "deployment")  # an exact score of private rows is a release nobody paid for
    reply = EvaluateReply(run_id=request.run_id, round=request.round, part=request.part, withheld=withheld, sums=sums)
    return Message(reply.to_record(), reply_to=message)


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
    ledger = _ledgers.get(node, create=False) if exists else None
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


# ---- the ledger ----------------------------------------------------------------------------------------


class _Ledgers:
    """Open ledgers of this process by path."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Ledger] = OrderedDict()
        self._enrolled: dict[str, Contract] = {}

    def get(self, node: Node, *, create: bool) -> Ledger:
        """The ledger of `node`, made if `create` and there is none."""
        key = str(node.ledger)
        found, exists = self._open.get(key), node.ledger.exists()
        if found is not None and exists:
            self._open.move_to_end(key)
            return found
        self._drop(key)
        if not exists and not create:
            raise WireError("the ledger of an enrolled client is missing", Refusal.LEDGER_MISSING)
        self._open[key] = _open(node) if exists else _create(node)
        if len(self._open) > _MAX_LEDGERS:
            self._drop(next(iter(self._open)))
        return self._open[key]

    def enrol(self, node: Node, ledger: Ledger, contract: Contract) -> None:
        """Enrols once per process; the file knows it for good."""
        key = str(node.ledger)
        if self._enrolled.get(key) != contract:
            ledger.enrol(contract)
            self._enrolled[key] = contract

    def close(self) -> None:
        """Closes all; the next request opens its ledger again."""
        for key in list(self._open):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._enrolled.pop(key, None)
        if (ledger := self._open.pop(key, None)) is not None:
            ledger.close()


_ledgers = _Ledgers()


def _create(node: Node) -> Ledger:
    node.ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    privacy = node.scenario.privacy
    return Ledger.create(
        node.ledger,
        dataset=node.dataset,
        budget_epsilon=node.epsilon,
        delta=node.delta,
        unit=privacy.unit,
        relation=privacy.relation,
        mode=node.mode,
    )


def _open(node: Node) -> Ledger:
    return Ledger.open(node.ledger, dataset=node.dataset, mode=node.mode)


def release() -> None:
    """Closes what this process keeps open between messages (an in-process engine calls it at its end)."""
    _ledgers.close()


_threads_set = False


def _one_thread() -> None:
    """Same number of threads on every engine, so that sums are added in the same order: bit-equal results."""
    global _threads_set
    if not _threads_set:
        import torch

        torch.set_num_threads(1)
        _threads_set = True
