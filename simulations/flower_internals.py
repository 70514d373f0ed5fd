"""The two private touches that an own `Grid` needs in Flower 1.41, in one place; tests/unit/test_grids.py guards it.

1. A `Message` takes run and sender from `TaskIdentity`, which only Flower's own processes set.
2. A message id is given by whoever stores the message, through the metadata's dictionary.
"""

from __future__ import annotations

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
RUN = 1


def become_server() -> None:
    """Lets this process create messages, unless Flower has already given it an identity."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = RUN
        TaskIdentity.node_id = SERVER_NODE


def set_message_id(message: Message, message_id: str) -> None:
    """Stamps `message`; replies to it quote the id."""
    message.metadata.__dict__["_message_id"] = message_id
