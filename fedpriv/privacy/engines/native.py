"""An optional C++ operator for ghost norms: compiled once for this machine when it is asked for, never on import.

PyTorch's batched product of small matrices reaches a quarter of the processor's speed; this operator uses that the
products are symmetric and writes none of them. It computes what the PyTorch path computes (tests hold both to plain
autograd), with other rounding: a run states whether it used it, for two runs are equal to the last digit only if both
did or both did not. Without a compiler, on a GPU, or if the built operator fails its own test, the PyTorch path is used
and a warning says so.

The library lies in the user's cache directory (XDG_CACHE_HOME or ~/.cache, `fedpriv/`) under a name made of the source
and the processor's features.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedpriv.privacy.engines.native_source import SOURCE

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
BUILD_SECONDS = 120
TOLERANCE = 1e-5

_lock = threading.Lock()
_found: dict[Path, Operator | None] = {}


@dataclass(frozen=True)
class Operator:
    """The compiled operator. It runs on one thread and lets other Python threads run meanwhile."""

    library: ctypes.CDLL

    def ghost_squares(self, a: Tensor, g: Tensor, bias: bool, out: Tensor) -> Tensor:
        """Writes sum_ij (a_i.a_j + bias)(g_i.g_j) of every row into `out` [R]; returns [R] sums of diagonal roots.

        Args:
            a, g: [R, T, p] and [R, T, d] float32 on the CPU.
            out: [R] float32, contiguous.
        """
        a, g = (x if x.stride(2) == 1 else x.contiguous() for x in (a, g))
        rows, tokens, p = a.shape
        sizes = torch.empty(rows)
        self.library.fedpriv_ghost_squares(
            a.data_ptr(), g.data_ptr(), rows, tokens, p, g.shape[2], a.stride(0), a.stride(1), g.stride(0), g.stride(1),
            int(bias), out.data_ptr(), sizes.data_ptr(),
        )  # fmt: skip
        return sizes


def operator(*, device: torch.device) -> Operator | None:
    """The operator, built if this machine has none yet; None, with a warning, where it cannot be had."""
    if device.type != "cpu":
        warnings.warn(f"the C++ norm operator runs on the CPU, not on {device}; using PyTorch's.", stacklevel=2)
        return None
    path = _path()
    with _lock:
        if path not in _found:
            try:
                _found[path] = _load(path if _ours(path) else _build(path))
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                warnings.warn(f"no C++ norm operator ({error}); using PyTorch's.", stacklevel=2)
                _found[path] = None
        return _found[path]


def _path() -> Path:
    """Where this machine's library lies: another source, compiler flag or processor gives another name."""
    text = "\n".join([SOURCE, *FLAGS, platform.machine(), sys.platform, _processor()])
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedpriv" / f"ghost-norms-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def _ours(path: Path) -> bool:
    """Is there a library that only this user (or root) can have written?"""
    if not path.exists():
        return False
    return all(found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022 for found in (path.stat(),))


def _build(path: Path) -> Path:
    """Compiles beside the place and moves it there whole, so that processes may build at the same time."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not compiler:
        raise RuntimeError("no C++ compiler: set CXX or install g++")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, library = Path(folder) / "norms.cpp", Path(folder) / "norms.so"
        source.write_text(SOURCE, encoding="utf-8")
        command = [compiler, *FLAGS, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[:300]}")
        library.chmod(0o700)
        library.replace(path)
    return path


def _load(path: Path) -> Operator:
    library = ctypes.CDLL(str(path))
    run = library.fedpriv_ghost_squares
    pointer, long = ctypes.c_void_p, ctypes.c_long
    run.argtypes, run.restype = [pointer, pointer, *[long] * 8, ctypes.c_int, pointer, pointer], None
    found = Operator(library)
    _prove(found)
    return found


def _prove(found: Operator) -> None:
    """Compares the operator with PyTorch before its first use: a wrong norm would break the promise in silence."""
    generator = torch.Generator().manual_seed(0)
    for tokens, p, d, bias in ((1, 3, 5, True), (5, 16, 33, False), (12, 64, 40, True), (23, 19, 64, True)):
        a, g = torch.randn(3, tokens, p, generator=generator), torch.randn(3, tokens, d, generator=generator)
        x, y = a.double(), g.double()
        inputs, outputs = x @ x.mT + float(bias), y @ y.mT
        got = torch.empty(3)
        sizes = found.ghost_squares(a, g, bias, got)
        diagonal = inputs.diagonal(dim1=1, dim2=2) * outputs.diagonal(dim1=1, dim2=2)
        fits = torch.allclose(got.double(), (inputs * outputs).sum(dim=(1, 2)), rtol=TOLERANCE) and torch.allclose(
            sizes.double(), diagonal.sqrt().sum(dim=1), rtol=TOLERANCE
        )
        if not fits:
            raise RuntimeError("the compiled operator disagrees with PyTorch")
