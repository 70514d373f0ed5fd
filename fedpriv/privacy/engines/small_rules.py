"""Per-row gradients outright, for modules with few parameters: norms, embeddings, positions, anything with one input.

Rules, in this order: one registered for the module's type, the module's own method `per_sample_gradients(a, g)`, the
kind it declares as `per_sample_kind`. A rule gets a module, its input and the gradient at its output, both
[R, G, ...] with G model rows for each of R units.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedpriv.errors import InputError

PerSample: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]
"""(module, a [R, G, ...], g [R, G, ...]) -> {parameter name: [R, *shape]}; G model rows per unit."""


def _layer_norm(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(module, nn.LayerNorm)
    shape = tuple(module.normalized_shape)
    normal = F.layer_norm(a, shape, None, None, module.eps)
    rows = a.shape[0]
    return {
        "weight": (g * normal).reshape(rows, -1, *shape).sum(dim=1),
        "bias": g.reshape(rows, -1, *shape).sum(dim=1),
    }


def _embedding(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(module, nn.Embedding)
    rows, (count, width) = a.shape[0], module.weight.shape
    index = a.reshape(rows, -1) + count * torch.arange(rows, device=a.device)[:, None]
    flat = g.reshape(-1, width)
    if module.padding_idx is not None:
        flat = torch.where((a.reshape(-1) == module.padding_idx)[:, None], 0.0, flat)
    grads = g.new_zeros(rows * count, width).index_add_(0, index.flatten(), flat)
    return {"weight": grads.view(rows, count, width)}


def _additive(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    """Of x -> x + p: the gradient is g summed over whatever p was broadcast over."""
    del a
    ((name, p),) = module.named_parameters(recurse=False)
    rows = g.shape[0]
    flat = g.reshape(rows, -1, *g.shape[g.dim() - p.dim() :])  # [R, n, last axes]
    flat = flat[:, 0] if flat.shape[1] == 1 else flat.sum(dim=1)
    return {name: flat.sum_to_size(rows, *p.shape)}


def _copies(module: nn.Module, rows: int) -> dict[str, Tensor]:
    """{name: [R, *shape]}: the module's own parameters once for each row, ready to be differentiated."""
    own = module.named_parameters(recurse=False)
    return {name: p.detach().expand(rows, *p.shape).requires_grad_() for name, p in own}


def _broadcast(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    """A module that combines its parameters with its input elementwise: it takes one copy for each model row."""
    rows, each = a.shape[0], a.shape[1]
    with torch.enable_grad():
        copies = _copies(module, rows)
        axes = a.dim() - 1  # of the input of the module, [R G, ...]
        spread: dict[str, Tensor] = {}
        for name, p in copies.items():
            repeated = p if each == 1 else p.repeat_interleave(each, dim=0)
            spread[name] = repeated.reshape(-1, *(1,) * max(axes - p.dim(), 0), *p.shape[1:])
        out: Tensor = functional_call(module, spread, (a.flatten(0, 1),))
        return dict(zip(copies, torch.autograd.grad(out, list(copies.values()), g.flatten(0, 1)), strict=True))


def _generic(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    """Any one-input module: a copy of its parameters for each row, and its own backward pass, under vmap."""

    def run(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, values, (x,))

    with torch.enable_grad():
        copies = _copies(module, a.shape[0])
        out = vmap(run)(copies, a)
        return dict(zip(copies, torch.autograd.grad(out, list(copies.values()), g), strict=True))


_PER_SAMPLE: dict[type[nn.Module], PerSample] = {nn.LayerNorm: _layer_norm, nn.Embedding: _embedding}
_KINDS: dict[str, PerSample] = {"additive": _additive, "broadcast": _broadcast, "generic": _generic}
"""What a module may declare as its `per_sample_kind`. additive: x + p. broadcast: p meets x elementwise only, so that a
leading axis on p does no harm. generic, the default: any one-input module, somewhat slower."""


def register_rule(kind: type[nn.Module], rule: PerSample) -> None:
    """Teaches the ghost engine a module type (exactly this type, not its subclasses).

    `rule(module, a, g)` gets the module's one input and the gradient at its output, both [R, G, ...] with G model
    rows per unit, and returns the gradients [R, *shape] of its trainable parameters. Engines check themselves
    against plain autograd before their first use, so a wrong rule is refused.
    """
    _PER_SAMPLE[kind] = rule


def problem(module: nn.Module) -> str:
    """Why a module that owns trainable parameters cannot be handled; empty if it can."""
    if type(module) is nn.Linear or type(module) in _PER_SAMPLE:
        if isinstance(module, nn.Embedding) and (
            module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        ):
            return "an Embedding with max_norm, scale_grad_by_freq or sparse"
        return ""
    if getattr(module, "per_sample_kind", None) in _KINDS or hasattr(module, "per_sample_gradients"):
        return ""
    if any(True for child in module.children() for _ in child.parameters()):
        return "it owns raw parameters beside submodules; move them into a one-input module of their own"
    names = [p for p in inspect.signature(module.forward).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(names) != 1 or names[0].kind is names[0].VAR_POSITIONAL:
        return "its forward takes more than one input and no rule is registered for it"
    return ""


def per_row_gradients(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    """{parameter name: [R, *shape]} of one use of a module, by its rule."""
    rule = _PER_SAMPLE.get(type(module))
    if rule is not None:
        return rule(module, a, g)
    own: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = getattr(module, "per_sample_gradients", None)
    if own is not None:
        return own(a, g)
    return _KINDS[getattr(module, "per_sample_kind", "generic")](module, a, g)


def has_rows(shape: torch.Size, rows: int) -> bool:
    """Whether the first axis can be rows (times diffusion draws)."""
    return bool(shape) and shape[0] != 0 and not shape[0] % rows


def check_rows(name: str, module: nn.Module, tensor: Tensor, rows: int) -> None:
    """Refuses a tensor whose first axis cannot be rows (times diffusion draws)."""
    if not has_rows(tensor.shape, rows):
        raise InputError(
            f"module {name!r} ({type(module).__name__}) got shape {tuple(tensor.shape)} for {rows} rows: its first "
            "axis must hold the rows, a whole number of times. No gradient was computed; privacy.engine=functional "
            "works for any model."
        )
