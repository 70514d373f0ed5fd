"""Whose matrix products PyTorch uses on the CPU: its default library's, or oneDNN's.

Both are float32 throughout. On AMD processors with AVX-512 oneDNN's are about twice as fast as MKL's, elsewhere there
may be no difference. PyTorch asks oneDNN for float32 products only when told that lower precision would do; a processor
with units for it (AMX, bf16 on ARM) then takes the lower precision, which would make norms wrong by 1e-3. So what comes
back is compared with float64 first, and where it is not float32 the default stays.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

TOLERANCE: Final = 2e-6
"""Of a product with 300 terms: float32 is within 3e-7 of its size, bfloat16 and float16 beyond 2e-4."""


@contextmanager
def matrix_products(kind: str, device: torch.device | None = None) -> Generator[None]:
    """Products of `kind` ("default", "onednn") as long as it lasts, for the whole process; nested uses are fine.

    Where oneDNN is missing or not exact, a warning says so, once, and the default stays. On a GPU nothing changes.
    """
    if kind == "default" or (device is not None and device.type != "cpu") or not _exact():
        yield
        return
    setting: Any = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@lru_cache(maxsize=1)
def _exact() -> bool:
    """Whether oneDNN's products are float32 on this processor; warns if not."""
    wrong = problem()
    if wrong:
        warnings.warn(f"run.products=onednn is not used: {wrong}; PyTorch's default products are.", stacklevel=4)
    return not wrong


def problem() -> str:
    """Why oneDNN's products cannot be used here; empty if they can."""
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not torch.backends.mkldnn.is_available() or not hasattr(setting, "fp32_precision"):
        return "this PyTorch has no oneDNN, or no way to ask for it"
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        worst = max(_error(*shape) for shape in ((64, 300, 64), (768, 300, 256), (5, 300, 7), (256, 300, 1)))
    except RuntimeError as error:
        return f"oneDNN failed ({error})"
    finally:
        setting.fp32_precision = before
    return "" if worst <= TOLERANCE else f"its products are not float32 on this processor (relative error {worst:.0e})"


def _error(rows: int, inner: int, columns: int) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    more = torch.randn(3, rows, inner, generator=generator)
    pairs: list[tuple[Tensor, Tensor]] = [
        (a @ b, a.double() @ b.double()),
        (a.t().contiguous().t() @ b.t().contiguous().t(), a.double() @ b.double()),
        (torch.nn.functional.linear(a, b.t(), b[0]), a.double() @ b.double() + b[0].double()),
        (torch.bmm(more, more.mT), more.double() @ more.double().mT),
    ]
    return max(float((got.double() - want).norm() / want.norm()) for got, want in pairs)
