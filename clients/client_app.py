"""The Flower ClientApp: a request in, a checked release or a coded refusal out.

Order of a request: who am I (`node.py`), is it what I agreed to (`agreed.py`), *then* a durable reservation in the
ledger, *then* the first private row (`training.py`, `releases.py`, `evaluation.py`). Whatever goes wrong is answered
with a code; the details stay with the `fedpriv.clients` logger of this process, at DEBUG.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import evaluation, releases, training
from clients.ledgers import ledgers
from clients.node import BadScenario, Node, NotConfigured, identify
from fedpriv.errors import BudgetExceeded, InputError, LedgerError
from fedpriv.messages import (
    SCHEMA,
    BudgetReply,
    Hello,
    Refusal,
    WireError,
)
from fedpriv.provenance import source_digest

_log = logging.getLogger("fedpriv.clients")

Handler = Callable[[Message, Node], Message]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local private training: `TrainRequest` -> `TrainReply`."""
    return _guarded(message, context, training.train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Scores on held-out data: `EvaluateRequest` -> `EvaluateReply`; withheld in deployment."""
    return _guarded(message, context, evaluation.evaluate)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is there: -> `Hello`."""
    return _guarded(message, context, _hello)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """A noisy count of readings: `CountRequest` -> `CountReply`; refused unless the scenario pays for it."""
    return _guarded(message, context, releases.count)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """What windows add up to, noised: `StatisticsRequest` -> `StatisticsReply`; refused unless paid for."""
    return _guarded(message, context, releases.statistics)


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
