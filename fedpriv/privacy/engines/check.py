"""Before an engine touches private rows it must agree with plain autograd on made-up ones.

Hooks see modules, not mathematics: a weight used outside its module, an input without rows on its first axis, a
wrong rule or an in-place operation would make norms too small, and the promise false, without any error. One
comparison per model structure and process finds these.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import FlatClipper
from fedpriv.privacy.engines.base import GradientEngine, LossFn, row_factors, trainable
from fedpriv.privacy.engines.single import row_gradient

ROWS = 3
TOLERANCE = 1e-3  # generous: a structural fault shows as an error of order 1, rounding as 1e-6

_passed: set[tuple[object, ...]] = set()
_lock = threading.Lock()


def check_once(
    model: nn.Module,
    loss: LossFn,
    build: Callable[[nn.Module], GradientEngine],
    examples: Examples,
    draws: Draws,
    *,
    variant: str = "",
) -> None:
    """Compares `build(copy of model)` with plain autograd on random rows of the shapes of `examples`.

    Only shapes and the range of times are taken from the arguments. Once per structure, engine variant and process.

    Raises:
        InputError: they disagree.
    """
    key = (*_key(model, loss, examples, draws), variant)
    with _lock:
        if key in _passed:
            return
    error = disagreement(model, loss, build, examples, draws)
    if not error <= TOLERANCE:
        raise InputError(
            f"the ghost engine's gradients of {type(model).__name__} differ from plain autograd by {error:.2g} of "
            "their size: the model uses a parameter outside its module, or a layer does not keep rows on its first "
            "axis. No private row was read; privacy.engine=functional works for any model."
        )
    with _lock:
        _passed.add(key)


def disagreement(
    model: nn.Module, loss: LossFn, build: Callable[[nn.Module], GradientEngine], examples: Examples, draws: Draws
) -> float:
    """Relative difference of clipped sums and norms between `build` and plain autograd, on made-up rows."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():  # zero-initialised outputs would hide every layer behind them
            p += 0.1 * torch.randn(p.shape, generator=generator).to(p.device)
    made, drawn = _made_up(examples, draws, generator)
    expected = torch.stack(
        [row_gradient(twin, loss, made.rows(slice(i, i + 1)), drawn.rows(slice(i, i + 1))) for i in range(ROWS)]
    ).to(torch.float64)
    norms = expected.norm(dim=1)
    clipper = FlatClipper(l2_clip_norm=max(float(norms.median()), 1e-6))  # some rows are clipped, some are not
    total = row_factors(clipper, norms) @ expected
    got = build(twin).clipped_sum(made, drawn, clipper)
    worst = _relative(got.total.to(torch.float64), total)
    return worst if got.norms is None else max(worst, _relative(got.norms, norms))


def _relative(x: Tensor, y: Tensor) -> float:
    if not bool(x.isfinite().all() and y.isfinite().all()):
        return float("inf")
    return float((x - y).norm() / y.norm().clamp(min=1e-30)) if bool(y.any()) else float(x.norm())


def _made_up(examples: Examples, draws: Draws, generator: torch.Generator) -> tuple[Examples, Draws]:
    def normal(like: Tensor) -> Tensor:
        return torch.randn((ROWS, *like.shape[1:]), generator=generator).to(like)

    hidden = torch.rand((ROWS, *examples.given.shape[1:]), generator=generator).to(examples.values.device) < 0.4
    made = Examples(
        values=normal(examples.values),
        given=~hidden,
        target=hidden,
        calendar=normal(examples.calendar),
        baseline=normal(examples.baseline),
        loc=torch.zeros((ROWS, *examples.loc.shape[1:])).to(examples.loc),
        scale=torch.ones((ROWS, *examples.scale.shape[1:])).to(examples.scale),
    )
    pick = torch.arange(ROWS, device=draws.time.device) % len(draws.time)
    return made, Draws(draws.time[pick], normal(draws.noise))


def _key(model: nn.Module, loss: LossFn, examples: Examples, draws: Draws) -> tuple[object, ...]:
    structure = tuple((n, type(m).__qualname__) for n, m in model.named_modules())
    return (
        type(model).__module__,
        structure,
        tuple((n, tuple(p.shape)) for n, p in trainable(model)),
        getattr(loss, "__module__", ""),
        getattr(loss, "__qualname__", type(loss).__qualname__),
        tuple(tuple(getattr(examples, f.name).shape[1:]) for f in fields(examples)),
        tuple(draws.time.shape[1:]),
        str(examples.values.device),
    )
