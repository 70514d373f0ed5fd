"""An optional C++ operator for ghost norms: compiled once for this machine when it is asked for, never on import.

PyTorch's batched product of small matrices reaches a quarter of the processor's speed; this operator uses that the
products are symmetric and writes none of them. It computes what the PyTorch path computes (tests hold both to plain
autograd), with other rounding: a run states whether it used it, for two runs are equal to the last digit only if both
did or both did not. Without a compiler, on a GPU, or if the built operator fails its own test, the PyTorch path is used
and a warning says so (`fedpriv.native`).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ctypes
import warnings

import torch
from torch import Tensor

from fedpriv import native
from fedpriv.privacy.engines.native_source import SOURCE

TOLERANCE = 1e-5


class Operator:
    """The compiled operator. It runs on one thread and lets other Python threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.fedpriv_ghost_squares
        pointer, long = ctypes.c_void_p, ctypes.c_long
        self._run.argtypes, self._run.restype = [pointer, pointer, *[long] * 8, ctypes.c_int, pointer, pointer], None

    def ghost_squares(self, a: Tensor, g: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
        """[R] sum_ij (a_i.a_j + bias)(g_i.g_j) of every row, and [R] sums of the roots of the diagonal.

        Args:
            a, g: [R, T, p] and [R, T, d] float32 on the CPU.
        """
        a, g = (x if x.stride(2) == 1 else x.contiguous() for x in (a, g))
        rows, tokens, p = a.shape
        squares, sizes = torch.empty(2, rows).unbind(0)
        self._run(
            a.data_ptr(), g.data_ptr(), rows, tokens, p, g.shape[2], a.stride(0), a.stride(1), g.stride(0), g.stride(1),
            int(bias), squares.data_ptr(), sizes.data_ptr(),
        )  # fmt: skip
        return squares, sizes


def operator(*, device: torch.device) -> Operator | None:
    """The operator, built if this machine has none yet; None, with a warning, where it cannot be had."""
    if device.type != "cpu":
        warnings.warn(f"the C++ norm operator runs on the CPU, not on {device}; using PyTorch's.", stacklevel=2)
        return None
    return native.operator("ghost-norms", SOURCE, Operator, _prove, instead="PyTorch's")


def _prove(found: Operator) -> str:
    """Compares the operator with PyTorch before its first use: a wrong norm would break the promise in silence."""
    generator = torch.Generator().manual_seed(0)
    for tokens, p, d, bias in ((1, 3, 5, True), (5, 16, 33, False), (12, 64, 40, True), (23, 19, 64, True)):
        a, g = torch.randn(3, tokens, p, generator=generator), torch.randn(3, tokens, d, generator=generator)
        x, y = a.double(), g.double()
        inputs, outputs = x @ x.mT + float(bias), y @ y.mT
        got, sizes = found.ghost_squares(a, g, bias)
        diagonal = inputs.diagonal(dim1=1, dim2=2) * outputs.diagonal(dim1=1, dim2=2)
        fits = torch.allclose(got.double(), (inputs * outputs).sum(dim=(1, 2)), rtol=TOLERANCE) and torch.allclose(
            sizes.double(), diagonal.sqrt().sum(dim=1), rtol=TOLERANCE
        )
        if not fits:
            return "the compiled operator disagrees with PyTorch"
    return ""
