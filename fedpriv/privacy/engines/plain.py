"""The gradient WITHOUT privacy, for runs with privacy.enabled = false and for baselines. Nothing here protects.

It lives apart from the engines and returns a bare tensor, which `Mechanism.release` does not take.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.engines.base import LossFn, checked_losses, checked_microbatch, chunks, flat_gradient, trainable


def plain_mean(model: nn.Module, loss: LossFn, examples: Examples, draws: Draws, *, microbatch: int = 0) -> Tensor:
    """[P] float32 gradient of the mean loss over rows: NOT private. Zeros for an empty batch.

    Rows whose loss is not finite are left out, as in the private engines.
    """
    named = trainable(model)
    total = torch.cat([torch.zeros_like(p).flatten() for _, p in named]) if named else torch.zeros(0)
    for part in chunks(len(examples), checked_microbatch(microbatch)):
        total += _sum(model, loss, examples.rows(part), draws.rows(part))
    return total / max(len(examples), 1)


def _sum(model: nn.Module, loss: LossFn, examples: Examples, draws: Draws) -> Tensor:
    parameters = [p for _, p in trainable(model)]
    with torch.enable_grad():
        losses = checked_losses(loss(model, examples, draws), len(examples))
        finite = losses.isfinite()
        if not bool(finite.all()):  # 0 * NaN is NaN on the way back, so the row has to leave the graph
            examples, draws = examples.rows(finite), draws.rows(finite)
            losses = loss(model, examples, draws) if len(examples) else losses.new_zeros(0)
        return flat_gradient(losses.sum(), parameters)
