"""How each kind of layer yields per-row gradients from what it was given (a) and what came back (g).

A rule answers with `Term`s: the squared norms of its parameters' per-row gradients, and the sum of those gradients
under given row weights. Shapes: R rows, T tokens per row (all axes between rows and features, diffusion draws
included), p features in, d features out.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedpriv.errors import InputError

PerSample: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]
"""(module, a [R, G, ...], g [R, G, ...]) -> {parameter name: [R, *shape]}; G model rows per unit."""

EPSILON = 2.0**-24  # rounding of one float32 operation

DIRECT_COST = 30.0
"""Ghost norms are used where T^2 (p + d) < DIRECT_COST * p * d: the left side is arithmetic, the right side memory
traffic of storing per-row gradients and reading them twice. Measured by benchmarks/dp_engine.py."""


@dataclass(frozen=True)
class Call:
    """One use of a module in the forward pass: its input and the gradient at its output, rows first."""

    a: Tensor
    g: Tensor


class Term(Protocol):
    """One module's share of the per-row gradients of a microbatch."""

    def square(self) -> Tensor:
        """[R] squared norms, float32."""
        ...

    def doubt(self) -> tuple[Tensor, float] | None:
        """How far rounding may carry `square`, as (size [R], factor): factor * size^2. None: no cancellation."""
        ...

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """Adds sum_r weights[r] * gradient_r into the views `out`; unusable rows are not touched."""
        ...


class Weights:
    """Row weights [R] float32, 0 at unusable rows. `usable` [R] bool, or None if all are."""

    def __init__(self, rows: Tensor, usable: Tensor | None) -> None:
        self.rows, self._usable = rows, usable
        self._tokens: dict[int, Tensor] = {}

    def tokens(self, count: int) -> Tensor:
        """[R * count]: every row's weight `count` times over."""
        if count not in self._tokens:
            self._tokens[count] = self.rows.repeat_interleave(count)
        return self._tokens[count]

    def kept(self, x: Tensor) -> Tensor:
        """[R, ...] with zeros in unusable rows: their weight is 0, but 0 * NaN is NaN."""
        if self._usable is None:
            return x
        return torch.where(self._usable.view(-1, *(1,) * (x.dim() - 1)), x, 0.0)


class Gram:
    """T x T products of inputs, shared by layers that read the same tensor."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Tensor] = {}

    def of(self, a: Tensor, bias: bool) -> Tensor:
        """[R, T, p] -> [R, T, T] a a^T, plus 1 for a bias (an input feature that is always 1)."""
        key = (a.data_ptr(), a.shape, a.stride(), bias)
        if key not in self._known:
            other = a.transpose(1, 2)
            self._known[key] = torch.baddbmm(a.new_ones(1, 1, 1), a, other) if bias else torch.bmm(a, other)
        return self._known[key]


@dataclass
class LinearTerm:
    """nn.Linear. Ghost norm (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038) or direct.

    With G_r = g_r^T a_r [d, p]: |G_r|^2 = sum over token pairs of (a a^T) * (g g^T). The ghost way costs about
    2 T^2 (p + d) per row and needs no per-row gradients; the direct way keeps G [R, d, p].
    """

    a: Tensor  # [R, T, p]
    g: Tensor  # [R, T, d]
    weight: bool
    bias: bool
    gram: Gram
    direct: Tensor | None = None  # [R, d, p]
    gsum: Tensor | None = None  # [R, d]
    _doubt: tuple[Tensor, float] | None = field(default=None, repr=False)

    def square(self) -> Tensor:
        """See `Term.square`."""
        tokens, p, d = self.a.shape[1], self.a.shape[2], self.g.shape[2]
        if not self.weight:
            self.gsum = self.g.sum(dim=1)
            return _squares(self.gsum)
        if tokens == 1:
            inputs = _squares(self.a[:, 0])
            return (inputs.add_(1.0) if self.bias else inputs).mul_(_squares(self.g[:, 0]))
        if tokens * tokens * (p + d) < DIRECT_COST * p * d:
            return self._ghost()
        self.direct = torch.bmm(self.g.transpose(1, 2), self.a)
        square = _squares(self.direct.flatten(1))
        if self.bias:
            self.gsum = self.g.sum(dim=1)
            square = square + _squares(self.gsum)
        return square

    def _ghost(self) -> Tensor:
        inputs = self.gram.of(self.a, self.bias)
        outputs = torch.bmm(self.g, self.g.transpose(1, 2))
        # Cauchy-Schwarz: no token pair exceeds |a_t||a_s||g_t||g_s|, so rounding stays below eps * (sum |a||g|)^2;
        # errors of T^2 pairs are independent, hence the root.
        diagonal = inputs.diagonal(dim1=1, dim2=2) * outputs.diagonal(dim1=1, dim2=2)
        self._doubt = (diagonal.sqrt_().sum(dim=1), EPSILON / math.sqrt(inputs.shape[1]))
        return _squares(inputs.flatten(1), outputs.flatten(1))

    def doubt(self) -> tuple[Tensor, float] | None:
        """See `Term.doubt`."""
        return self._doubt

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """See `Term.add_weighted`."""
        if self.gsum is not None:
            out["bias"].addmv_(weights.kept(self.gsum).t(), weights.rows)
        if not self.weight:
            return
        if self.direct is not None:
            out["weight"].view(-1).addmv_(weights.kept(self.direct).flatten(1).t(), weights.rows)
            return
        a, g = weights.kept(self.a).flatten(0, 1), weights.kept(self.g).flatten(0, 1)  # [R T, p], [R T, d]
        each = weights.tokens(self.a.shape[1])
        if self.bias:
            out["bias"].addmv_(g.t(), each)
        if a.shape[1] < g.shape[1]:  # scale the narrower side
            a = a * each[:, None]
        else:
            g = g * each[:, None]
        out["weight"].addmm_(g.t(), a)


@dataclass
class StoredTerm:
    """Any module whose per-row gradients are at hand (small ones: norms, embeddings, positions)."""

    grads: dict[str, Tensor]  # [R, *shape]

    def square(self) -> Tensor:
        """See `Term.square`."""
        return torch.stack([_squares(g.flatten(1)) for g in self.grads.values()]).sum(dim=0)

    def doubt(self) -> tuple[Tensor, float] | None:
        """None: what is measured is what is added."""
        return None

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """See `Term.add_weighted`."""
        for name, grads in self.grads.items():
            out[name].view(-1).addmv_(weights.kept(grads).flatten(1).t(), weights.rows)


def _squares(x: Tensor, y: Tensor | None = None) -> Tensor:
    """[R, n] -> [R] inner products of the rows of x with themselves, or with those of y."""
    return torch.linalg.vecdot(x, x if y is None else y)


# ---- rules for small modules: per-row gradients outright ------------------------------------------


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
    flat = g.reshape(rows, -1, *g.shape[g.dim() - p.dim() :]).sum(dim=1)  # [R, last axes]
    return {name: flat.sum_to_size(rows, *p.shape)}


def _copies(module: nn.Module, rows: int) -> dict[str, Tensor]:
    """{name: [R, *shape]}: the module's own parameters once for each row, ready to be differentiated."""
    own = module.named_parameters(recurse=False)
    return {name: p.detach().expand(rows, *p.shape).clone().requires_grad_() for name, p in own}


def _broadcast(module: nn.Module, a: Tensor, g: Tensor) -> Mapping[str, Tensor]:
    """A module that combines its parameters with its input elementwise: it takes one copy for each model row."""
    rows, each = a.shape[0], a.shape[1]
    with torch.enable_grad():
        copies = _copies(module, rows)
        axes = a.dim() - 1  # of the input of the module, [R G, ...]
        spread = {
            name: p.repeat_interleave(each, dim=0).reshape(-1, *(1,) * max(axes - p.dim(), 0), *p.shape[1:])
            for name, p in copies.items()
        }
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
    if getattr(module, "per_sample_kind", None) in _KINDS:
        return ""
    if any(True for child in module.children() for _ in child.parameters()):
        return "it owns raw parameters beside submodules; move them into a one-input module of their own"
    names = [p for p in inspect.signature(module.forward).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(names) != 1 or names[0].kind is names[0].VAR_POSITIONAL:
        return "its forward takes more than one input and no rule is registered for it"
    return ""


def make_term(module: nn.Module, calls: list[Call], rows: int, names: tuple[str, ...], gram: Gram) -> Term:
    """The term of one module from all its uses in a forward pass (uses are joined as further tokens).

    Raises:
        InputError: an input without rows on its first axis.
    """
    if type(module) is nn.Linear:
        a = [c.a.reshape(rows, -1, c.a.shape[-1]) for c in calls]
        g = [c.g.reshape(rows, -1, c.g.shape[-1]) for c in calls]
        joined = (a[0], g[0]) if len(calls) == 1 else (torch.cat(a, dim=1), torch.cat(g, dim=1))
        return LinearTerm(*joined, weight="weight" in names, bias="bias" in names, gram=gram)
    rule = _PER_SAMPLE.get(type(module)) or _KINDS[getattr(module, "per_sample_kind", "generic")]
    grads: dict[str, Tensor] = {}
    for call in calls:
        grouped = (x.reshape(rows, x.shape[0] // rows, *x.shape[1:]) for x in (call.a, call.g))
        found = rule(module, *grouped)
        for name in names:
            grads[name] = found[name] if name not in grads else grads[name] + found[name]
    return StoredTerm(grads)


def check_rows(name: str, module: nn.Module, tensor: Tensor, rows: int) -> None:
    """Refuses a tensor whose first axis cannot be rows (times diffusion draws)."""
    if tensor.dim() == 0 or tensor.shape[0] == 0 or tensor.shape[0] % rows:
        raise InputError(
            f"module {name!r} ({type(module).__name__}) got shape {tuple(tensor.shape)} for {rows} rows: its first "
            "axis must hold the rows, a whole number of times. No gradient was computed; privacy.engine=functional "
            "works for any model."
        )
