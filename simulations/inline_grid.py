"""A Flower `Grid` in this process: same ClientApp, same strategy, no Ray, no SuperLink, no copies of the model.

For small runs and tests: a message costs well under a millisecond. Clients run one after the other, in the order
of the messages.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedpriv.messages import Refusal
from simulations.flower_internals import RUN, become_server, set_message_id

App = Callable[[Message, Context], Message]
FIRST_NODE = 2  # 1 is the server


def node_contexts(count: int, run_config: Mapping[str, Any]) -> dict[int, Context]:
    """Node id -> context of each of `count` simulated nodes, as Flower's simulation gives them."""
    return {
        FIRST_NODE + i: Context(
            run_id=RUN,
            node_id=FIRST_NODE + i,
            node_config={"partition-id": i, "num-partitions": count},
            state=RecordDict(),
            run_config=dict(run_config),
        )
        for i in range(count)
    }


class SimulatedGrid(Grid):
    """What the grids of this package share: nodes numbered by partition, and what Flower deprecates."""

    def __init__(self, count: int) -> None:
        become_server()
        self.count = count
        self._ids = itertools.count(1)

    def set_run(self, run: Any) -> None:
        """There is one run per grid; nothing to set."""

    @property
    def run(self) -> Any:
        """No record of a SuperLink stands behind this grid."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in partition order."""
        return range(FIRST_NODE, FIRST_NODE + self.count)

    def _stamp(self, message: Message) -> str:
        message_id = str(next(self._ids))
        set_message_id(message, message_id)
        return message_id


class InlineGrid(SimulatedGrid):
    """Calls `app` when a message is pushed.

    Args:
        app: the ClientApp.
        count: clients.
        run_config: the flat scenario.
    """

    def __init__(self, app: App, count: int, run_config: Mapping[str, Any]) -> None:
        super().__init__(count)
        self._app = app
        self._contexts = node_contexts(count, run_config)
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs each message at once; returns the ids to pull the replies with."""
        return [self._handle(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there, once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Runs the messages in order; those whose turn comes after `timeout` seconds are not run."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        ids: list[str] = []
        for message in messages:
            if time.monotonic() >= end:
                break
            ids.append(self._handle(message))
        return self.pull_messages(ids)

    def _handle(self, message: Message) -> str:
        message_id = self._stamp(message)
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:
            # Our ClientApp answers everything with a code; another app's exception text is not passed on either.
            reply = Refusal.INTERNAL.to_message(message)
        self._replies[message_id] = reply
        return message_id
