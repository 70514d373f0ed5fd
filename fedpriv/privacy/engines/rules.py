"""What each layer contributes to a private sum, from what it was given (a) and what came back (g).

A `Term` answers two questions about one layer: the squared norms of its parameters' per-row gradients, and the sum of
those gradients under given row weights. Shapes: R rows, T tokens per row (all axes between rows and features,
diffusion draws included), p features in, d features out.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedpriv.privacy.engines.native import Operator
from fedpriv.privacy.engines.small_rules import check_rows, per_row_gradients, problem, register_rule

__all__ = ["Call", "Gram", "LinearTerm", "StoredTerm", "Term", "Weights", "check_rows", "make_term", "measure",
           "problem", "register_rule"]  # fmt: skip

EPSILON = 2.0**-24  # rounding of one float32 operation

DIRECT_COST = 30.0
"""Ghost norms are used where T^2 (p + d) < DIRECT_COST * p * d: the left side is arithmetic, the right side memory
traffic of storing per-row gradients and reading them twice. Measured by benchmarks/dp_engine.py. A rule of shapes and
not a stop-watch: a choice by time would make two runs of the same seed differ in their last digits."""

OPERATOR_GAIN = 2.0
"""How much cheaper the C++ operator makes a ghost norm."""

LONG = 4096
"""Squares of longer rows are summed in parts, so that float32 sums stay accurate."""

TOGETHER = 1 << 18
"""Entries of T x T products that are reduced at once: at few tokens, calls of operators cost more than their work."""


class Call(NamedTuple):
    """One use of a module in the forward pass: its input and the gradient at its output, rows first."""

    a: Tensor
    g: Tensor


class Products(NamedTuple):
    """[R, T, T] a a^T and g g^T: the squared norm of a row is sum((a a^T + bias) * g g^T)."""

    inputs: Tensor
    outputs: Tensor
    bias: bool


class Squares(NamedTuple):
    """[R] float32 squared norms. `doubt` [R]: how far rounding may carry them; None: what is measured is added."""

    values: Tensor
    doubt: Tensor | None = None


class Term(Protocol):
    """One module's share of the per-row gradients of a microbatch."""

    def square(self) -> Squares | Products:
        """The squared norms, or what they are made of: `measure` does many layers at once."""
        ...

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """Adds sum_r weights[r] * gradient_r into the views `out`; unusable rows are not touched."""
        ...


def measure(terms: Sequence[Term], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[terms, R] squared norms in float32, and [terms, R] the rounding error each may carry, in float64."""
    squares = torch.empty(len(terms), rows, device=device)
    doubts = torch.zeros(len(terms), rows, dtype=torch.float64, device=device)
    done: dict[int, Tensor] = {}
    waiting: dict[int, dict[int, Products]] = {}  # by token count
    for i, term in enumerate(terms):
        found = term.square()
        if isinstance(found, Squares):
            done[i] = found.values
            if found.doubt is not None:
                doubts[i] = found.doubt
            continue
        tokens = found.inputs.shape[1]
        same = waiting.setdefault(tokens, {})
        same[i] = found
        if (len(same) + 1) * rows * tokens * tokens > TOGETHER:
            _reduce(waiting.pop(tokens), squares, doubts)
    for same in waiting.values():
        _reduce(same, squares, doubts)
    if done:
        squares[torch.tensor(list(done), device=device)] = torch.stack(list(done.values()))
    return squares, doubts


def _reduce(layers: Mapping[int, Products], squares: Tensor, doubts: Tensor) -> None:
    """Writes ghost norms of layers of equal token count."""
    device, rows = squares.device, squares.shape[1]
    which = torch.tensor(list(layers), device=device)
    bias = torch.tensor([float(found.bias) for found in layers.values()], device=device)
    tokens = next(iter(layers.values())).inputs.shape[1]
    inputs = torch.stack([found.inputs for found in layers.values()]).view(len(layers), rows, -1)
    outputs = torch.stack([found.outputs for found in layers.values()]).view(len(layers), rows, -1)
    inputs += bias[:, None, None]
    squares[which] = torch.linalg.vecdot(inputs, outputs)
    # Cauchy-Schwarz: no token pair exceeds |a_t||a_s||g_t||g_s|, so rounding stays below eps * (sum |a||g|)^2;
    # errors of T^2 pairs are independent, hence the root.
    diagonal = inputs[..., :: tokens + 1] * outputs[..., :: tokens + 1]
    doubts[which] = diagonal.sqrt_().sum(dim=2).to(torch.float64).square_().mul_(EPSILON / math.sqrt(tokens))


class Weights:
    """Row weights [R] float32, 0 at unusable rows. `usable` [R] bool, or None if all are."""

    def __init__(self, rows: Tensor, usable: Tensor | None) -> None:
        self.rows, self._usable = rows, usable
        self._column = rows.view(-1, 1, 1)
        self._tokens: dict[int, Tensor] = {}
        self._scaled: dict[tuple[object, ...], Tensor] = {}

    def tokens(self, count: int) -> Tensor:
        """[R * count]: every row's weight `count` times over."""
        if count == 1:
            return self.rows
        if count not in self._tokens:
            self._tokens[count] = self.rows.repeat_interleave(count)
        return self._tokens[count]

    def kept(self, x: Tensor) -> Tensor:
        """[R, ...] with zeros in unusable rows: their weight is 0, but 0 * NaN is NaN."""
        if self._usable is None:
            return x
        return torch.where(self._usable.view(-1, *(1,) * (x.dim() - 1)), x, 0.0)

    def scaled(self, x: Tensor) -> Tensor:
        """[R, T, n] -> [R T, n], rows times their weights. Kept for the next layer that reads it if it is small."""
        shape = x.shape
        if shape[1] > 1:
            return torch.mul(self.kept(x), self._column).reshape(-1, shape[2])
        key = (x.data_ptr(), shape, x.stride())  # one condition feeds the modulation of every block
        found = self._scaled.get(key)
        if found is None:
            found = self._scaled[key] = torch.mul(self.kept(x), self._column).reshape(-1, shape[2])
        return found


class Gram:
    """T x T products of inputs, shared by layers that read the same tensor. `operator` replaces them where it can.

    Tensors are known by their place in memory, so each is kept for as long as its product is.
    """

    def __init__(self, operator: Operator | None = None) -> None:
        self.operator = operator
        self._known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def of(self, a: Tensor) -> Tensor:
        """[R, T, p] -> [R, T, T] a a^T."""
        key = (a.data_ptr(), a.shape, a.stride())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (a, torch.bmm(a, a.transpose(1, 2)))
        return found[1]

    def prepare(self, linear: nn.Linear | None, a: Tensor, rows: int) -> None:
        """Forms the product of an input right after its use in the forward pass, while it is in the cache."""
        if linear is None or self.operator is not None:
            return
        tokens = a.numel() // (rows * linear.in_features)
        if tokens > 1 and _ghost_is_cheaper(tokens, linear.in_features, linear.out_features, None):
            self.of(_by_row(a, rows))  # the input is detached: nothing for a graph

    def norms(self, a: Tensor, bias: bool) -> Tensor:
        """[R, 1, p] -> [R] |a|^2, plus 1 for a bias (an input feature that is always 1)."""
        key = (a.data_ptr(), a.shape, a.stride(), bias)
        found = self._known.get(key)
        if found is None:
            squares = torch.linalg.vecdot(a[:, 0], a[:, 0])
            found = self._known[key] = (a, squares.add_(1.0) if bias else squares)
        return found[1]


@dataclass(slots=True)
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

    def square(self) -> Squares | Products:
        """See `Term.square`."""
        tokens, p, d = self.a.shape[1], self.a.shape[2], self.g.shape[2]
        operator = self.gram.operator
        if not self.weight:
            self.gsum = self.g.sum(dim=1)
            return Squares(torch.linalg.vecdot(self.gsum, self.gsum))
        if tokens == 1:
            outputs = self.g[:, 0]
            return Squares(torch.linalg.vecdot(outputs, outputs).mul_(self.gram.norms(self.a, self.bias)))
        if _ghost_is_cheaper(tokens, p, d, operator):
            if operator is None:
                return Products(self.gram.of(self.a), torch.bmm(self.g, self.g.transpose(1, 2)), self.bias)
            squares, sizes = operator.ghost_squares(self.a, self.g, self.bias)
            return Squares(squares, sizes.to(torch.float64).square_().mul_(EPSILON / math.sqrt(tokens)))
        self.direct = torch.bmm(self.g.transpose(1, 2), self.a)
        squares = _long_squares(self.direct.flatten(1))
        if self.bias:
            self.gsum = self.g.sum(dim=1)
            squares += torch.linalg.vecdot(self.gsum, self.gsum)
        return Squares(squares)

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """See `Term.add_weighted`."""
        if self.gsum is not None:
            out["bias"].addmv_(weights.kept(self.gsum).t(), weights.rows)
        if not self.weight:
            return
        weight = out["weight"]
        if self.direct is not None:
            weight.view(-1).addmv_(weights.kept(self.direct).flatten(1).t(), weights.rows)
            return
        tokens, p, d = self.a.shape[1], self.a.shape[2], self.g.shape[2]
        if p <= d:  # scale the narrower side, and let the product transpose that one
            a, g = weights.scaled(self.a), weights.kept(self.g).reshape(-1, d)  # [R T, p], [R T, d]
            if self.bias:
                out["bias"].addmv_(g.t(), weights.tokens(tokens))
            if 2 * p < d:
                weight.add_(torch.mm(a.t(), g).t())
                return
        else:
            a, g = weights.kept(self.a).reshape(-1, p), weights.scaled(self.g)
            if self.bias:
                out["bias"].add_(g.sum(dim=0))
        weight.addmm_(g.t(), a)


@dataclass
class StoredTerm:
    """Any module whose per-row gradients are at hand (small ones: norms, embeddings, positions)."""

    grads: dict[str, Tensor]  # [R, *shape]

    def square(self) -> Squares:
        """See `Term.square`; what is measured is what is added."""
        first, *others = (g.flatten(1) for g in self.grads.values())
        squares = torch.linalg.vecdot(first, first)
        for other in others:
            squares += torch.linalg.vecdot(other, other)
        return Squares(squares)

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """See `Term.add_weighted`."""
        for name, grads in self.grads.items():
            out[name].view(-1).addmv_(weights.kept(grads).flatten(1).t(), weights.rows)


def _ghost_is_cheaper(tokens: int, p: int, d: int, operator: Operator | None) -> bool:
    return tokens * tokens * (p + d) < DIRECT_COST * (OPERATOR_GAIN if operator else 1.0) * p * d


def _by_row(x: Tensor, rows: int) -> Tensor:
    """[R G, ..., n] -> [R, T, n]."""
    shape = x.shape
    return x if len(shape) == 3 and shape[0] == rows else x.reshape(rows, -1, shape[-1])


def _long_squares(x: Tensor) -> Tensor:
    """[R, n] -> [R] the squared norms of the rows; n may be large."""
    parts = math.gcd(x.shape[1], max(x.shape[1] // LONG, 1))
    # vector_norm reads at the speed of memory, twice that of vecdot, but sums naively: hence in parts
    norms = torch.linalg.vector_norm(x.view(x.shape[0], parts, -1), dim=2)  # [R, parts]
    return torch.linalg.vecdot(norms, norms)


def make_term(module: nn.Module, calls: list[Call], rows: int, names: tuple[str, ...], gram: Gram) -> Term:
    """The term of one module from all its uses in a forward pass (uses are joined as further tokens).

    Raises:
        InputError: an input without rows on its first axis.
    """
    if type(module) is nn.Linear:
        a, g = _by_row(calls[0].a, rows), _by_row(calls[0].g, rows)
        if len(calls) > 1:
            a = torch.cat([_by_row(c.a, rows) for c in calls], dim=1)
            g = torch.cat([_by_row(c.g, rows) for c in calls], dim=1)
        return LinearTerm(a, g, "weight" in names, "bias" in names, gram)
    grads: dict[str, Tensor] = {}
    for call in calls:
        grouped = (x.reshape(rows, x.shape[0] // rows, *x.shape[1:]) for x in (call.a, call.g))
        found = per_row_gradients(module, *grouped)
        for name in names:
            grads[name] = found[name] if name not in grads else grads[name] + found[name]
    return StoredTerm(grads)
