"""Who takes part: nodes asked for their names, put into one order, and sampled from it by seed.

Flower's node ids are random in every run and its nodes register one after the other; a run that starts with
whoever is there trains two clients of a hundred in its first round. So the server waits, asks each node who it is,
and sorts by partition (by name in deployment).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedpriv.errors import InputError
from fedpriv.messages import HELLO, Refusal, WireError, query, read_hello
from fedpriv.seeding import stream

_log = logging.getLogger("fedpriv.strategies")
_TRIES = 3  # times that a node is asked who it is when its process is lost on the way


@dataclass(frozen=True, order=True)
class Member:
    """One client; the order is by partition, then name."""

    partition: int
    client: str
    node_id: int
    mode: str


def ask_who(
    grid: Grid, node_ids: Sequence[int], *, source: str, timeout: float
) -> tuple[list[Member], dict[int, Refusal]]:
    """Members among `node_ids` in partition order, and why others are not; who is silent is in neither.

    A node that runs other code is left out: it would refuse every request.
    """
    members: list[Member] = []
    refusals: dict[int, Refusal] = {}
    messages = [query(node_id, HELLO, ttl=max(timeout, 1.0)) for node_id in node_ids]
    for reply in grid.send_and_receive(messages, timeout=timeout):
        try:
            said = read_hello(reply)
            if said.source != source:
                raise WireError("a node runs other code than the server", Refusal.SOURCE_MISMATCH)
        except WireError as error:
            refusals[reply.metadata.src_node_id] = error.refusal
            continue
        members.append(Member(said.partition, said.client, reply.metadata.src_node_id, said.mode))
    return sorted(members), refusals


def gather(
    grid: Grid,
    expected: int,
    *,
    source: str,
    deadline: float,
    enough: int = 0,
    poll: float = 0.2,
    on_wait: Callable[[Sequence[str], Sequence[Refusal]], None] | None = None,
) -> list[Member]:
    """Waits until `expected` clients are there and returns them in partition order.

    Args:
        grid: the way to the nodes.
        expected: clients that the scenario has.
        source: the server's own digest.
        deadline: seconds to wait.
        enough: go on with this many when the deadline has passed; 0: only with all.
        poll: seconds between looks.
        on_wait: told the clients that are there and the refusals so far, whenever a node has answered.

    Raises:
        InputError: too few came, or two say that they are the same client.
    """
    end = time.monotonic() + deadline
    known: dict[int, Member] = {}
    asked: set[int] = set()
    refused: dict[int, Refusal] = {}
    tries: dict[int, int] = {}
    while True:
        fresh = [node_id for node_id in grid.get_node_ids() if node_id not in asked]
        if fresh:
            members, said_no = ask_who(grid, fresh, source=source, timeout=max(1.0, end - time.monotonic()))
            refused |= said_no
            for node_id in fresh:  # a process that was lost on the way may be there at the next look
                tries[node_id] = tries.get(node_id, 0) + 1
                if said_no.get(node_id) != Refusal.NODE_LOST or tries[node_id] >= _TRIES:
                    asked.add(node_id)
            for member in members:
                refused.pop(member.node_id, None)
            known.update({member.node_id: member for member in members})
            if on_wait is not None:
                on_wait([member.client for member in sorted(known.values())], list(refused.values()))
        if len(known) >= expected:
            break
        late, refusals = time.monotonic() >= end, list(refused.values())
        # All who can come have answered, and some refused for good: waiting longer changes nothing.
        hopeless = len(asked) >= expected and len(known) + len(refusals) >= expected
        if late or hopeless:
            if enough and len(known) >= enough:
                _log.warning("%d of %d clients are there; the quorum is %d", len(known), expected, enough)
                break
            raise InputError(
                f"{len(known)} of {expected} clients are there"
                + (f" ({_counts(refusals)})" if refusals else "")
                + (f" after {deadline:g} s" if late else "")
                + "; no round was started."
            )
        time.sleep(poll)
    members = sorted(known.values())
    names = [member.client for member in members]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"two nodes say that they are {', '.join(twice)}; no round was started.")
    return members


def sample(members: Sequence[Member], count: int, *, seed: int, round: int) -> list[Member]:
    """`count` of `members` for one round (0: all), in partition order; the same for the same seed and round.

    No privacy is claimed for it: the server sees who answers.
    """
    if count <= 0 or count >= len(members):
        return list(members)
    chosen = stream(seed, "clients", round).choice(len(members), size=count, replace=False)
    return [members[i] for i in sorted(chosen.tolist())]


def _counts(refusals: Iterable[Refusal]) -> str:
    found = list(refusals)
    return ", ".join(f"{found.count(refusal)} x {refusal.word}" for refusal in sorted(set(found)))
