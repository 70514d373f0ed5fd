"""What the server knows of a federation: its settings, its state between rounds, and what became of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpriv.messages import Refusal
from strategies.aggregation import Flat


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loop needs to know of a scenario."""

    run_id: str
    source: str
    scenario: str
    rounds: int
    steps: int
    seed: int
    clients_per_round: int = 0
    quorum: int = 0
    deadline: float = 3600.0  # seconds
    weights: Mapping[str, float] = field(default_factory=dict)  # public; empty: equal
    initial_rule: Flat | None = field(default=None, compare=False)  # what the privacy rules start with
    ema: float = 0.0  # share of the old average that a round keeps; 0: no average


@dataclass
class ServerState:
    """All that the server remembers from round to round; `arrays` and `meta` go into a checkpoint.

    Attributes:
        round: the last finished round.
        model: [P] float32.
        optimizer: the server optimiser's arrays.
        heads: client -> (number, hash) of the newest ledger entry it told.
        retired: client -> why it is not asked any more.
        missed: rounds in a row without a quorum.
        trained: rounds that counted.
        rule: what the privacy rules remember, float32; None when they keep nothing.
        average: [P] float64 moving average of the models, post-processing of releases; None without `model.ema`.
        reference: the fitted one-round model, float32; None where the scenario fits none.
    """

    round: int
    model: Flat
    optimizer: dict[str, NDArray[Any]]
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)
    retired: dict[str, Refusal] = field(default_factory=dict)
    missed: int = 0
    trained: int = 0
    rule: Flat | None = None
    average: NDArray[np.float64] | None = None
    reference: Flat | None = None

    @property
    def result(self) -> Flat:
        """[P] float32: what is evaluated and saved: the average of the models where one is kept, else the model."""
        return self.model if self.average is None else self.average.astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is an array."""
        extra = {"rule": self.rule, "reference": self.reference, "average": self.average}
        kept: dict[str, NDArray[Any]] = {name: array for name, array in extra.items() if array is not None}
        return {"model": self.model, **{f"optimizer.{name}": array for name, array in self.optimizer.items()}, **kept}

    def meta(self) -> dict[str, object]:
        """Everything else, JSON-ready."""
        return {
            "heads": {client: list(head) for client, head in self.heads.items()},
            "retired": {client: int(refusal) for client, refusal in self.retired.items()},
            "missed": self.missed,
            "trained": self.trained,
        }

    @classmethod
    def restore(cls, round: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> ServerState:
        """The inverse of `arrays` and `meta`."""
        return cls(
            round=round,
            model=np.asarray(arrays["model"], dtype=np.float32),
            optimizer={
                name.removeprefix("optimizer."): array
                for name, array in arrays.items()
                if name.startswith("optimizer.")
            },
            heads={client: (int(seq), str(head)) for client, (seq, head) in meta["heads"].items()},
            retired={client: Refusal(code) for client, code in meta["retired"].items()},
            missed=int(meta["missed"]),
            trained=int(meta["trained"]),
            rule=np.asarray(arrays["rule"], dtype=np.float32) if "rule" in arrays else None,
            average=np.asarray(arrays["average"], dtype=np.float64) if "average" in arrays else None,
            reference=np.asarray(arrays["reference"], dtype=np.float32) if "reference" in arrays else None,
        )


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What became of one round.

    Attributes:
        round: 1, 2, ...
        asked: clients asked, in partition order.
        valid: those whose update was used.
        refused: client -> why not.
        missing: asked and silent until the deadline.
        counted: whether the quorum was reached and the model changed.
        seconds: wall time of the round.
    """

    round: int
    asked: tuple[str, ...]
    valid: tuple[str, ...]
    refused: Mapping[str, Refusal]
    missing: tuple[str, ...]
    counted: bool
    seconds: float


@dataclass(frozen=True)
class Scores:
    """Mergeable sums of one client, or the reason why there are none."""

    client: str
    sums: Mapping[str, float]
    withheld: bool = False
    refusal: Refusal | None = None
    released: Mapping[str, float] = field(default_factory=dict[str, float])  # noisy means that its ledger paid for
