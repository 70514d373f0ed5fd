"""Scores on held-out data: exact sums in simulation only, noisy means where the ledger was charged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self, cast

from flwr.app import Message, MetricRecord, RecordDict

from fedpriv.messages.fields import Basis, Body, WireError, content_of, head_hash, head_number, public
from fedpriv.messages.requests import ModelRequest

EVALUATE: Final = "evaluate"
_SUM_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,95}")
_MAX_SUMS = 32_768  # a score is about twenty sums; the sketches of distances are some hundreds for each model


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(ModelRequest):
    """Score `model` on held-out data. Answered with numbers in simulation only."""

    round: int = public(int, "0 before the first round", 0, 1_000_000)
    part: str = public(str, "validation or test")
    samples: int = public(int, "forecasts drawn per window; 0: point forecast only", 0, 10_000)

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        request = super().from_record(record)
        if request.part not in ("validation", "test"):
            raise WireError("field part is neither validation nor test")
        return request

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply; two requests with it are the same request."""
        return self._digest([self.run_id, self.round, self.part, self.samples, self.source, self.scenario])


@dataclass(frozen=True, kw_only=True)
class EvaluateReply(Body):
    """Scores on held-out private data: exact sums in simulation only, noisy means where the ledger was charged."""

    records: ClassVar[frozenset[str]] = frozenset({"numbers", "words", "sums"})
    optional: ClassVar[frozenset[str]] = frozenset({"released"})
    sums_basis: ClassVar[Basis] = Basis.SIMULATION_ONLY
    released_basis: ClassVar[Basis] = Basis.EVENT

    run_id: str = public(str, "echo of the request")
    round: int = public(int, "echo of the request", 0, 1_000_000)
    part: str = public(str, "echo of the request")
    withheld: int = public(int, "1: this client does not send exact scores", 0, 1)
    ledger_seq: int = head_number("number of the client's newest ledger entry, where one was made for this; else 0")
    ledger_head: str = head_hash("hash of that entry")
    sums: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # see fedpriv.metrics; keys begin with a model's name
    released: Mapping[str, float] = field(default_factory=dict[str, float])  # noisy means, see fedpriv.releases

    def to_record(self) -> RecordDict:
        """For Flower.

        Raises:
            WireError: a key or value that the wire does not carry, or sums in a withheld reply.
        """
        record = self._scalars()
        record["sums"] = MetricRecord({name: float(value) for name, value in self.sums.items()})
        _check_sums(cast(MetricRecord, record["sums"]), withheld=bool(self.withheld))
        if self.released:
            record["released"] = MetricRecord({name: float(value) for name, value in self.released.items()})
            _check_sums(cast(MetricRecord, record["released"]), withheld=False)
        return record

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        values = cls._parse(record)
        sums = record["sums"]
        if not isinstance(sums, MetricRecord):
            raise WireError("EvaluateReply: `sums` is a record of another type")
        _check_sums(sums, withheld=bool(values["withheld"]))
        released = record.get("released", MetricRecord())
        if not isinstance(released, MetricRecord):
            raise WireError("EvaluateReply: `released` is a record of another type")
        _check_sums(released, withheld=False)
        return cls(
            **values,
            sums={name: cast(float, value) for name, value in sums.items()},
            released={name: cast(float, value) for name, value in released.items()},
        )


def _check_sums(sums: MetricRecord, *, withheld: bool) -> None:
    if withheld and len(sums):
        raise WireError("a withheld evaluation carries numbers")
    if len(sums) > _MAX_SUMS:
        raise WireError(f"an evaluation has {len(sums)} sums, at most {_MAX_SUMS} are allowed")
    for name, value in sums.items():
        if not _SUM_KEY.fullmatch(name):
            raise WireError("an evaluation has a key that is not made of letters, digits and _.:/-")
        if type(value) is not float or not math.isfinite(value):
            raise WireError(f"sum {name} is not a finite float")


def read_evaluate_reply(message: Message, request: EvaluateRequest) -> EvaluateReply:
    """The checked reply to `request`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    reply = EvaluateReply.from_record(content_of(message))
    if (reply.run_id, reply.round, reply.part) != (request.run_id, request.round, request.part):
        raise WireError("the reply belongs to another request")
    return reply
