"""A round of training: the request, and the reply that the ledger paid for."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedpriv.messages.fields import Body, Refusal, WireError, content_of, event, public
from fedpriv.messages.model import Flat, decode_model, encode_model
from fedpriv.messages.requests import ModelRequest

TRAIN: Final = "train"


@dataclass(frozen=True, kw_only=True)
class TrainRequest(ModelRequest):
    """Train `steps` private steps from `model` in round `round`."""

    optional: ClassVar[frozenset[str]] = frozenset({"rule", "reference"})

    round: int = public(int, "1, 2, ...", 1, 1_000_000)
    steps: int = public(int, "private steps to take", 0, 100_000)
    rule: ArrayRecord | None = None  # what the rules remember, as a flat vector; basis: event. None: they keep nothing

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply; two requests with it are the same request."""
        return self._digest([self.run_id, self.round, self.steps, self.source, self.scenario])


@dataclass(frozen=True, kw_only=True)
class TrainReply(Body):
    """New parameters after the asked steps: a release that the ledger charged before any private row was read."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})
    optional: ClassVar[frozenset[str]] = frozenset({"rule"})

    run_id: str = public(str, "echo of the request")
    round: int = public(int, "echo of the request", 1, 1_000_000)
    steps: int = public(int, "echo of the request: steps taken do not depend on data", 0, 100_000)
    ledger_seq: int = event(int, "number of the client's newest ledger entry; 0 without privacy", 0, 2**62)
    ledger_head: str = event(str, "hash of that entry; the server echoes it, so that an old copy is noticed")
    parameters: Flat  # [P] float32; basis: event
    rule: Flat | None = None  # the request's `rule` advanced by these steps, float32; basis: event

    def to_record(self) -> RecordDict:
        """For Flower."""
        record = self._scalars()
        record["model"] = encode_model(self.parameters)
        if self.rule is not None:
            record["rule"] = encode_model(self.rule)
        return record

    @classmethod
    def from_record(cls, record: RecordDict, *, num_parameters: int | None = None) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types, ranges, shape than declared, or values that are not finite.
        """
        values = cls._parse(record)
        rule = decode_model(record["rule"], num_parameters=None) if "rule" in record else None
        return cls(**values, parameters=decode_model(record["model"], num_parameters=num_parameters), rule=rule)

    def to_bytes(self) -> bytes:
        """For the ledger's outbox: what would be sent, without the ledger's head (that is added when sending)."""
        told: dict[str, object] = {"run_id": self.run_id, "round": self.round, "steps": self.steps}
        if self.rule is not None:
            told["rule"] = int(self.rule.size)  # the last so many numbers of the body
        head = json.dumps(told).encode()
        parts = [self.parameters] if self.rule is None else [self.parameters, self.rule]
        body = b"".join(np.ascontiguousarray(part, dtype="<f4").tobytes() for part in parts)
        return struct.pack("<I", len(head)) + head + body

    @classmethod
    def from_bytes(cls, data: bytes, *, ledger_seq: int, ledger_head: str) -> Self:
        """What `to_bytes` wrote.

        Raises:
            WireError: the bytes are damaged.
        """
        try:
            (length,) = struct.unpack_from("<I", data)
            head = json.loads(data[4 : 4 + length])
            parameters, rule = np.frombuffer(data, dtype="<f4", offset=4 + length), None
            if "rule" in head:
                size = int(head.pop("rule"))
                if not 0 < size < parameters.size:
                    raise ValueError
                parameters, rule = parameters[:-size], parameters[-size:]
            return cls(**head, ledger_seq=ledger_seq, ledger_head=ledger_head, parameters=parameters, rule=rule)
        except (struct.error, ValueError, TypeError):
            raise WireError("the stored reply is damaged; it was not sent", Refusal.LEDGER_CONFLICT) from None


def read_train_reply(message: Message, request: TrainRequest, *, num_parameters: int) -> TrainReply:
    """The checked reply to `request`.

    Raises:
        WireError: an error reply (its `refusal` is the client's), or a reply that is not what was asked for.
    """
    reply = TrainReply.from_record(content_of(message), num_parameters=num_parameters)
    if (reply.run_id, reply.round, reply.steps) != (request.run_id, request.round, request.steps):
        raise WireError("the reply belongs to another request")
    asked = None if request.rule is None else decode_model(request.rule, num_parameters=None).size
    if (None if reply.rule is None else reply.rule.size) != asked:
        raise WireError("the reply's rule state is not of the size that was sent")
    return reply
