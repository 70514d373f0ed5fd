"""A worker process: imports and data once, then one run after the other. Tasks come as JSON lines on standard input.

`python -m simulations.sweep.worker` is started by `simulations.sweep.pool`. It ends when its input ends, and when the
process that started it is gone: a killed sweep leaves nobody working in its folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

_PARENT_CHECK = 0.25  # seconds
_TELL_EVERY = 0.5  # seconds between progress lines


def main() -> None:
    """Reads tasks until the input ends."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like a reply

    def say(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    import torch

    from simulations.sweep.task import Task, execute

    torch.set_num_threads(1)
    say({"kind": "ready"})
    for line in sys.stdin:
        task = Task(**json.loads(line))
        said = [0.0]

        def told(round: int, rounds: int, task: Task = task, said: list[float] = said) -> None:
            now = time.monotonic()
            if now - said[0] > _TELL_EVERY:
                said[0] = now
                say({"kind": "progress", "run": task.run, "round": round, "rounds": rounds})

        outcome = execute(task, told)
        say({"kind": "outcome", **outcome.__dict__})


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK)
    os._exit(3)


if __name__ == "__main__":
    main()
