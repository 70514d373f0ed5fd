"""What each layer contributes to a private sum, from what it was given (a) and what came back (g).

A `Term` answers two questions about one layer: the squared norms of its parameters' per-row gradients, and the sum of
those gradients under given row weights. Shapes: R rows, T tokens per row (all axes between rows and features,
diffusion draws included), p features in, d features out.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fedpriv.privacy.engines.native import Operator
from fedpriv.privacy.engines.recording import Owner
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


@dataclass(frozen=True)
class Call:
    """One use of a module in the forward pass: its input and the gradient at its output, rows first."""

    a: Tensor
    g: Tensor


class Term(Protocol):
    """One module's share of the per-row gradients of a microbatch."""

    def square(self, out: Tensor) -> None:
        """Writes the squared norms into `out` [R] float32."""
        ...

    def doubt(self) -> tuple[Tensor, float] | None:
        """How far rounding may carry `square`, as (parts [R, n], factor): factor * (sum of their roots)^2.

        None: no cancellation, what is measured is what is added.
        """
        ...

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """Adds sum_r weights[r] * gradient_r into the views `out`; unusable rows are not touched."""
        ...


def measure(terms: Sequence[Term], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[terms, R] squared norms in float32, and [terms, R] the rounding error each may carry, in float64."""
    squares = torch.empty(len(terms), rows, device=device)
    for term, out in zip(terms, squares.unbind(0), strict=True):
        term.square(out)
    doubts = torch.zeros(len(terms), rows, dtype=torch.float64, device=device)
    found = [(i, *doubt) for i, term in enumerate(terms) if (doubt := term.doubt()) is not None]
    for width in {parts.shape[1] for _, parts, _ in found}:  # layers of equal token count at once
        same = [(i, parts, factor) for i, parts, factor in found if parts.shape[1] == width]
        sizes = torch.stack([parts for _, parts, _ in same]).sqrt_().sum(dim=2).to(torch.float64)  # [n, R]
        factors = torch.tensor([factor for _, _, factor in same], dtype=torch.float64, device=device)
        doubts[torch.tensor([i for i, _, _ in same], device=device)] = sizes.square_().mul_(factors[:, None])
    return squares, doubts


class Weights:
    """Row weights [R] float32, 0 at unusable rows. `usable` [R] bool, or None if all are."""

    def __init__(self, rows: Tensor, usable: Tensor | None) -> None:
        self.rows, self._usable = rows, usable
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
        if x.shape[1] > 1:
            return (self.kept(x) * self.rows[:, None, None]).flatten(0, 1)
        key = (x.data_ptr(), x.shape, x.stride())  # one condition feeds the modulation of every block
        if key not in self._scaled:
            self._scaled[key] = (self.kept(x) * self.rows[:, None, None]).flatten(0, 1)
        return self._scaled[key]


class Gram:
    """T x T products of inputs, shared by layers that read the same tensor. `operator` replaces them where it can."""

    def __init__(self, operator: Operator | None = None) -> None:
        self.operator = operator
        self._known: dict[tuple[object, ...], Tensor] = {}

    def of(self, a: Tensor, bias: bool) -> Tensor:
        """[R, T, p] -> [R, T, T] a a^T, plus 1 for a bias (an input feature that is always 1)."""
        key = (a.data_ptr(), a.shape, a.stride(), bias)
        if key not in self._known:
            product = torch.bmm(a, a.transpose(1, 2))
            self._known[key] = product.add_(1.0) if bias else product
        return self._known[key]

    def prepare(self, owner: Owner, a: Tensor, out: Tensor, rows: int) -> None:
        """Forms the product of an input right after its use in the forward pass, while it is in the cache."""
        if type(owner.module) is not nn.Linear or self.operator is not None or "weight" not in owner.parameters:
            return
        tokens = out.numel() // (rows * out.shape[-1])
        if tokens > 1 and _ghost_is_cheaper(tokens, a.shape[-1], out.shape[-1], None):
            with torch.no_grad():
                self.of(_by_row(a, rows), "bias" in owner.parameters)

    def norms(self, a: Tensor, bias: bool) -> Tensor:
        """[R, 1, p] -> [R] |a|^2, plus 1 for a bias."""
        key = (a.data_ptr(), a.shape, a.stride(), bias)
        if key not in self._known:
            squares = torch.linalg.vecdot(a[:, 0], a[:, 0])
            self._known[key] = squares.add_(1.0) if bias else squares
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

    def square(self, out: Tensor) -> None:
        """See `Term.square`."""
        tokens, p, d = self.a.shape[1], self.a.shape[2], self.g.shape[2]
        operator = self.gram.operator
        if not self.weight:
            self.gsum = self.g.sum(dim=1)
            torch.linalg.vecdot(self.gsum, self.gsum, out=out)
        elif tokens == 1:
            outputs = self.g[:, 0]
            torch.linalg.vecdot(outputs, outputs, out=out)
            out.mul_(self.gram.norms(self.a, self.bias))
        elif _ghost_is_cheaper(tokens, p, d, operator):
            if operator is not None:
                size = operator.ghost_squares(self.a, self.g, self.bias, out)
                self._doubt = (size.square_()[:, None], EPSILON / math.sqrt(tokens))
            else:
                self._ghost(out)
        else:
            self.direct = torch.bmm(self.g.transpose(1, 2), self.a)
            _long_squares(self.direct.flatten(1), out)
            if self.bias:
                self.gsum = self.g.sum(dim=1)
                out.add_(torch.linalg.vecdot(self.gsum, self.gsum))

    def _ghost(self, out: Tensor) -> None:
        inputs = self.gram.of(self.a, self.bias)
        outputs = torch.bmm(self.g, self.g.transpose(1, 2))
        # Cauchy-Schwarz: no token pair exceeds |a_t||a_s||g_t||g_s|, so rounding stays below eps * (sum |a||g|)^2;
        # errors of T^2 pairs are independent, hence the root.
        diagonal = inputs.diagonal(dim1=1, dim2=2) * outputs.diagonal(dim1=1, dim2=2)
        self._doubt = (diagonal, EPSILON / math.sqrt(inputs.shape[1]))
        torch.linalg.vecdot(inputs.flatten(1), outputs.flatten(1), out=out)

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
        if self.a.shape[2] <= self.g.shape[2]:  # scale the narrower side, and let the product transpose that one
            a, g = weights.scaled(self.a), weights.kept(self.g).flatten(0, 1)  # [R T, p], [R T, d]
            if self.bias:
                out["bias"].addmv_(g.t(), weights.tokens(self.a.shape[1]))
            if 2 * a.shape[1] < g.shape[1]:
                out["weight"].add_(torch.mm(a.t(), g).t())
                return
        else:
            a, g = weights.kept(self.a).flatten(0, 1), weights.scaled(self.g)
            if self.bias:
                out["bias"].add_(g.sum(dim=0))
        out["weight"].addmm_(g.t(), a)


@dataclass
class StoredTerm:
    """Any module whose per-row gradients are at hand (small ones: norms, embeddings, positions)."""

    grads: dict[str, Tensor]  # [R, *shape]

    def square(self, out: Tensor) -> None:
        """See `Term.square`."""
        first, *others = (g.flatten(1) for g in self.grads.values())
        torch.linalg.vecdot(first, first, out=out)
        for other in others:
            out.add_(torch.linalg.vecdot(other, other))

    def doubt(self) -> tuple[Tensor, float] | None:
        """None: what is measured is what is added."""
        return None

    def add_weighted(self, weights: Weights, out: Mapping[str, Tensor]) -> None:
        """See `Term.add_weighted`."""
        for name, grads in self.grads.items():
            out[name].view(-1).addmv_(weights.kept(grads).flatten(1).t(), weights.rows)


def _ghost_is_cheaper(tokens: int, p: int, d: int, operator: Operator | None) -> bool:
    return tokens * tokens * (p + d) < DIRECT_COST * (OPERATOR_GAIN if operator else 1.0) * p * d


def _by_row(x: Tensor, rows: int) -> Tensor:
    """[R G, ..., n] -> [R, T, n]."""
    return x if x.dim() == 3 and x.shape[0] == rows else x.reshape(rows, -1, x.shape[-1])


def _long_squares(x: Tensor, out: Tensor) -> None:
    """Writes the squared norms of the rows of x [R, n] into `out` [R]; n may be large."""
    parts = math.gcd(x.shape[1], max(x.shape[1] // LONG, 1))
    # vector_norm reads at the speed of memory, twice that of vecdot, but sums naively: hence in parts
    norms = torch.linalg.vector_norm(x.view(x.shape[0], parts, -1), dim=2)  # [R, parts]
    torch.linalg.vecdot(norms, norms, out=out)


def make_term(module: nn.Module, calls: list[Call], rows: int, names: tuple[str, ...], gram: Gram) -> Term:
    """The term of one module from all its uses in a forward pass (uses are joined as further tokens).

    Raises:
        InputError: an input without rows on its first axis.
    """
    if type(module) is nn.Linear:
        a = [_by_row(c.a, rows) for c in calls]
        g = [_by_row(c.g, rows) for c in calls]
        joined = (a[0], g[0]) if len(calls) == 1 else (torch.cat(a, dim=1), torch.cat(g, dim=1))
        return LinearTerm(*joined, weight="weight" in names, bias="bias" in names, gram=gram)
    grads: dict[str, Tensor] = {}
    for call in calls:
        grouped = (x.reshape(rows, x.shape[0] // rows, *x.shape[1:]) for x in (call.a, call.g))
        found = per_row_gradients(module, *grouped)
        for name in names:
            grads[name] = found[name] if name not in grads else grads[name] + found[name]
    return StoredTerm(grads)
