"""One row at a time with plain autograd: slow, obvious, and the yardstick of the other engines.

Also used by the ghost engine for rows whose norm float32 cannot be trusted with.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper, Rule
from fedpriv.privacy.engines.base import (
    ClippedSum,
    LossFn,
    checked_losses,
    device_of,
    flat_gradient,
    layout,
    refuse_batch_statistics,
    row_factors,
    row_norms,
    trainable,
    weighted_groups,
)


def row_gradient(model: nn.Module, loss: LossFn, example: Examples, draw: Draws) -> Tensor:
    """[P] float32 gradient of the one row in `example`, by plain autograd; parameters without use give 0."""
    parameters = [p for _, p in trainable(model)]
    with torch.enable_grad():
        return flat_gradient(checked_losses(loss(model, example, draw), 1).sum(), parameters)


def add_row(gradient: Tensor, clipper: Clipper, out: Tensor) -> Tensor:
    """Adds the clipped row [P] to `out`, scaled in float64; returns its norm before clipping, [] float64."""
    norm = row_norms(gradient[None])
    factor = row_factors(clipper, norm)
    if bool(factor[0] != 0):  # a row that is not finite is left out, not multiplied by 0
        out += (gradient.to(torch.float64) * factor).to(out.dtype)
    return norm[0]


class SingleRowEngine:
    """Micro-batches of one."""

    def __init__(self, model: nn.Module, loss: LossFn) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss = model, loss
        self._layout = layout(model)

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """See `GradientEngine.clipped_sum`."""
        device = device_of(self._model)
        total = torch.zeros(self._layout.size, device=device)
        norms = torch.zeros(len(examples), dtype=torch.float64, device=device)
        for i in range(len(examples)):
            row = slice(i, i + 1)
            gradient = row_gradient(self._model, self._loss, examples.rows(row), draws.rows(row))
            norms[i] = add_row(gradient, clipper, total)
        return ClippedSum(total, clipper.bound, norms)

    @property
    def microbatch(self) -> int:
        """Rows per physical batch."""
        return 1

    def per_row(self, examples: Examples, draws: Draws, parameters: Tensor | None = None) -> Tensor:
        """See `RowEngine.per_row`."""
        rows = torch.zeros(len(examples), self._layout.size, device=device_of(self._model))
        own = flat_parameters(self._model)
        try:
            for i in range(len(examples)):
                if parameters is not None:
                    set_parameters(self._model, parameters if parameters.dim() == 1 else parameters[i])
                row = slice(i, i + 1)
                rows[i] = row_gradient(self._model, self._loss, examples.rows(row), draws.rows(row))
        finally:
            set_parameters(self._model, own)
        return rows

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """See `GroupEngine.clipped_groups`."""
        total = torch.zeros(self._layout.size, device=device_of(self._model))
        norms = weighted_groups(self.per_row(examples, draws), clipper, cuts, total)
        return ClippedSum(total, clipper.bound, norms)


def flat_parameters(model: nn.Module) -> Tensor:
    """[P]: a copy of the trainable parameters."""
    parts = [p.detach().flatten() for _, p in trainable(model)]
    return torch.cat(parts) if parts else torch.zeros(0)


def set_parameters(model: nn.Module, vector: Tensor) -> None:
    """Writes [P] into the trainable parameters."""
    start = 0
    with torch.no_grad():
        for _, p in trainable(model):
            p.copy_(vector[start : start + p.numel()].view_as(p))
            start += p.numel()
