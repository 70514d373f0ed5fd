"""Real nodes come and go: who is back under another node id, and a grid that looks for replies more often.

Without TLS Flower gives a node a new id with each start; with node authentication the id stays. Either way the client
is the same party with the same ledger, so it goes on in the same place of the roster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpriv.messages import Refusal
from strategies.roster import Member, ask_who

_FIRST, _SLOWEST = 0.2, 2.0  # seconds between looks: soon at first, seldom in long rounds
_HELLO, _TRIES = 30.0, 3  # seconds that a newcomer has to say who it is, and how often it is asked


@dataclass
class Lobby:
    """Newcomers of a running federation.

    Attributes:
        source: digest of the server's code; a node with other code is not let in.
        seen: node ids that were asked who they are.
    """

    source: str
    seen: set[int]
    _waiting: dict[str, Member] = field(default_factory=dict[str, Member])
    _asked: dict[int, int] = field(default_factory=dict[int, int])

    def refresh(self, grid: Grid, members: Sequence[Member], silent: Iterable[str]) -> list[Member]:
        """The members with those replaced that came back.

        A newcomer takes a client's place only when the old node is offline or did not answer the last request, so
        that a node which merely claims a name cannot push another one out.

        Args:
            grid: the way to the nodes.
            members: as known so far.
            silent: clients that did not answer the last request.
        """
        online = set(grid.get_node_ids())
        fresh = sorted(online - self.seen)
        if fresh:
            found, refused = ask_who(grid, fresh, source=self.source, timeout=_HELLO)
            self._waiting.update({member.client: member for member in found})
            for node_id in fresh:  # who answered is not asked again, nor who was silent too often
                self._asked[node_id] = self._asked.get(node_id, 0) + 1
                lost = refused.get(node_id) == Refusal.NODE_LOST
                answered = node_id in refused or any(member.node_id == node_id for member in found)
                if (answered and not lost) or self._asked[node_id] >= _TRIES:
                    self.seen.add(node_id)
        absent = set(silent)
        result: list[Member] = []
        for member in members:
            new = self._waiting.get(member.client)
            if new is not None and new.node_id in online and (member.node_id not in online or member.client in absent):
                del self._waiting[member.client]
                member = new
            result.append(member)
        return sorted(result)


class AttentiveGrid(Grid):
    """Another grid whose replies are looked for soon, then less and less often; Flower's own looks every 3 seconds."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run):  # noqa: D102
        return self._grid.set_run(run)

    @property
    def run(self):  # noqa: D102
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:  # noqa: D102
        return self._grid.get_node_ids()

    def get_nodes(self):  # noqa: D102
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: D102
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: D102
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies that came until all are there or `timeout` seconds have passed."""
        asked = {message_id for message_id in self.push_messages(list(messages)) if message_id}
        began, replies = time.monotonic(), list[Message]()
        while asked:
            for reply in self.pull_messages(asked):
                replies.append(reply)
                asked.discard(reply.metadata.reply_to_message_id)
            passed = time.monotonic() - began
            if not asked or (timeout is not None and passed >= timeout):
                break
            time.sleep(min(_SLOWEST, max(_FIRST, passed / 20)))
        return replies
