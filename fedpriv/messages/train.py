"""A round of training: the request, and the reply that the ledger paid for."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedpriv.messages.fields import SCHEMA, Body, Refusal, WireError, content_of, event, public
from fedpriv.messages.model import Flat, decode_model, encode_model

TRAIN: Final = "train"


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Body):
    """Train `steps` private steps from `model` in round `round`."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "model"})
    optional: ClassVar[frozenset[str]] = frozenset({"rule", "reference"})

    run_id: str = public(str, "names the run; the same after a resume")
    round: int = public(int, "1, 2, ...", 1, 1_000_000)
    steps: int = public(int, "private steps to take", 0, 100_000)
    source: str = public(str, "digest of the code that asks")
    scenario: str = public(str, "digest of the scenario")
    ledger_seq: int = event(int, "last ledger entry of this client that the server saw", 0, 2**62)
    ledger_head: str = event(str, "hash of that entry; empty before the first")
    model: ArrayRecord
    rule: ArrayRecord | None = None  # what the rules remember, as a flat vector; basis: event. None: they keep nothing
    reference: ArrayRecord | None = None  # a warm start's fitted model, flat; basis: event. None: there is none

    def to_record(self) -> RecordDict:
        """For Flower; `model`, `rule` and `reference` are shared, not copied."""
        record = self._scalars()
        record["model"] = self.model
        if self.rule is not None:
            record["rule"] = self.rule
        if self.reference is not None:
            record["reference"] = self.reference
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values = cls._parse(record)
        model = record["model"]
        if not isinstance(model, ArrayRecord):
            raise WireError("TrainRequest: `model` is a record of another type")
        rule, reference = record.get("rule"), record.get("reference")
        if rule is not None and not isinstance(rule, ArrayRecord):
            raise WireError("TrainRequest: `rule` is a record of another type")
        if reference is not None and not isinstance(reference, ArrayRecord):
            raise WireError("TrainRequest: `reference` is a record of another type")
        return cls(**values, model=model, rule=rule, reference=reference)

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply; two requests with it are the same request."""
        total = hashlib.sha256(
            json.dumps([SCHEMA, self.run_id, self.round, self.steps, self.source, self.scenario]).encode()
        )
        for name in self.model:
            total.update(self.model[name].data)
        for part, extra in (("rule", self.rule), ("reference", self.reference)):
            if extra is not None:
                total.update(part.encode())
                for name in extra:
                    total.update(extra[name].data)
        return total.hexdigest()


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
