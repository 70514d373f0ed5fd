"""What a rule remembers from step to step: public numbers, as one flat vector.

Clients keep nothing between rounds, so the memory of a rule travels with the model: to the client with the request,
back advanced with the reply; the server averages those of a round (post-processing) and checkpoints the mean. Every
number in it is a function of released quantities and public constants. Rules clamp what they read from it, so the
promise holds whatever vector a server sends.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedpriv.errors import InputError

State: TypeAlias = Mapping[str, Tensor]
"""name -> float32 vector."""

LEAST, MOST = 1e-12, 1e12
"""Range of every bound, threshold and width that a rule reads from its state."""


@dataclass(frozen=True)
class StateLayout:
    """Where each number of the state sits in the flat vector; names are `part.field`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, parts: Mapping[str, State]) -> StateLayout:
        """The layout of the states of all parts."""
        flat = {f"{part}.{name}": value.numel() for part, state in parts.items() for name, value in state.items()}
        return cls(tuple(flat), tuple(flat.values()))

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> dict[str, dict[str, Tensor]]:
        """[size] -> part -> name -> its numbers, copied.

        Raises:
            InputError: a vector of another length; nothing was trained.
        """
        if flat.shape != (self.size,):
            raise InputError(
                f"the rule state has shape {list(flat.shape)}, the rules of this scenario keep {self.size} numbers; "
                "nothing was trained."
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in zip(self.names, flat.split(list(self.sizes)), strict=True):
            part, _, own = name.partition(".")
            parts.setdefault(part, {})[own] = value.clone()
        return parts

    def join(self, parts: Mapping[str, State], device: torch.device | str = "cpu") -> Tensor:
        """The inverse of `split`: [size] float32."""
        found = [parts[name.partition(".")[0]][name.partition(".")[2]] for name in self.names]
        return torch.cat([value.to(device, torch.float32).reshape(-1) for value in found])


def scalar(value: float) -> Tensor:
    """[1] float32."""
    return torch.tensor([value], dtype=torch.float32)


def read(value: Tensor, low: float = LEAST, high: float = MOST) -> float:
    """A number of the state, clamped to a range in which every formula is finite; `low` for NaN."""
    number = float(value[0])
    return min(max(number, low), high) if number == number else low
