"""Per-row gradients by `torch.func`: vmap(grad(loss)) over rows. Works for any model; memory B x P."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.engines.base import LossFn, checked_losses, device_of, trainable
from fedpriv.privacy.engines.stored import StoredRowsEngine

_EXAMPLE_FIELDS = tuple(f.name for f in fields(Examples))


class _Loss(nn.Module):
    """The loss as a module around the model, so that `functional_call` reaches the model's parameters."""

    def __init__(self, model: nn.Module, loss: LossFn) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, *row: Tensor) -> Tensor:
        """Tensors of one row, without the batch axis -> [] loss."""
        batch = [t[None] for t in row]
        n = len(_EXAMPLE_FIELDS)
        return checked_losses(self._loss(self.model, Examples(*batch[:n]), Draws(*batch[n:])), 1)[0]


class FunctionalEngine(StoredRowsEngine):
    """vmap over rows, `microbatch` at a time.

    Attention runs on the composite kernel, because the fused ones have no batching rule.
    """

    def __init__(self, model: nn.Module, loss: LossFn, *, microbatch: int = 0) -> None:
        super().__init__(model, loss, microbatch=microbatch)
        wrapped = _Loss(model, loss)

        def row_loss(parameters: dict[str, Tensor], *row: Tensor) -> Tensor:
            return functional_call(wrapped, parameters, row)

        rows = (0,) * (len(_EXAMPLE_FIELDS) + 2)
        self._row_grads = vmap(grad(row_loss), in_dims=(None, *rows), randomness="different")
        self._row_grads_each = vmap(grad(row_loss), in_dims=(0, *rows), randomness="different")

    def per_row(self, examples: Examples, draws: Draws, parameters: Tensor | None = None) -> Tensor:
        """See `RowEngine.per_row`."""
        if len(examples) == 0:
            return torch.zeros(0, self._layout.size, device=device_of(self._model))
        run = self._row_grads
        if parameters is None:
            values = {name: p.detach() for name, p in trainable(self._model)}
        elif parameters.dim() == 1:
            values = self._layout.views(parameters.detach())
        else:
            values, run = self._each(parameters.detach()), self._row_grads_each
        row = [getattr(examples, name) for name in _EXAMPLE_FIELDS] + [draws.time, draws.noise]
        with sdpa_kernel(SDPBackend.MATH):
            grads = run({f"model.{name}": value for name, value in values.items()}, *row)
        return torch.cat([grads[f"model.{name}"].flatten(1) for name in self._layout.names], dim=1)

    def _each(self, parameters: Tensor) -> dict[str, Tensor]:
        """[B, P] -> {name: [B, *shape]}."""
        at = self._layout
        return {
            name: parameters[:, start : start + shape.numel()].reshape(-1, *shape)
            for name, shape, start in zip(at.names, at.shapes, at.starts, strict=True)
        }
