"""The one round of noised statistics from which a closed-form model is fitted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from flwr.app import Message, RecordDict

from fedpriv.messages.fields import SCHEMA, Body, Numbers, WireError, content_of, event, public
from fedpriv.messages.model import Flat, decode_model, encode_model
from fedpriv.messages.requests import Request

STATISTICS: Final = "query.statistics"


@dataclass(frozen=True, kw_only=True)
class StatisticsRequest(Request, Numbers):
    """What do your windows add up to? Answered with a noisy sum, if the scenario pays for one."""

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply."""
        parts = [SCHEMA, "statistics", self.run_id, self.source, self.scenario]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StatisticsReply(Body):
    """The noisy sum: a release that the ledger charged before any window was read."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "statistics"})

    run_id: str = public(str, "echo of the request")
    ledger_seq: int = event(int, "number of the client's newest ledger entry; 0 without privacy", 0, 2**62)
    ledger_head: str = event(str, "hash of that entry")
    statistics: Flat  # [n] float32; basis: event

    def to_record(self) -> RecordDict:
        """For Flower."""
        record = self._scalars()
        record["statistics"] = encode_model(self.statistics)
        return record

    @classmethod
    def from_record(cls, record: RecordDict, *, size: int | None = None) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types, ranges or size than declared, or values that are not finite.
        """
        values = cls._parse(record)
        return cls(**values, statistics=decode_model(record["statistics"], num_parameters=size))


def read_statistics(message: Message, request: StatisticsRequest, *, size: int) -> StatisticsReply:
    """The checked answer to `request`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    reply = StatisticsReply.from_record(content_of(message), size=size)
    if reply.run_id != request.run_id:
        raise WireError("the reply belongs to another request")
    return reply
