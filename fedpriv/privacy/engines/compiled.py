"""The ghost engine with its passes compiled: forward, backward and norms as one graph, by TorchInductor.

The graph is for one number of rows. Poisson batches have another one at each step, so a batch is cut into parts of
that many rows and the last part is filled up with empty rows of weight 0, which add nothing. Compilation takes tens of
seconds, once per shape and process: worth it for long runs. Where it fails (no C++ compiler, an operation that cannot
be traced) the engine says so and goes on uncompiled. The model must not change its structure after the first step.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.engines.base import LossFn, chunks
from fedpriv.privacy.engines.ghost import GhostEngine, Measured
from fedpriv.privacy.engines.rules import Call, Gram, LinearTerm, StoredTerm, Term, make_term, measure

COMPILED_ROWS = 32
"""Rows of the compiled graph where no microbatch is given: larger ones waste more on filling up."""

_NAMES = tuple(f.name for f in fields(Examples))


class _Plan:
    """How the flat outputs of a compiled graph are read: which calls, and which terms keep what."""

    def __init__(self) -> None:
        self.uses: list[tuple[int, int]] = []  # owner, number of calls
        self.kept: list[list[str]] = []  # names of the tensors that each term keeps


class CompiledGhostEngine(GhostEngine):
    """See the module's text."""

    def __init__(self, model: nn.Module, loss: LossFn, *, microbatch: int = 0, check: bool = True) -> None:
        super().__init__(model, loss, microbatch=microbatch or COMPILED_ROWS, check=check)
        self._graphs: dict[object, tuple[Callable[..., list[Tensor]], _Plan]] = {}
        self._failed = False

    def _parts(self, examples: Examples, draws: Draws) -> Iterator[tuple[slice, Examples, Draws]]:
        for part in chunks(len(examples), self._microbatch):
            some, drawn = examples.rows(part), draws.rows(part)
            missing = self._microbatch - len(some)
            yield (part, *_filled(some, drawn, missing)) if missing and not self._failed else (part, some, drawn)

    def _variant(self) -> str:
        return f"compiled {self._microbatch}"

    def _twin(self, model: nn.Module) -> GhostEngine:
        twin = CompiledGhostEngine(model, self._loss, microbatch=self._microbatch, check=False)
        twin._graphs = self._graphs  # parameters are arguments of a graph, so what is checked is what will run
        return twin

    def _measured(self, examples: Examples, draws: Draws) -> Measured:
        if self._failed:
            return super()._measured(examples, draws)
        values = {name: t.detach() for name, t in (*self._model.named_parameters(), *self._model.named_buffers())}
        row = [getattr(examples, name) for name in _NAMES] + [draws.time, draws.noise]
        inputs = [*values.values(), *row]
        key = tuple((t.shape, t.dtype, t.device) for t in inputs)
        try:
            if key not in self._graphs:
                self._graphs[key] = self._compiled(list(values), inputs)
            run, plan = self._graphs[key]
            with torch.no_grad():
                out = run(inputs)
        except InputError:
            raise
        except Exception as error:  # whatever the compiler raises: the uncompiled engine gives the same sums
            warnings.warn(f"the private step was not compiled ({type(error).__name__}: {error}).", stacklevel=2)
            self._failed = True
            return super()._measured(examples, draws)
        return self._read(plan, out, len(examples))

    def _compiled(self, names: list[str], inputs: list[Tensor]) -> tuple[Callable[..., list[Tensor]], _Plan]:
        from torch.fx.experimental.proxy_tensor import make_fx

        plan = _Plan()
        module = _Call(self._model, self._passes, plan)

        def step(flat: list[Tensor]) -> list[Tensor]:
            values = {f"model.{name}": t for name, t in zip(names, flat, strict=False)}
            return functional_call(module, values, tuple(flat[len(names) :]))

        graph = make_fx(step)(inputs)
        return torch.compile(graph, dynamic=False, fullgraph=True), plan

    def _passes(self, examples: Examples, draws: Draws, plan: _Plan) -> list[Tensor]:
        """What is traced: passes and norms, as a flat list that `_read` understands with the help of `plan`."""
        rows = len(examples)
        plan.uses, plan.kept = [], []
        calls = self._calls(examples, draws, Gram())
        with torch.no_grad():
            terms = self._terms(calls, rows, Gram())
            out = [*measure(list(terms.values()), rows, examples.values.device)]
            for owner, term in terms.items():
                plan.uses.append((owner, len(calls[owner])))
                out += [t for call in calls[owner] for t in (call.a, call.g)]
                kept = _kept(term)
                plan.kept.append(list(kept))
                out += kept.values()
        return out

    def _read(self, plan: _Plan, out: list[Tensor], rows: int) -> Measured:
        squares, doubts, *rest = out
        tensors = iter(rest)
        calls: dict[int, list[Call]] = {}
        terms: dict[int, Term] = {}
        for (owner, count), names in zip(plan.uses, plan.kept, strict=True):
            calls[owner] = [Call(next(tensors), next(tensors)) for _ in range(count)]
            kept = {name: next(tensors) for name in names}
            made = self._owners[owner]
            if type(made.module) is nn.Linear:
                term = make_term(made.module, calls[owner], rows, made.parameters, Gram())
                assert isinstance(term, LinearTerm)
                term.direct, term.gsum = kept.get("direct"), kept.get("gsum")
                terms[owner] = term
            else:
                terms[owner] = StoredTerm(kept)
        return Measured(terms, calls, squares, doubts)


class _Call(nn.Module):
    """A function around the model as a module, so that `functional_call` reaches the model's parameters."""

    def __init__(self, model: nn.Module, run: Callable[[Examples, Draws, _Plan], list[Tensor]], plan: _Plan) -> None:
        super().__init__()
        self.model = model
        self._run, self._plan = run, plan

    def forward(self, *row: Tensor) -> list[Tensor]:
        """Tensors of `Examples` and `Draws` -> what `run` gives."""
        return self._run(Examples(*row[: len(_NAMES)]), Draws(*row[len(_NAMES) :]), self._plan)


def _kept(term: Term) -> dict[str, Tensor]:
    """What a measured term needs for its weighted sum beyond the calls."""
    if isinstance(term, LinearTerm):
        return {name: t for name, t in (("direct", term.direct), ("gsum", term.gsum)) if t is not None}
    assert isinstance(term, StoredTerm)
    return term.grads


def _filled(examples: Examples, draws: Draws, missing: int) -> tuple[Examples, Draws]:
    """`missing` more rows: nothing given, nothing asked, of scale 1."""

    def more(x: Tensor, value: float = 0.0) -> Tensor:
        return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)])

    filled = {name: more(getattr(examples, name), 1.0 if name == "scale" else 0.0) for name in _NAMES}
    return Examples(**filled), Draws(more(draws.time), more(draws.noise))
