"""The book-keeping ghost engine: per-row clipping for about the price of an ordinary step.

One forward pass notes the input and output of every layer that has trainable parameters. One backward pass yields
the gradients at those outputs and nothing else: autograd computes no weight gradients that would be thrown away.
From inputs and output gradients each layer gives its per-row norms, and then, the factors known, the clipped sum:
no second backward pass, no per-row gradients where ghost norms are cheaper.
Bu et al. 2023, "Differentially private optimization on large model at small cost", arXiv:2210.00038.

K diffusion draws per row are a longer token axis of the same row. Frozen layers ahead of the first trainable one
need no graph and get none.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    weighted_groups,
)
from fedpriv.privacy.engines.check import check_once
from fedpriv.privacy.engines.native import operator
from fedpriv.privacy.engines.recording import Recorder, owners
from fedpriv.privacy.engines.rules import Call, Gram, Term, Weights, make_term, measure
from fedpriv.privacy.engines.single import add_row, row_gradient

NORM_TOLERANCE = 1e-5  # relative error of a squared norm above which a row is computed on its own


@dataclass(frozen=True)
class Measured:
    """One microbatch after its backward pass. n owners have an influence on the loss.

    Attributes:
        terms: each owner's share, by its index.
        calls: what each of them was given and got back.
        squares: [n, R] float32 squared norms, in the order of `terms`.
        doubts: [n, R] float64, the rounding error that each may carry.
    """

    terms: Mapping[int, Term]
    calls: Mapping[int, Sequence[Call]]
    squares: Tensor
    doubts: Tensor

    def norms(self, members: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """[R] float64 norms over all terms, or over some; and [R] bool, where float32 can be trusted with them."""
        if members is None:
            squares, doubts, calls = self.squares, self.doubts, self.calls.values()
        else:
            places = {owner: i for i, owner in enumerate(self.terms)}
            chosen = [places[i] for i in members]
            squares, doubts, calls = self.squares[chosen], self.doubts[chosen], [self.calls[i] for i in members]
        square = squares.sum(dim=0, dtype=torch.float64)
        norms = square.clamp(min=0.0).sqrt()
        sure = is_plain(norms) & (doubts.sum(dim=0) <= NORM_TOLERANCE * square)
        zero = norms == 0
        if bool(zero.any()):
            sure &= ~zero | _silent(calls, norms)
        return norms, sure


class GhostEngine:
    """See the module's text.

    Args:
        microbatch: rows per physical batch; 0: all at once.
        native: use the C++ norm operator where it can be had.
        bf16: matrix products of the passes in bfloat16 (see `_calls`).
        check: False skips the comparison with plain autograd before the first use.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFn,
        *,
        microbatch: int = 0,
        native: bool = False,
        bf16: bool = False,
        check: bool = True,
    ) -> None:
        refuse_batch_statistics(model)
        self._model, self._loss = model, loss
        self._owners = owners(model)
        self._recorder = Recorder(self._owners)
        self._layout = layout(model)
        self._microbatch = checked_microbatch(microbatch)
        self._native = native
        self._operator = operator(device=device_of(model)) if native else None
        self._bf16 = bf16
        if bf16:
            _warn_if_slow(device_of(model))
        self._check = check
        self._checked: set[tuple[object, ...]] = set()
        self._total: Tensor | None = None
        self._places: list[dict[str, Tensor]] = []  # of every owner's parameters in it

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """See `GradientEngine.clipped_sum`.

        Raises:
            InputError: the model uses its parameters in a way this engine does not see.
        """
        return self._run(examples, draws, clipper, None)

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """See `GroupEngine.clipped_groups`; norms per layer are at hand, so groups cost nothing extra.

        Raises:
            InputError: a cut inside a layer, or a model that this engine does not see through.
        """
        self._groups(cuts)
        return self._run(examples, draws, clipper, cuts)

    def _run(self, examples: Examples, draws: Draws, clipper: Clipper, cuts: Sequence[int] | None) -> ClippedSum:
        self._check_shapes(examples, draws)
        device = device_of(self._model)
        total = self._cleared(device)
        norms = torch.zeros(len(examples), dtype=torch.float64, device=device)
        for part, some, drawn in self._parts(examples, draws):
            measured = self._measured(some, drawn)
            if not measured.terms:
                continue
            with torch.no_grad():
                if cuts is None:
                    found = self._add(measured, some, drawn, clipper, total, part.stop - part.start)
                else:
                    assert isinstance(clipper, Rule)
                    found = self._add_groups(measured, some, drawn, clipper, cuts, total, part.stop - part.start)
                norms[part] = found[: part.stop - part.start]
        return ClippedSum(total.clone(), clipper.bound, norms)

    def _cleared(self, device: torch.device) -> Tensor:
        """[P] zeros, the same memory at each step: its views are made once."""
        if self._total is None or self._total.device != device:
            self._total = torch.zeros(self._layout.size, device=device)
            views = self._layout.views(self._total)
            self._places = [
                {n: views[full] for n, full in zip(o.parameters, o.full_names, strict=True)} for o in self._owners
            ]
        return self._total.zero_()

    def _parts(self, examples: Examples, draws: Draws) -> Iterator[tuple[slice, Examples, Draws]]:
        """The microbatches and their places; rows past the end of a place are there to fill up, of weight 0."""
        for part in chunks(len(examples), self._microbatch):
            whole = part.stop - part.start == len(examples)
            yield (part, examples, draws) if whole else (part, examples.rows(part), draws.rows(part))

    def _add(
        self, measured: Measured, examples: Examples, draws: Draws, clipper: Clipper, total: Tensor, count: int
    ) -> Tensor:
        """Adds the first `count` clipped rows of a microbatch to `total` [P]; returns the norms [R] float64."""
        norms, sure = measured.norms()
        all_sure = bool(sure.all())
        factors = row_factors(clipper, norms)
        factors[count:] = 0.0
        weights = Weights(torch.where(sure, factors, 0.0).to(total.dtype), None if all_sure else sure)
        self._spread(measured, dict.fromkeys(measured.terms, weights))
        for i, gradient in self._unsure(sure[:count], all_sure, examples, draws):
            norms[i] = add_row(gradient, clipper, total)
        return norms

    def _add_groups(
        self,
        measured: Measured,
        examples: Examples,
        draws: Draws,
        clipper: Rule,
        cuts: Sequence[int],
        total: Tensor,
        count: int,
    ) -> Tensor:
        """`_add` with one factor for each group of layers."""
        group_of = self._groups(cuts)
        norms = torch.zeros(len(cuts) - 1, len(examples), dtype=torch.float64, device=total.device)
        sure = torch.ones(len(examples), dtype=torch.bool, device=total.device)
        for group in {group_of[i] for i in measured.terms}:
            norms[group], certain = measured.norms([i for i in measured.terms if group_of[i] == group])
            sure &= certain
        all_sure = bool(sure.all())
        factors, whole = group_factors(clipper, norms)
        factors[:, count:] = 0.0
        weights = [
            Weights(torch.where(sure, each, 0.0).to(total.dtype), None if all_sure else sure) for each in factors
        ]
        self._spread(measured, {i: weights[group_of[i]] for i in measured.terms})
        for i, gradient in self._unsure(sure[:count], all_sure, examples, draws):
            whole[i] = weighted_groups(gradient[None], clipper, cuts, total)[0]
        return whole

    def _spread(self, measured: Measured, weights: Mapping[int, Weights]) -> None:
        """Adds every owner's weighted rows to its place in the total, which `_cleared` made."""
        with torch.inference_mode():  # no bookkeeping for a graph
            for i, term in reversed(list(measured.terms.items())):  # the last one measured is still in the cache
                term.add_weighted(weights[i], self._places[i])

    def _unsure(self, sure: Tensor, all_sure: bool, examples: Examples, draws: Draws) -> Iterator[tuple[int, Tensor]]:
        """Gradients of rows with overflow, underflow, cancellation or no finite gradient: each computed alone."""
        rows: list[int] = [] if all_sure else torch.nonzero(~sure).flatten().tolist()
        for i in rows:
            row = slice(i, i + 1)
            yield i, row_gradient(self._model, self._loss, examples.rows(row), draws.rows(row))

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
            check_once(self._model, self._loss, self._twin, examples, draws, variant=self._variant())
            self._checked.add(shapes)

    def _variant(self) -> str:
        """Names what else than the model decides the arithmetic."""
        return "native" if self._operator else ""

    def _twin(self, model: nn.Module) -> GhostEngine:
        """The same engine for another model, unchecked."""
        return GhostEngine(model, self._loss, native=self._native, check=False)

    def _measured(self, examples: Examples, draws: Draws) -> Measured:
        """Norms of every owner's share: one forward and one backward pass."""
        rows = len(examples)
        gram = Gram(self._operator)
        calls = self._calls(examples, draws, gram)
        with torch.no_grad():
            terms = self._terms(calls, rows, gram)
        with torch.inference_mode():
            return Measured(terms, calls, *measure(list(terms.values()), rows, examples.values.device))

    def _terms(self, calls: Mapping[int, list[Call]], rows: int, gram: Gram) -> dict[int, Term]:
        owned = self._owners
        return {i: make_term(owned[i].module, uses, rows, owned[i].parameters, gram) for i, uses in calls.items()}

    def _calls(self, examples: Examples, draws: Draws, gram: Gram) -> dict[int, list[Call]]:
        """Inputs and output gradients of every owner, by its index, float32.

        With bfloat16 passes they are less exact, the bound is not: norms and sum are made of the same inputs and
        output gradients in float32, so a row still adds no more than it was clipped to. Rows that are computed again
        alone are float32 altogether.
        """
        rows = len(examples)
        linear = [owner.linear for owner in self._owners]

        def prepare(owner: int, a: Tensor) -> None:
            gram.prepare(linear[owner], a, rows)

        passes = torch.autocast(examples.values.device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()
        with self._recorder.recording(rows, None if self._bf16 else prepare) as notes, torch.enable_grad(), passes:
            losses = checked_losses(self._loss(self._model, examples, draws), rows)
            grads = gradients(losses.sum(), [note.out for note in notes])
        exact = _Float32() if self._bf16 else None
        calls: dict[int, list[Call]] = {}
        for note, g in zip(notes, grads, strict=True):
            if note.a._version != note.version:
                raise InputError(
                    f"the input of module {self._owners[note.owner].name!r} was changed in place after its use; the "
                    "ghost engine needs it unchanged. No gradient was released."
                )
            if g is not None:  # a layer without influence on the loss has no gradient
                call = Call(note.a, g) if exact is None else Call(exact.of(note.a), g.float())
                calls.setdefault(note.owner, []).append(call)
        return calls


class _Float32:
    """bfloat16 tensors in float32; an input of several layers stays one tensor, so that its products are shared."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Tensor] = {}

    def of(self, x: Tensor) -> Tensor:
        """`x` itself unless it is bfloat16."""
        if x.dtype != torch.bfloat16:
            return x
        return self._known.setdefault((x.data_ptr(), x.shape, x.stride()), x.float())


def _warn_if_slow(device: torch.device) -> None:
    if device.type == "cpu" and not getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        warnings.warn(
            "privacy.bf16=true, but this processor has no matrix units (AMX): bfloat16 is slower than float32 here.",
            stacklevel=4,
        )


def _silent(calls: Iterable[Sequence[Call]], norms: Tensor) -> Tensor:
    """[R] bool: rows through which nothing came back. Any other norm of 0 is an underflow of squares."""
    silent = torch.ones(len(norms), dtype=torch.bool, device=norms.device)
    for use in (use for uses in calls for use in uses):
        silent &= (use.g.reshape(len(norms), -1) == 0).all(dim=1)
    return silent
