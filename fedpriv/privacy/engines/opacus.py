"""Per-row gradients by Opacus' hooks (`GradSampleHooks`, the core of `GradSampleModule`).

Opacus supplies gradients only: sampler, clipping, noise and accountant stay those of our mechanism.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.engines.base import checked_losses, trainable
from fedpriv.privacy.engines.stored import StoredRowsEngine


class OpacusEngine(StoredRowsEngine):
    """Opacus computes one gradient per model row; rows of the same unit (its K draws) are summed here.

    Hooks live only during a call, so engines can be made for the same model again and again. The loss averages
    the draws itself, hence a plain sum over them is the gradient of the averaged loss.
    """

    def per_row(self, examples: Examples, draws: Draws) -> Tensor:
        """[B, P] float32 gradients; sensitive."""
        count = len(examples)
        with _hooks(self._model), torch.enable_grad(), warnings.catch_warnings():
            # Hooks on a first layer fire for outputs whose input needs no gradient: that is what is wanted.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses = checked_losses(self._loss(self._model, examples, draws), count)
            named = trainable(self._model)
            if losses.requires_grad:
                losses.sum().backward(inputs=[p for _, p in named])
            return torch.cat([self._grouped(name, p, count) for name, p in named], dim=1)

    def _grouped(self, name: str, parameter: nn.Parameter, count: int) -> Tensor:
        """[B, numel]: Opacus' [B * draws, ...] rows of one parameter, summed per unit."""
        sample: object = getattr(parameter, "grad_sample", None)
        if sample is None:
            return torch.zeros(count, parameter.numel(), device=parameter.device)
        parts: list[Tensor] = list(sample) if isinstance(sample, list) else [sample]  # pyright: ignore
        grouped = torch.zeros(count, parameter.numel(), device=parameter.device)
        for part in parts:
            if part.shape[0] % count:
                raise InputError(
                    f"parameter {name!r}: Opacus gave {part.shape[0]} gradients for {count} rows, which is no "
                    "multiple; its module does not keep rows on the first axis. No gradient was released."
                )
            grouped += part.reshape(count, part.shape[0] // count, -1).sum(dim=1)
        return grouped


@contextmanager
def _hooks(model: nn.Module) -> Generator[None]:
    """Opacus' hooks on `model`, taken off again with every trace of them, also after an error."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    modes = [(m, m.training) for m in model.modules()]
    grads = [(p, p.grad) for p in model.parameters()]
    # Buffers such as frequency tables are fine (strict=False); batch statistics were refused above.
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
    try:
        for module, _ in modes:
            module.training = True  # Opacus records nothing in evaluation mode
        yield
    finally:
        hooks.cleanup()
        for module, mode in modes:
            module.training = mode
            for leftover in ("activations", "max_batch_len"):
                if hasattr(module, leftover):
                    delattr(module, leftover)
        for p, grad in grads:
            p.grad = grad
