"""Engines that have the per-row gradients of a micro-batch in memory, and clip and add them up."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper, Rule
from fedpriv.privacy.engines.base import (
    ClippedSum,
    LossFn,
    checked_microbatch,
    chunks,
    device_of,
    layout,
    refuse_batch_statistics,
    row_factors,
    row_norms,
    weighted_groups,
    weighted_rows,
)


class StoredRowsEngine(ABC):
    """What such engines share: all but the gradients. Memory B x P, or microbatch x P.

    Args:
        microbatch: rows per physical batch; 0: all at once.

    Raises:
        InputError: a module with batch statistics, a parameter that is not float32, or a negative microbatch.
    """

    def __init__(self, model: nn.Module, loss: LossFn, *, microbatch: int = 0) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss = model, loss
        self._layout = layout(model)
        self._microbatch = checked_microbatch(microbatch)

    @property
    def microbatch(self) -> int:
        """Rows per physical batch; 0: all at once."""
        return self._microbatch

    @abstractmethod
    def per_row(self, examples: Examples, draws: Draws) -> Tensor:
        """[B, P] float32 gradients; sensitive."""

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """See `GradientEngine.clipped_sum`."""

        def add(rows: Tensor, total: Tensor) -> Tensor:
            norms = row_norms(rows)
            weighted_rows(rows, norms, row_factors(clipper, norms), total)
            return norms

        return self._summed(examples, draws, clipper.bound, add)

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """See `GroupEngine.clipped_groups`."""

        def add(rows: Tensor, total: Tensor) -> Tensor:
            return weighted_groups(rows, clipper, cuts, total)

        return self._summed(examples, draws, clipper.bound, add)

    def _summed(
        self, examples: Examples, draws: Draws, bound: float, add: Callable[[Tensor, Tensor], Tensor]
    ) -> ClippedSum:
        """`add` puts the clipped rows of a micro-batch into the total and returns their norms."""
        device = device_of(self._model)
        total = torch.zeros(self._layout.size, device=device)
        norms = torch.zeros(len(examples), dtype=torch.float64, device=device)
        for part in chunks(len(examples), self._microbatch):
            norms[part] = add(self.per_row(examples.rows(part), draws.rows(part)), total)
        return ClippedSum(total, bound, norms)
