"""What a running federation tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.state import RoundReport

Stage = Literal["waiting", "round", "evaluation", "done"]


@dataclass(frozen=True)
class Progress:
    """What a progress display needs; sent after every round.

    Attributes:
        stage: what has just been done.
        round, rounds: of how many.
        clients: that take part.
        report: of the round (stage `round`).
        epsilon: the largest nominal epsilon of a client so far, when known.
        rows: scores of an evaluation: {round, client, split, model, metric, value}.
    """

    stage: Stage
    round: int
    rounds: int
    clients: int
    report: RoundReport | None = None
    epsilon: float | None = None
    rows: Sequence[Mapping[str, object]] = ()


Listener = Callable[[Progress], None]
