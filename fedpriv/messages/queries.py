"""Questions of scalars alone: who is there, what is left of the budget, how many readings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal, Self

from flwr.app import Message, RecordDict

from fedpriv.messages.fields import (
    SCHEMA,
    Numbers,
    Refusal,
    WireError,
    content_of,
    event,
    public,
)
from fedpriv.messages.requests import Request

HELLO: Final = "query.hello"
BUDGET: Final = "query.budget"
COUNT: Final = "query.count"


@dataclass(frozen=True, kw_only=True)
class CountRequest(Request, Numbers):
    """How many readings has this client? Answered with a noisy count, if the scenario pays for one."""

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides the reply."""
        parts = [SCHEMA, self.run_id, self.source, self.scenario]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CountReply(Numbers):
    """A noisy count of readings: a release that the ledger charged before any of them was looked at."""

    run_id: str = public(str, "echo of the request")
    count: float = event(float, "noisy number of calendar steps with a reading", 0, 1e15)
    ledger_seq: int = event(int, "number of the client's newest ledger entry", 0, 2**62)
    ledger_head: str = event(str, "hash of that entry")


@dataclass(frozen=True, kw_only=True)
class Hello(Numbers):
    """Who is there: the answer to `query.hello`, from public facts alone."""

    schema: int = public(int, "version of this wire", 0, 2**31)
    client: str = public(str, "name of the client (party with data)")
    partition: int = public(int, "place in the simulation's roster; -1 in deployment", -1, 10_000_000)
    partitions: int = public(int, "clients in the simulation; -1 in deployment", -1, 10_000_000)
    source: str = public(str, "digest of the code that answers")
    mode: str = public(str, "simulation or deployment")

    @classmethod
    def from_record(cls, record: RecordDict) -> Self:
        """Checked.

        Raises:
            WireError: other fields, types or ranges than declared.
        """
        hello = super().from_record(record)
        if hello.mode not in ("simulation", "deployment") or not hello.client:
            raise WireError("Hello: the mode is unknown or the client has no name")
        return hello


@dataclass(frozen=True, kw_only=True)
class BudgetReply(Numbers):
    """The client's account: the answer to `query.budget`, a function of charged events and public settings."""

    client: str = public(str, "name of the client")
    enabled: int = public(int, "0: this run claims no privacy, the other numbers are 0", 0, 1)
    committed: float = event(float, "epsilon of all contracts in the ledger", 0)
    nominal: float = event(float, "epsilon of what was reserved so far", 0)
    budget: float = public(float, "epsilon that the owner allows", 0)
    delta: float = public(float, "delta of all three", 0, 1)
    ledger_seq: int = event(int, "number of the newest ledger entry", 0, 2**62)
    ledger_head: str = event(str, "hash of that entry")

    def account(self) -> dict[str, float]:
        """The numbers of the account."""
        return {"committed": self.committed, "nominal": self.nominal, "budget": self.budget, "delta": self.delta}


def query(node_id: int, kind: Literal["query.hello", "query.budget"], *, ttl: float) -> Message:
    """An empty question of one of the two kinds that a client answers."""
    return Message(RecordDict(), node_id, kind, ttl=ttl)


def read_hello(message: Message) -> Hello:
    """The checked answer to `query.hello`.

    Raises:
        WireError: an error reply, another schema, or a reply that is not what was asked for.
    """
    hello = Hello.from_record(content_of(message))
    if hello.schema != SCHEMA:
        raise WireError(f"the client speaks schema {hello.schema}, this server {SCHEMA}", Refusal.SOURCE_MISMATCH)
    return hello


def read_budget(message: Message) -> BudgetReply:
    """The checked answer to `query.budget`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    return BudgetReply.from_record(content_of(message))


def read_count(message: Message, request: CountRequest) -> CountReply:
    """The checked answer to `request`.

    Raises:
        WireError: an error reply, or a reply that is not what was asked for.
    """
    reply = CountReply.from_record(content_of(message))
    if reply.run_id != request.run_id:
        raise WireError("the reply belongs to another request")
    return reply
