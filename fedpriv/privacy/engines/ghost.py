"""The book-keeping ghost engine: per-row clipping for about the price of an ordinary step.

One forward pass notes the input and output of every layer that has trainable parameters. One backward pass yields
the gradients at those outputs and nothing else: parameters are frozen meanwhile, so autograd computes no weight
gradients that would be thrown away. From inputs and output gradients each layer gives its per-row norms, and then,
the factors known, the clipped sum: no second backward pass, no per-row gradients where ghost norms are cheaper.
Bu et al. 2023, "Differentially private optimization on large model at small cost", arXiv:2210.00038.

K diffusion draws per row are a longer token axis of the same row. Frozen layers ahead of the first trainable one
need no graph and get none.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper, Rule
from fedpriv.privacy.engines.base import (
    ClippedSum,
    LossFn,
    checked_losses,
    checked_microbatch,
    chunks,
    device_of,
    gradients,
    group_factors,
    is_plain,
    layout,
    refuse_batch_statistics,
    row_factors,
    trainable,
    weighted_groups,
)
from fedpriv.privacy.engines.check import check_once
from fedpriv.privacy.engines.rules import Call, Gram, Term, Weights, check_rows, make_term, problem
from fedpriv.privacy.engines.single import add_row, row_gradient

NORM_TOLERANCE = 1e-5  # relative error of a squared norm above which a row is computed on its own


@dataclass(frozen=True)
class _Owner:
    """A module with trainable parameters of its own."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]  # local names, such as weight

    @property
    def full_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{local}" if self.name else local for local in self.parameters)


@dataclass(frozen=True)
class _Note:
    """One use of an owner: its input (with the version it had) and its output."""

    owner: int
    a: Tensor
    version: int
    out: Tensor


def owners(model: nn.Module) -> list[_Owner]:
    """Modules that own trainable parameters.

    Raises:
        InputError: one of them has no rule, or a parameter is shared between modules; it is named.
    """
    found: list[_Owner] = []
    seen: dict[int, str] = {}
    for name, module in model.named_modules():
        names = tuple(n for n, p in module.named_parameters(recurse=False) if p.requires_grad)
        if not names:
            continue
        why = problem(module)
        for n in names:
            other = seen.setdefault(id(getattr(module, n)), f"{name}.{n}")
            if other != f"{name}.{n}":
                why = f"its parameter {n!r} is shared with {other!r}"
        if why:
            raise InputError(
                f"the ghost engine cannot handle module {name or '(the model itself)'!r} ({type(module).__name__}): "
                f"{why}. Nothing was started; privacy.engine=functional works for any model."
            )
        found.append(_Owner(name, module, names))
    return found


class GhostEngine:
    """See the module's text. `check=False` skips the comparison with plain autograd before the first use."""

    def __init__(self, model: nn.Module, loss: LossFn, *, microbatch: int = 0, check: bool = True) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss = model, loss
        self._owners = owners(model)
        self._layout = layout(model)
        self._full_names = [owner.full_names for owner in self._owners]
        self._microbatch = checked_microbatch(microbatch)
        self._check = check
        self._checked: set[tuple[object, ...]] = set()

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """See `GradientEngine.clipped_sum`.

        Raises:
            InputError: the model uses its parameters in a way this engine does not see.
        """
        self._check_shapes(examples, draws)
        device = device_of(self._model)
        total = torch.zeros(self._layout.size, device=device)
        norms = torch.zeros(len(examples), dtype=torch.float64, device=device)
        for part in chunks(len(examples), self._microbatch):
            norms[part] = self._add(examples.rows(part), draws.rows(part), clipper, total)
        return ClippedSum(total, clipper.bound, norms)

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """See `GroupEngine.clipped_groups`; norms per layer are at hand, so groups cost nothing extra.

        Raises:
            InputError: a cut inside a layer, or a model that this engine does not see through.
        """
        self._check_shapes(examples, draws)
        device = device_of(self._model)
        total = torch.zeros(self._layout.size, device=device)
        norms = torch.zeros(len(examples), dtype=torch.float64, device=device)
        for part in chunks(len(examples), self._microbatch):
            norms[part] = self._add_groups(examples.rows(part), draws.rows(part), clipper, cuts, total)
        return ClippedSum(total, clipper.bound, norms)

    def _add_groups(
        self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int], total: Tensor
    ) -> Tensor:
        """`_add` with one factor for each group of layers."""
        rows, group_of = len(examples), self._groups(cuts)
        calls = self._calls(examples, draws)
        if not calls:
            return torch.zeros(rows, dtype=torch.float64, device=total.device)
        with torch.no_grad():
            gram = Gram()
            terms = {
                i: make_term(self._owners[i].module, uses, rows, self._owners[i].parameters, gram)
                for i, uses in calls.items()
            }
            norms = torch.zeros(len(cuts) - 1, rows, dtype=torch.float64, device=total.device)
            sure = torch.ones(rows, dtype=torch.bool, device=total.device)
            for group in sorted({group_of[i] for i in terms}):
                members = [i for i in terms if group_of[i] == group]
                square, doubt = _squares([terms[i] for i in members], rows, total.device)
                norm = norms[group] = square.clamp(min=0.0).sqrt()
                silent = (norm > 0) | _silent({i: calls[i] for i in members}, rows, norm)
                sure &= is_plain(norm) & silent & (doubt <= NORM_TOLERANCE * square)
            factors, whole = group_factors(clipper, norms)
            usable = None if bool(sure.all()) else sure
            flat = self._layout.views(total)
            for i, term in reversed(terms.items()):
                weights = Weights(torch.where(sure, factors[group_of[i]], 0.0).to(total.dtype), usable)
                names = zip(self._owners[i].parameters, self._full_names[i], strict=True)
                term.add_weighted(weights, {local: flat[full] for local, full in names})
            unsure: list[int] = torch.nonzero(~sure).flatten().tolist()
        for i in unsure:
            row = slice(i, i + 1)
            gradient = row_gradient(self._model, self._loss, examples.rows(row), draws.rows(row))
            whole[i] = weighted_groups(gradient[None], clipper, cuts, total)[0]
        return whole

    def _groups(self, cuts: Sequence[int]) -> list[int]:
        """The group of every owner; all its parameters must be in one."""
        starts = dict(zip(self._layout.names, self._layout.starts, strict=True))
        found: list[int] = []
        for owner in self._owners:
            places = {bisect_right(cuts, starts[name]) - 1 for name in owner.full_names}
            if len(places) != 1:
                raise InputError(f"a group of parameters ends inside module {owner.name!r}; no gradient was computed.")
            found.append(places.pop())
        return found

    def _check_shapes(self, examples: Examples, draws: Draws) -> None:
        shapes = (examples.values.shape[1:], examples.calendar.shape[1:], draws.time.shape[1:])
        if self._check and len(examples) and shapes not in self._checked:
            check_once(
                self._model, self._loss, lambda model: GhostEngine(model, self._loss, check=False), examples, draws
            )
            self._checked.add(shapes)

    def _add(self, examples: Examples, draws: Draws, clipper: Clipper, total: Tensor) -> Tensor:
        """Adds the clipped rows of one microbatch to `total` [P]; returns their norms [R] float64."""
        rows = len(examples)
        calls = self._calls(examples, draws)
        if not calls:
            return torch.zeros(rows, dtype=torch.float64, device=total.device)
        with torch.no_grad():
            gram = Gram()
            terms = {
                i: make_term(self._owners[i].module, uses, rows, self._owners[i].parameters, gram)
                for i, uses in calls.items()
            }
            square, doubt = _squares(list(terms.values()), rows, total.device)
            norms = square.clamp(min=0.0).sqrt()
            sure = is_plain(norms) & ((norms > 0) | _silent(calls, rows, norms)) & (doubt <= NORM_TOLERANCE * square)
            factors = torch.where(sure, row_factors(clipper, norms), 0.0)
            weights = Weights(factors.to(total.dtype), None if bool(sure.all()) else sure)
            flat = self._layout.views(total)
            for i, term in reversed(terms.items()):  # the last one measured is still in the cache
                names = zip(self._owners[i].parameters, self._full_names[i], strict=True)
                term.add_weighted(weights, {local: flat[full] for local, full in names})
            unsure: list[int] = torch.nonzero(~sure).flatten().tolist()
        for i in unsure:  # overflow, underflow, cancellation or no finite gradient: that row alone, in float64
            row = slice(i, i + 1)
            gradient = row_gradient(self._model, self._loss, examples.rows(row), draws.rows(row))
            norms[i] = add_row(gradient, clipper, total)
        return norms

    def _calls(self, examples: Examples, draws: Draws) -> dict[int, list[Call]]:
        """Inputs and output gradients of every owner, by its index; one forward and one backward pass."""
        rows = len(examples)
        with _recording(self._model, self._owners, rows) as notes, torch.enable_grad():
            losses = checked_losses(self._loss(self._model, examples, draws), rows)
            grads = gradients(losses.sum(), [note.out for note in notes])
        calls: dict[int, list[Call]] = {}
        for note, g in zip(notes, grads, strict=True):
            if note.a._version != note.version:
                raise InputError(
                    f"the input of module {self._owners[note.owner].name!r} was changed in place after its use; the "
                    "ghost engine needs it unchanged. No gradient was released."
                )
            if g is not None:  # a layer without influence on the loss has no gradient
                calls.setdefault(note.owner, []).append(Call(note.a, g))
        return calls


def _squares(terms: list[Term], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[R] squared norms over all terms, and the rounding error they may carry; float64."""
    squares = torch.empty(len(terms), rows, device=device)
    sizes = torch.zeros(len(terms), rows, device=device)
    shares: list[float] = []
    for i, term in enumerate(terms):
        squares[i] = term.square()
        found = term.doubt()
        shares.append(0.0 if found is None else found[1])
        if found is not None:
            sizes[i] = found[0]
    share = torch.tensor(shares, dtype=torch.float64, device=device)
    return squares.to(torch.float64).sum(dim=0), share @ sizes.to(torch.float64).square()


def _silent(calls: dict[int, list[Call]], rows: int, norms: Tensor) -> Tensor:
    """[R] bool: rows through which nothing came back. Any other norm of 0 is an underflow of squares."""
    silent = torch.ones(rows, dtype=torch.bool, device=norms.device)
    if bool((norms == 0).any()):
        for use in (use for uses in calls.values() for use in uses):
            silent &= (use.g.reshape(rows, -1) == 0).all(dim=1)
    return silent


@contextmanager
def _recording(model: nn.Module, found: list[_Owner], rows: int) -> Generator[list[_Note]]:
    """Freezes the trainable parameters and notes every use of their owners; undoes both at the end."""
    notes: list[_Note] = []
    frozen = [p for _, p in trainable(model)]
    handles: list[RemovableHandle] = []

    def note(index: int, module: nn.Module, args: tuple[object, ...], out: object) -> Tensor:
        owner = found[index]
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
            raise InputError(
                f"module {owner.name!r} ({type(module).__name__}) was not called with one tensor for one tensor; the "
                "ghost engine has no rule for that. No gradient was computed."
            )
        a = args[0]
        check_rows(owner.name, module, a, rows)
        check_rows(owner.name, module, out, rows)
        if not out.requires_grad:
            out = out.detach().requires_grad_()  # the first trainable layer on this path: the graph starts here
        notes.append(_Note(index, a.detach(), a._version, out))
        return out

    try:
        for p in frozen:
            p.requires_grad_(False)
        for i, owner in enumerate(found):
            handles.append(owner.module.register_forward_hook(partial(note, i)))
        yield notes
    finally:
        for handle in handles:
            handle.remove()
        for p in frozen:
            p.requires_grad_(True)
