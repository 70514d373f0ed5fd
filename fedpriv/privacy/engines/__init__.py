"""Gradient engines: sums of clipped per-row gradients, one contract, four ways to compute them."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import difflib

from torch import nn

from fedpriv.errors import InputError
from fedpriv.privacy.engines.base import ClippedSum, GradientEngine, LossFn

__all__ = ["ENGINES", "ClippedSum", "GradientEngine", "LossFn", "make_engine"]

ENGINES = ("auto", "ghost", "functional", "opacus", "single")


def make_engine(
    name: str,
    model: nn.Module,
    loss: LossFn,
    *,
    microbatch: int = 0,
    native: bool = False,
    compile: bool = False,
    bf16: bool = False,
) -> GradientEngine:
    """The named engine for `model` and `loss`.

    auto: ghost where every trainable module has a rule, else functional. ghost: fast, models of known layers.
    functional: torch.func, any model. opacus: Opacus' hooks. single: one row at a time (for tests).
    Only parameters that require a gradient when the engine is made take part.

    Args:
        microbatch: rows per physical batch; 0 for the whole batch at once. The result does not depend on it.
        native: ghost only: C++ norms, compiled when first asked for; PyTorch's, with a warning, where that fails.
        compile: ghost only: passes and norms compiled by TorchInductor, tens of seconds once; excludes `native`.
        bf16: ghost only: products of both passes in bfloat16; norms and sums stay float32. Excludes `compile`.

    Raises:
        InputError: unknown name, a model that the engine cannot handle, a module with batch statistics, or
            an option where it does not apply.
    """
    from fedpriv.privacy.engines.functional import FunctionalEngine
    from fedpriv.privacy.engines.ghost import owners as ghost_owners
    from fedpriv.privacy.engines.opacus import OpacusEngine
    from fedpriv.privacy.engines.single import SingleRowEngine

    if name == "auto":
        try:
            ghost_owners(model)
        except InputError:
            return FunctionalEngine(model, loss, microbatch=microbatch)
        name = "ghost"
    if name == "ghost":
        return _ghost(model, loss, microbatch=microbatch, native=native, compile=compile, bf16=bf16)
    if name in ENGINES and (native or compile or bf16):
        raise InputError(
            "privacy.native, privacy.compile and privacy.bf16 are options of the ghost engine; the engine here is "
            f"{name!r}. Nothing was started."
        )
    if name == "functional":
        return FunctionalEngine(model, loss, microbatch=microbatch)
    if name == "opacus":
        return OpacusEngine(model, loss, microbatch=microbatch)
    if name == "single":
        return SingleRowEngine(model, loss)
    near = difflib.get_close_matches(name, ENGINES, n=1, cutoff=0.0)[0]
    raise InputError(
        f"unknown gradient engine {name!r}; the nearest is {near!r} (known: {', '.join(ENGINES)}). Nothing was started."
    )


def _ghost(
    model: nn.Module, loss: LossFn, *, microbatch: int, native: bool, compile: bool, bf16: bool
) -> GradientEngine:
    if not compile:
        from fedpriv.privacy.engines.ghost import GhostEngine

        return GhostEngine(model, loss, microbatch=microbatch, native=native, bf16=bf16)
    if native:
        raise InputError("compile and native exclude each other: one graph holds the norms too. Nothing was started.")
    if bf16:
        raise InputError("compile and bf16 exclude each other: the compiled graph is float32. Nothing was started.")
    from fedpriv.privacy.engines.compiled import CompiledGhostEngine

    return CompiledGhostEngine(model, loss, microbatch=microbatch)
